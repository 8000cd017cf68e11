"""Wan from pictures and video equals diffusers' pipelines with the same weights, and every input matters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny_video import picture, quiet, tiny_i2v

STEPS = 5
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"
SIZES = {"5b": (64, 32)}


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module", params=["2.1", "flf", "2.2", "5b"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, str]:
    """(our model, diffusers' pipeline from the same folder, kind)."""
    import diffusers

    folder, definition = tiny_i2v(tmp_path_factory.mktemp("i2v"), request.param)
    pipe = quiet(diffusers.WanImageToVideoPipeline.from_pretrained(folder))
    return wanlab.load(definition, device="cpu"), pipe, request.param


def reference(pipe: Any, size: tuple[int, int], **changes: Any) -> Tensor:
    settings = {
        "prompt": PROMPTS[:1],
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "output_type": "latent",
        "num_frames": 9,
        "width": size[0],
        "height": size[1],
        **changes,
    }
    settings["negative_prompt"] = [settings["negative_prompt"]] * len(settings["prompt"])
    return pipe(generator=torch.Generator().manual_seed(settings.pop("seed", 3)), **settings).frames


def ours(model: Any, spec: Any, prompts: list[str]) -> Tensor:
    """The stages by hand, since a batch of different prompts is no spec."""
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in prompts]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    noise = model.initial_noise(spec, batch=len(prompts))
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), noise)


@pytest.mark.parametrize("batch", [1, 2])
def test_image_to_video_equals_diffusers_and_every_input_matters(both: tuple[Any, Any, str], batch: int) -> None:
    model, pipe, kind = both
    size = SIZES.get(kind, (48, 32))
    media = {"image": picture(1, *size)} | ({"last_image": picture(2, *size)} if kind in ("flf", "2.2") else {})
    second = {"guidance_scale_2": 3.0} if kind == "2.2" else {}
    base: dict[str, Any] = {"prompt": PROMPTS[:batch], **media, **second}
    expected = reference(pipe, size, **base)
    spec = model.spec(prompt=PROMPTS[0], negative_prompt=NEGATIVE, num_steps=STEPS, seed=3, **media, **second)
    assert rel(ours(model, spec, PROMPTS[:batch]), expected) <= 1e-5

    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": ["quiet water at night"] * batch},
        "negative_prompt": {"negative_prompt": "bright and calm"},
        "guidance_scale": {"guidance_scale": 5.5},
        "seed": {"seed": 4},
        "image": {"image": picture(11, *size)},
    }
    if "last_image" in media:
        variants["last_image"] = {"last_image": picture(12, *size)}
    if second:
        variants["guidance_scale_2"] = {"guidance_scale_2": 3.5}
        assert set(model.experts(spec)) == {"transformer", "transformer_2"}
    moved = {name: rel(reference(pipe, size, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved


def test_fun_inp_takes_a_last_frame_that_clip_does_not_see(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fun-InP is 2.1's network trained on last frames too; CLIP reads the first alone. diffusers would pass it both."""
    import diffusers

    folder, definition = tiny_i2v(tmp_path_factory.mktemp("fun"), "2.1")
    pipe = quiet(diffusers.WanImageToVideoPipeline.from_pretrained(folder))
    see = pipe.encode_image
    monkeypatch.setattr(pipe, "encode_image", lambda images, device: see(images[0], device))
    model = wanlab.load({**definition, "constants": {"last_frame": True}}, device="cpu")
    media = {"image": picture(1), "last_image": picture(2)}
    expected = reference(pipe, (48, 32), **media)
    spec = model.spec(prompt=PROMPTS[0], negative_prompt=NEGATIVE, num_steps=STEPS, seed=3, **media)
    assert rel(ours(model, spec, PROMPTS[:1]), expected) <= 1e-5
    for name in media:
        assert rel(reference(pipe, (48, 32), **{**media, name: picture(11)}), expected) >= 1e-2


@pytest.mark.parametrize("batch", [1, 2])
def test_ti2v_from_text_equals_diffusers(tmp_path_factory: pytest.TempPathFactory, batch: int) -> None:
    """diffusers embeds the same timestep for every token; here it is embedded once."""
    import diffusers

    folder, definition = tiny_i2v(tmp_path_factory.mktemp("ti2v"), "5b")
    loaded = diffusers.WanImageToVideoPipeline.from_pretrained(folder)
    parts = {k: v for k, v in loaded.components.items() if not k.startswith("image_")}
    pipe = quiet(diffusers.WanPipeline(**parts, expand_timesteps=True))
    model = wanlab.load(definition, device="cpu")
    spec = model.spec(prompt=PROMPTS[0], negative_prompt=NEGATIVE, num_steps=STEPS, seed=3)
    expected = reference(pipe, (64, 32), prompt=PROMPTS[:batch])
    assert rel(ours(model, spec, PROMPTS[:batch]), expected) <= 1e-5
    assert rel(reference(pipe, (64, 32), prompt=["quiet water"] * batch), expected) >= 1e-2
