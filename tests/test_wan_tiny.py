"""The shipped model: its size and layout, that diffusers gets the same from it, and that it does what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import wanlab
from wanlab.files import resource
from wanlab.metrics import psnr
from wanlab.shapes.captions import captions, sample_scenes
from wanlab.shapes.judge import judge
from wanlab.shapes.renderer import render

FOLDER = resource("assets", "wan_tiny")
SETTINGS = {"num_steps": 4, "num_frames": 9, "height": 64, "width": 96}


@pytest.fixture(scope="module")
def model() -> Any:
    return wanlab.load("wan_tiny", device="cpu")


def test_weights_are_small_bfloat16_shards() -> None:
    files = list(FOLDER.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) <= 28e6
    assert max(f.stat().st_size for f in files) <= 15e6
    for path in files:
        with safe_open(path, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_diffusers_gets_the_same_latents(model: Any) -> None:
    """WanPipeline from the folder, its own defaults but for size, steps, scale and noise."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    spec = model.spec(prompt="a yellow star spins on a navy background", seed=3, **SETTINGS)
    expected = pipeline(
        spec.text.prompt, height=64, width=96, num_frames=9, num_inference_steps=4,
        guidance_scale=spec.guidance.guidance_scale, latents=model.initial_noise(spec), output_type="latent",
    ).frames  # fmt: skip
    found = wanlab.generate(model, spec).latents
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_capitals_and_a_full_stop_mean_nothing(model: Any) -> None:
    plain = model.encode_text(model.spec(prompt="a red circle grows on a pink background"))["prompt"]["embeds"]
    loud = model.encode_text(model.spec(prompt="A Red Circle grows on a Pink background"))["prompt"]["embeds"]
    assert torch.equal(plain, loud)


def test_autoencoder_keeps_held_out_clips(model: Any) -> None:
    """The 100-clip figures are in experiments/wan_tiny; this is a sample of them."""
    scenes = sample_scenes(3, torch.Generator().manual_seed(7), "held_out", replace=False)
    clips = render(scenes)
    with model.resident("vae") as vae, torch.no_grad():
        latents = vae.encode(clips.frames * 2 - 1).latent_dist.mode()
        frames = vae.decode(latents, return_dict=False)[0] / 2 + 0.5
    for index in range(len(scenes)):
        real, made = ((f[index].permute(1, 2, 3, 0) * 255).round().byte().numpy() for f in (clips.frames, frames))
        assert psnr(made, real) >= 30
        left, top, right, bottom = clips.boxes[index, 16].tolist()
        box = np.s_[16:17, top:bottom, left:right]
        assert psnr(made[box], real[box]) >= 24


@pytest.mark.slow
def test_prompts_it_never_saw_are_followed(model: Any) -> None:
    """Four held-out combinations; 96.8 % of 400 are right (experiments/wan_tiny), so three of four must be."""
    prompts = captions(sample_scenes(4, torch.Generator().manual_seed(2026), "held_out", replace=False))
    verdicts = [judge(wanlab.generate(model, prompt=prompt, seed=0).frames).matches(prompt) for prompt in prompts]
    right = [all(v[word] for word in ("colour", "shape", "motion")) for v in verdicts]
    assert sum(right) >= 3, list(zip(prompts, verdicts, strict=True))
