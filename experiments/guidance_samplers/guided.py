"""Prompts and rules of guidance of run.ipynb."""

from __future__ import annotations

from typing import Any

import torch

import wanlab
from wanlab.errors import WanlabError
from wanlab.shapes.captions import captions, sample_scenes

ENDS = (0.25, 0.5, 0.75)
"""Where `cfg_interval` ends, in parts of the steps."""
OPTIONS = {"slg": {"layers": (4,)}}
"""wan_tiny has 8 blocks; the default layer of `slg` is the tenth."""


def noises(num: int, seed: int) -> Any:
    """Prompts that wan_tiny was not trained on, each with its own noise."""
    prompts = captions(sample_scenes(num, torch.Generator().manual_seed(5), "held_out", replace=False))
    return wanlab.zip_(prompt=prompts, seed=list(range(seed, seed + num)))


def together(guidance: str, until: float) -> list[dict[str, Any]]:
    """The rule of a point, then the others of its scale that take some of the same steps."""
    if guidance != "cfg_interval":
        if until != 1:
            raise WanlabError(f"{guidance} does not end early", remedy="Leave guided_until at 1")
        return [{"method": guidance, **OPTIONS.get(guidance, {})}]
    others = [{"method": guidance, "stop": end} for end in ENDS if end != until]
    return [{"method": guidance, "stop": until}, *others, {"method": "cfg"}]
