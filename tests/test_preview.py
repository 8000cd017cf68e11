"""Latent previews: the linear map of the definition, near the decoded clip, for every model that ships one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab.catalog import find
from wanlab.files import resource

IDS = sorted(path.stem for path in resource("defaults").glob("*.json"))


@pytest.mark.parametrize("name", IDS)
def test_every_definition_has_a_map_with_its_source(name: str) -> None:
    definition = find(name)
    rgb = definition.constants["latent_rgb"]
    assert np.shape(rgb["factors"]) == (definition.architecture["vae"].get("z_dim", 16), 3)
    assert np.shape(rgb["bias"]) == (3,)
    assert definition.sources["constants.latent_rgb"]


def test_the_preview_shows_what_the_decoder_shows() -> None:
    """Closer to its own clip, made small, than to that of another prompt, in the first frame and later."""
    model = wanlab.load("wan_tiny", device="cpu")
    prompts = ("a green star spins on a gray background", "a blue square moves left on a black background")
    clips = [wanlab.generate(model, prompt=prompt, num_steps=6) for prompt in prompts]
    views = [model.preview(c.latents) for c in clips]
    assert [v.shape for v in views] == [(9, 12, 12, 3)] * 2
    assert views[0].dtype == np.uint8
    for latent_frame, frame in ((0, 0), (8, 31)):
        small = [c.frames[frame].reshape(12, 8, 12, 8, 3).mean((1, 3)) for c in clips]
        distance = np.array([[np.abs(v[latent_frame] - s).mean() for s in small] for v in views])
        assert distance[0, 0] * 2 < distance[0, 1]
        assert distance[1, 1] * 2 < distance[1, 0]


def test_the_map_is_the_one_of_the_definition(tmp_path: Path) -> None:
    _, definition = tiny_wan(tmp_path)
    assert wanlab.load(definition, device="cpu").preview(torch.zeros(1, 16, 1, 2, 2)) is None
    factors = [[0.0, 0.0, 0.0] for _ in range(16)]
    factors[3] = [1.0, 0.0, -1.0]
    latents = torch.zeros(1, 16, 2, 1, 2)
    latents[0, 3, :, 0] = torch.tensor([0.5, 9.0])
    rgb: dict[str, Any] = {"factors": factors, "bias": [0, 0, 0.5]}
    changed = {**definition, "constants": {"latent_rgb": rgb}}
    later = [[[191, 128, 128], [255, 128, 0]]]
    assert wanlab.load(changed, device="cpu").preview(latents).tolist() == [later, later]
    rgb["first"] = {"factors": factors, "bias": [-1, 0, 0]}
    first = [[[64, 128, 64], [255, 128, 0]]]
    assert wanlab.load(changed, device="cpu").preview(latents).tolist() == [first, later]
