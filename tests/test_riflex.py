"""RIFLEx in Wan's forward: the sixth temporal frequency is slower, and nothing else changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import wanlab
from wanlab.sites import Branch, Conditions, StepContext


@pytest.fixture(scope="module")
def model() -> Any:
    return wanlab.load("wan_tiny", device="cpu")


@torch.no_grad()
def test_riflex_is_the_network_with_one_slower_frequency(model: Any) -> None:
    spec = model.spec(prompt="a red circle moves right on a black background", riflex="on")
    conditions = wanlab.encode_conditions(model, spec)
    frames = model.latent_shape(spec)[1]
    assert conditions == Conditions(riflex=frames)
    latents, text = model.initial_noise(spec), wanlab.encode_text(model, spec)["prompt"]
    ctx = StepContext(0, 20, 1.0, timestep=999.0)
    slowed = model.velocity(latents, ctx, Branch("cond", text, conditions))

    rope = model.parts["transformer"].module.rope
    tables = rope.freqs_cos, rope.freqs_sin
    angle = torch.arange(len(tables[0]), dtype=torch.float64) * (0.9 * 2 * math.pi / frames)
    try:
        rope.freqs_cos, rope.freqs_sin = (t.clone() for t in tables)
        rope.freqs_cos[:, 10:12], rope.freqs_sin[:, 10:12] = angle.cos()[:, None], angle.sin()[:, None]
        expected = model.velocity(latents, ctx, Branch("cond", text))
    finally:
        rope.freqs_cos, rope.freqs_sin = tables
    plain = model.velocity(latents, ctx, Branch("cond", text))
    assert float((slowed - expected).norm() / expected.norm()) <= 1e-6
    assert float((slowed - plain).norm() / plain.norm()) >= 1e-2


def test_auto_is_for_clips_of_more_than_six_seconds(model: Any) -> None:
    fps = model.default_spec.size.fps
    limit = int(6 * fps)
    short, long = (4 * (n // 4) + 1 for n in (limit, limit + 4))
    for length, expected in ((short, None), (long, (long - 1) // 4 + 1)):
        spec = model.spec(num_frames=length, riflex="auto")
        assert wanlab.encode_conditions(model, spec).riflex == expected
