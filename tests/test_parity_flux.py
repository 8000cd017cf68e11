"""The whole loop equals diffusers' FluxPipeline with the same weights, sigmas and noise, and every input matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux

STEPS = 5
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(our model, diffusers' pipeline from the same folder)."""
    import diffusers

    folder, definition = tiny_flux(tmp_path_factory.mktemp("flux"))
    pipe = diffusers.FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return wanlab.load(definition, device="cpu"), pipe


def reference(pipe: Any, **changes: Any) -> Any:
    """Latents in our layout (B, C, 1, H, W), or frames (B, H, W, 3) in 0..1 with output_type="np"."""
    settings: dict[str, Any] = {
        "prompt": PROMPTS[:1],
        "num_inference_steps": STEPS,
        "guidance_scale": 3.5,
        "output_type": "latent",
        "max_sequence_length": 64,
        "height": 32,
        "width": 48,
        **changes,
    }
    seed = settings.pop("seed", 3)
    images = pipe(generator=torch.Generator().manual_seed(seed), **settings).images
    if settings["output_type"] != "latent":
        return images
    unpacked = pipe._unpack_latents(images, settings["height"], settings["width"], pipe.vae_scale_factor)
    return unpacked[:, :, None]


def ours(model: Any, spec: Any, prompts: list[str]) -> Tensor:
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in prompts]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    noise = model.initial_noise(spec, batch=len(prompts))
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), noise)


def make_spec(model: Any, **changes: Any) -> Any:
    return model.spec(**{"prompt": PROMPTS[0], "num_steps": STEPS, "seed": 3, "height": 32, "width": 48, **changes})


@pytest.mark.parametrize("batch", [1, 2])
def test_loop_equals_diffusers_and_every_input_matters(both: tuple[Any, Any], batch: int) -> None:
    model, pipe = both
    base = {"prompt": PROMPTS[:batch]}
    expected = reference(pipe, **base)
    spec = make_spec(model)
    assert model.sigmas(spec).numpy() == pytest.approx(pipe.scheduler.sigmas.numpy(), abs=2e-6)
    assert rel(ours(model, spec, PROMPTS[:batch]), expected) <= 1e-5

    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": ["quiet water at night"] * batch},
        "guidance_scale": {"guidance_scale": 4.0},
        "seed": {"seed": 4},
    }
    moved = {name: rel(reference(pipe, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved
    assert reference(pipe, **base, width=32).shape[-1] != expected.shape[-1]


def test_true_cfg_beside_the_embedded_guidance(both: tuple[Any, Any]) -> None:
    model, pipe = both
    expected = reference(pipe, negative_prompt=[NEGATIVE], true_cfg_scale=2.0)
    spec = make_spec(model, negative_prompt=NEGATIVE, guidance__true_cfg_scale=2.0)
    assert rel(ours(model, spec, PROMPTS[:1]), expected) <= 1e-5
    other = reference(pipe, negative_prompt=["bright and calm"], true_cfg_scale=2.0)
    assert rel(other, expected) >= 1e-2
    assert rel(reference(pipe, negative_prompt=[NEGATIVE], true_cfg_scale=2.5), expected) >= 1e-2


def test_generate_gives_the_pipelines_image(both: tuple[Any, Any]) -> None:
    model, pipe = both
    expected = np.round(reference(pipe, output_type="np") * 255)
    result = wanlab.generate(model, make_spec(model))
    assert result.frames.shape == expected.shape == (1, 32, 48, 3)
    assert np.abs(result.frames - expected).max() <= 1
    assert rel(result.latents, reference(pipe)) <= 1e-5


def test_size_that_is_not_legal_names_the_nearest(both: tuple[Any, Any]) -> None:
    model, _ = both
    with pytest.raises(wanlab.WanlabError, match="50"):
        wanlab.generate(model, make_spec(model, width=50))
    with pytest.raises(wanlab.WanlabError, match="1"):
        wanlab.generate(model, make_spec(model, num_frames=5))
