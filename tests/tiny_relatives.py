"""Tiny random-weight pipelines of Wan's relatives (Phantom, SkyReels Diffusion Forcing, Animate), in diffusers layout.

Each builder writes the folder with diffusers' own `save_pretrained` and returns it with a definition that `wanlab.load`
takes, as `tests.tiny_video` does for Wan itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import ENCODER, WAN_VAE, definition_of
from tests.tiny_video import common_parts, make_dits, spec, vae_config

SIZE = {"width": 48, "height": 32}


def tiny_phantom(folder: Path | str) -> tuple[Path, dict[str, Any]]:
    """Phantom: a text-to-video pipeline."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, networks = make_dits(1)
        common = common_parts(WAN_VAE)
    diffusers.WanPipeline(**common, transformer=networks[0], transformer_2=None).save_pretrained(folder)
    return _definition("phantom", folder, dit, common)


def _definition(family: str, folder: Path | str, dit: dict[str, Any], common: dict[str, Any]) -> tuple[Path, Any]:
    architecture = {"transformer": dit, "vae": vae_config(common["vae"]), "text_encoder": ENCODER}
    return Path(folder), definition_of(f"{family}_random", family, Path(folder), architecture, spec(SIZE))
