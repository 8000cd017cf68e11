"""Families against diffusers: forward, text, noise, decoding; real sizes without memory; what a spec may ask of a
model."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from torch import Tensor

from tests.tiny import WAN_VAE, tiny_flux, tiny_wan
from wanlab import models
from wanlab.errors import WanlabError
from wanlab.models import Model, _wan_vae
from wanlab.models._wan_vae import WHOLE_CLIP_BYTES, decode_clip, whole_clip_bytes
from wanlab.sites import Branch, StepContext

Pair = tuple[Model, Any]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder, definition = tiny_wan(tmp_path_factory.mktemp("wan"), experts=2)
    return models.load(definition, device="cpu"), diffusers.WanPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder, definition = tiny_flux(tmp_path_factory.mktemp("flux"))
    return models.load(definition, device="cpu"), diffusers.FluxPipeline.from_pretrained(folder)


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


def at(timestep: float, expert: str = "transformer") -> StepContext:
    return StepContext(1, 4, timestep / 1000, timestep=timestep, expert=expert)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("expert", ["transformer", "transformer_2"])
def test_wan_forward_is_bit_equal(wan: Pair, expert: str, batch: int) -> None:
    """Also after a change of each input, which moves the reference."""
    model, pipeline = wan
    noise = model.initial_noise(model.resolve(model.spec(seed=5, width=64)), batch)
    embeds = torch.randn(batch, 512, 32, generator=torch.Generator().manual_seed(1))
    network, base = getattr(pipeline, expert), None
    for latents, timestep, text in [
        (noise, 750, embeds),
        (noise.flip(2), 750, embeds),
        (noise, 250, embeds),
        (noise, 750, embeds.flip(1, 2)),
    ]:
        theirs = network(latents, torch.tensor([timestep] * batch), text, return_dict=False)[0]
        ours = model.velocity(latents, at(timestep, expert), Branch("cond", {"embeds": text}))
        assert torch.equal(ours, theirs)
        base = theirs if base is None else base
        assert theirs is base or relative(theirs, base) > 1e-2
    assert noise.shape[-2] != noise.shape[-1]


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_flux_forward_equals_diffusers(flux: Pair, batch: int) -> None:
    model, pipeline = flux
    noise = model.initial_noise(model.resolve(model.spec(seed=5)), batch)
    draw = torch.Generator().manual_seed(1)
    text, pooled = torch.randn(batch, 64, 32, generator=draw), torch.randn(batch, 32, generator=draw)
    base = None
    for latents, t, e, p, g in [
        (noise, 750.0, text, pooled, 3.5),
        (noise.flip(3), 750.0, text, pooled, 3.5),
        (noise, 250.0, text, pooled, 3.5),
        (noise, 750.0, text.flip(2), pooled, 3.5),
        (noise, 750.0, text, pooled.flip(1), 3.5),
        (noise, 750.0, text, pooled, 4.0),
    ]:
        packed = pipeline._pack_latents(latents[:, :, 0], batch, *latents.shape[1:2], *latents.shape[3:])
        ids = pipeline._prepare_latent_image_ids(batch, 8, 12, "cpu", torch.float32)
        theirs = pipeline.transformer(
            packed,
            e,
            p,
            torch.full((batch,), t) / 1000,
            ids,
            torch.zeros(64, 3),
            torch.full((batch,), g),
            return_dict=False,
        )[0]
        theirs = pipeline._unpack_latents(theirs, 32, 48, pipeline.vae_scale_factor).unsqueeze(2)
        ours = model.velocity(latents, at(t), Branch("cond", {"embeds": e, "pooled": p}, guidance=g))
        assert relative(ours, theirs) <= 1e-6
        base = theirs if base is None else base
        assert theirs is base or relative(theirs, base) > 1e-2


@torch.no_grad()
def test_text_equals_the_pipelines(wan: Pair, flux: Pair) -> None:
    model, pipeline = wan
    prompt = "  A cat &amp; a dog,\n  on   a mat "
    text = model.encode_text(model.spec(prompt=prompt, negative_prompt="ugly"))
    theirs = pipeline.encode_prompt(prompt, "ugly", max_sequence_length=512)
    assert torch.equal(text["prompt"]["embeds"], theirs[0])
    assert torch.equal(text["negative_prompt"]["embeds"], theirs[1])
    assert set(model.encode_text(model.spec(guidance_scale=1.0, guidance_scale_2=1.0))) == {"prompt"}
    model, pipeline = flux
    text = model.encode_text(model.spec(prompt=prompt))
    embeds, pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=64)
    assert set(text) == {"prompt"}
    assert torch.equal(text["prompt"]["embeds"], embeds)
    assert torch.equal(text["prompt"]["pooled"], pooled)


def test_initial_noise_equals_the_pipelines(wan: Pair, flux: Pair) -> None:
    model, pipeline = wan
    spec = model.resolve(model.spec(seed=11))
    theirs = pipeline.prepare_latents(2, 16, 32, 48, 9, torch.float32, "cpu", torch.Generator().manual_seed(11))
    assert torch.equal(model.initial_noise(spec, 2), theirs)
    model, pipeline = flux
    spec = model.resolve(model.spec(seed=11))
    packed, _ = pipeline.prepare_latents(2, 4, 32, 48, torch.float32, "cpu", torch.Generator().manual_seed(11))
    theirs = pipeline._unpack_latents(packed, 32, 48, pipeline.vae_scale_factor)
    assert torch.equal(model.initial_noise(spec, 2)[:, :, 0], theirs)


@torch.no_grad()
def test_decode_equals_the_pipelines(wan: Pair, flux: Pair) -> None:
    """To 1e-6 in pixels before rounding, and to the byte here."""
    model, pipeline = wan
    spec = model.resolve(model.spec(seed=2))
    latents, config = model.initial_noise(spec), pipeline.vae.config
    mean, std = (torch.tensor(config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    theirs = pipeline.vae.decode(latents / (1 / std) + mean, return_dict=False)[0]
    assert relative(model.decode_pixels(latents), theirs) <= 1e-6
    media = model.decode(spec, latents)
    pictures = np.stack([np.asarray(p) for p in pipeline.video_processor.postprocess_video(theirs, "pil")[0]])
    assert media.fps == 16
    assert np.array_equal(media.frames, pictures)
    model, pipeline = flux
    spec = model.resolve(model.spec(seed=2))
    latents, config = model.initial_noise(spec), pipeline.vae.config
    theirs = pipeline.vae.decode(latents[:, :, 0] / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    assert np.array_equal(
        model.decode(spec, latents).frames[0], np.asarray(pipeline.image_processor.postprocess(theirs)[0])
    )


def raising_at(call: int) -> Callable[[float], None]:
    count = itertools.count()

    def check(share: float) -> None:
        if next(count) == call:
            raise KeyboardInterrupt

    return check


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_whole_clip_decode_equals_chunks(kind: str, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass and frame by frame, after an interrupt too, and without a trace in diffusers' classes."""
    z = 16 if kind == "2.1" else 48
    config: dict[str, Any] = dict(WAN_VAE)
    if kind == "2.2":
        config |= {
            "decoder_base_dim": 3,
            "z_dim": z,
            "latents_mean": [0.0] * z,
            "latents_std": [1.0] * z,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        }
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**config).eval()
    for p in vae.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, 0.1, 0.3)
    latents, forward = torch.randn(2, z, frames, 4, 6), WanResample.forward
    exact = vae.double().decode(latents.double(), return_dict=False)[0]
    assert relative(decode_clip(vae, latents.double()), exact) <= 1e-12
    theirs = vae.float().decode(latents, return_dict=False)[0]
    calls: list[float] = []
    ours = decode_clip(vae, latents, calls.append)
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) <= 1e-6
    assert WanResample.forward is forward
    assert calls == [i / len(vae.decoder.up_blocks) for i in range(len(vae.decoder.up_blocks))]
    monkeypatch.setattr(_wan_vae, "WHOLE_CLIP_BYTES", 0)
    assert torch.equal(decode_clip(vae, latents), theirs)
    for stop_at in range(frames):
        with pytest.raises(KeyboardInterrupt):
            decode_clip(vae, latents, raising_at(stop_at))
    assert torch.equal(decode_clip(vae, latents), theirs)
    assert relative(vae.decode(latents.flip(2), return_dict=False)[0], theirs) > 1e-2 or frames == 1


def test_large_clips_go_frame_by_frame() -> None:
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLWan()
    assert whole_clip_bytes(vae, torch.empty(1, 16, 21, 60, 104, device="meta")) > WHOLE_CLIP_BYTES
    assert whole_clip_bytes(vae, torch.empty(1, 16, 1, 12, 12, device="meta")) < WHOLE_CLIP_BYTES


def wan_shapes(dim: int, ffn: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Wan 2.1 text-to-video parameters, as published: 16 latent channels, UMT5-XXL text, 256
    frequencies."""

    def linear(name: str, out: int, inp: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}

    shapes: dict[str, tuple[int, ...]] = {
        "scale_shift_table": (1, 2, dim),
        "patch_embedding.weight": (dim, 16, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        **linear("condition_embedder.time_embedder.linear_1", dim, 256),
        **linear("condition_embedder.time_embedder.linear_2", dim, dim),
        **linear("condition_embedder.time_proj", 6 * dim, dim),
        **linear("condition_embedder.text_embedder.linear_1", dim, 4096),
        **linear("condition_embedder.text_embedder.linear_2", dim, dim),
        **linear("proj_out", 64, dim),
    }
    for i in range(layers):
        block = f"blocks.{i}"
        for attn in ("attn1", "attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes |= linear(f"{block}.{attn}.{projection}", dim, dim)
            shapes |= {f"{block}.{attn}.norm_{x}.weight": (dim,) for x in "qk"}
        shapes |= linear(f"{block}.ffn.net.0.proj", ffn, dim) | linear(f"{block}.ffn.net.2", dim, ffn)
        shapes |= {f"{block}.norm2.weight": (dim,), f"{block}.norm2.bias": (dim,)}
        shapes[f"{block}.scale_shift_table"] = (1, 6, dim)
    return shapes


@pytest.mark.parametrize(
    ("name", "dim", "ffn", "layers", "billions"),
    [("wan_t2v_1_3b", 1536, 8960, 30, 1.42), ("wan_t2v_14b", 5120, 13824, 40, 14.29)],
)
def test_real_wan_sizes_on_meta(name: str, dim: int, ffn: int, layers: int, billions: float) -> None:
    network = models.skeleton(name, "transformer")
    found = {n: tuple(p.shape) for n, p in network.named_parameters()}
    assert found == wan_shapes(dim, ffn, layers)
    assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert all(p.is_meta for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "component", "millions"),
    [
        ("wan_t2v_1_3b", "vae", 126.9),
        ("wan_t2v_1_3b", "text_encoder", 5680.9),
        ("flux_dev", "transformer", 11901.4),
        ("flux_dev", "vae", 83.8),
        ("flux_dev", "text_encoder", 123.1),
        ("flux_dev", "text_encoder_2", 4762.3),
    ],
)
def test_other_real_components_on_meta(name: str, component: str, millions: float) -> None:
    module = models.skeleton(name, component)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 50}, "nearest: 48 or 64"),
        ({"height": 8}, "nearest: 16"),
        ({"num_frames": 10}, "nearest: 9 or 13"),
        ({"num_frames": 4000}, "nearest: 125"),
        ({"max_text_tokens": 513}, "max_text_tokens"),
        ({"dtype": "bfloat16"}, r"wanlab.load\(..., dtype='bfloat16'\)"),
        ({"vae_dtype": "float16"}, "vae_dtype"),
    ],
)
def test_what_a_model_cannot_do_is_one_error(wan: Pair, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(WanlabError, match=says):
        wan[0].resolve(wan[0].spec(**changes))


def test_settings_without_effect_are_errors(flux: Pair, tmp_path: Path) -> None:
    with pytest.raises(WanlabError, match="flow_shift"):
        flux[0].resolve(flux[0].spec(flow_shift=2.0))
    with pytest.raises(WanlabError, match="it must be 1"):
        flux[0].resolve(flux[0].spec(num_frames=5))
    with pytest.raises(WanlabError, match="one expert"):
        flux[0].resolve(flux[0].spec(expert_boundary=0.5))
    with pytest.raises(WanlabError, match="one expert"):
        flux[0].resolve(flux[0].spec(guidance_scale_2=2.0))


@pytest.mark.parametrize("method", ["cfg", "cfg_interval", "embedded"])
def test_guidance_is_of_the_kind_that_the_network_takes(wan: Pair, flux: Pair, tmp_path: Path, method: str) -> None:
    """Refused with the rules of the right kind, before a network is read."""
    schnell = models.load(tiny_flux(tmp_path, guidance_embeds=False)[1], device="cpu")
    for model, embeds in ((wan[0], False), (flux[0], True), (schnell, False)):
        assert model.takes_guidance is embeds
        if (method == "embedded") == embeds:
            model.resolve(model.spec(guidance=method))
            continue
        with pytest.raises(WanlabError, match="Choices: embedded" if embeds else "Choices: apg, cfg, cfg_interval"):
            model.resolve(model.spec(guidance=method))
    assert not any(part.loaded for part in schnell.parts.values())


def test_sigmas_start_where_pure_noise_is(wan: Pair, flux: Pair) -> None:
    """Latents of one's own may start anywhere, so the spec itself is legal."""
    for model, _ in (wan, flux):
        low = model.resolve(model.spec(sigmas=[0.8, 0.4, 0.0]))
        for check in (model.check_start, model.initial_noise):
            with pytest.raises(WanlabError, match=r"start at 0\.8, .* latents that are noised to 0\.8"):
                check(low)
        assert model.sigmas(low).tolist() == [0.8, 0.4, 0.0]
        model.initial_noise(model.resolve(model.spec(sigmas=[0.95, 0.4, 0.0])))
    replaced = flux[0].resolve(flux[0].spec(sigmas=[1.0, 0.4, 0.0], flow_shift=2.0))  # here flow_shift says nothing
    assert flux[0].sigmas(replaced).tolist() == [1.0, 0.4, 0.0]


@torch.no_grad()
def test_a_cut_prompt_warns_once_with_the_counts(wan: Pair, flux: Pair) -> None:
    """And gives what diffusers' pipelines give, which cut it too."""
    model, pipeline = wan
    prompt = "a cat &amp; a dog"  # counted as it is read: unescaped
    spec = model.spec(prompt=prompt, negative_prompt="b c d e f g h i j", max_text_tokens=6)
    whole = len(pipeline.tokenizer("a cat & a dog").input_ids)
    assert model.count_tokens(spec) == {"prompt": whole, "negative_prompt": 10, "limit": 6}
    with pytest.warns(UserWarning, match=f"prompt has {whole} tokens and negative_prompt has 10 tokens, .* 6") as seen:
        text = model.encode_text(spec)
    assert len(seen) == 1
    theirs = pipeline.encode_prompt(prompt, spec.text.negative_prompt, max_sequence_length=6)
    assert torch.equal(text["prompt"]["embeds"], theirs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = model.spec(prompt=prompt, negative_prompt="b c", max_text_tokens=whole)
        model.encode_text(fits)
        flux[0].encode_text(flux[0].spec(prompt=prompt, negative_prompt="b " * 99))  # which no branch reads
    assert flux[0].count_tokens(flux[0].spec(prompt=prompt)).keys() == {"prompt", "limit"}
    with pytest.warns(UserWarning, match="101 tokens, and flux_random reads the first 64"):
        flux[0].encode_text(flux[0].spec(prompt="b " * 100))


def test_models_import_nothing_upward_by_name() -> None:
    """Samplers and guidance come through the registry."""
    files = [p for p in Path(models.__file__).parent.glob("*.py") if p.name != "__init__.py"]
    assert len(files) > 5
    assert not [p.name for p in files if "importlib" in p.read_text()]


def test_resolve_is_concrete_and_idempotent(wan: Pair) -> None:
    model = wan[0]
    spec = model.resolve(model.spec())
    assert (spec.weights.dtype, spec.weights.vae_dtype) == ("float32", "float32")
    assert (spec.attention.method, spec.text.max_text_tokens, spec.sampling.expert_boundary) == ("sdpa", 512, 0.875)
    assert model.resolve(spec) is spec
    with pytest.raises(WanlabError, match="is loaded"):
        model.resolve(spec.with_(model="wan_t2v_14b"))


def test_experts_change_at_the_boundary(wan: Pair, flux: Pair) -> None:
    model = wan[0]
    assert model.experts(model.resolve(model.spec(num_steps=4))) == ["transformer"] * 2 + ["transformer_2"] * 2
    assert model.experts(model.resolve(model.spec(num_steps=4, expert_boundary=0.0))) == ["transformer"] * 4
    assert flux[0].experts(flux[0].resolve(flux[0].spec(num_steps=3))) == ["transformer"] * 3
    assert model.sigmas(model.resolve(model.spec(sigmas=[1.0, 0.5, 0.0], num_steps=2))).tolist() == [1.0, 0.5, 0.0]


def test_parts_load_late_and_once(tmp_path: Path) -> None:
    model = models.load(tiny_wan(tmp_path)[1], device="cpu")
    assert not any(part.loaded for part in model.parts.values())
    with model.resident("vae") as vae, model.resident("vae") as again:
        assert vae is again
    assert [name for name, part in model.parts.items() if part.loaded] == ["vae"]
    assert "vae" in model._repr_html_()
    with pytest.raises(WanlabError, match="no part"), model.resident("audio"):
        pass


def test_load_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    definition = tiny_wan(tmp_path)[1]
    with pytest.raises(WanlabError, match="Unknown model family"):
        models.load({**definition, "family": "wam"})
    with pytest.raises(WanlabError, match="load takes no 'seed'"):
        models.load(definition, seed=3)
    with pytest.raises(WanlabError, match="device"):
        models.load(definition, device="gpu")


def test_bfloat16_keeps_norms_time_and_rope_in_float32(tmp_path: Path) -> None:
    folder, definition = tiny_wan(tmp_path)
    model = models.load(definition, device="cpu", dtype="bfloat16")
    network = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    ours = model.stacks["transformer"].network
    assert {n: p.dtype for n, p in ours.named_parameters()} == {n: p.dtype for n, p in network.named_parameters()}
    assert ours.rope.freqs_cos.dtype == torch.float32
    noise = model.initial_noise(model.resolve(model.spec()))
    embeds = torch.randn(1, 512, 32).bfloat16()
    with torch.no_grad():
        theirs = network(noise.bfloat16(), torch.tensor([500]), embeds, return_dict=False)[0]
    assert torch.equal(model.velocity(noise, at(500), Branch("cond", {"embeds": embeds})), theirs)


def test_decode_takes_one_finite_sample(wan: Pair) -> None:
    model = wan[0]
    spec = model.resolve(model.spec())
    with pytest.raises(WanlabError, match="one sample"):
        model.decode(spec, model.initial_noise(spec, 2))
    with pytest.raises(WanlabError, match="NaN"):
        model.decode(spec, model.initial_noise(spec) * torch.nan)
