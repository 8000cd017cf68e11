"""Every cache on every family: a cell works, its counted work equal to what it reports, or refuses saying why.

The README's table is this test's result; `WANLAB_WRITE_TABLE=1 pytest tests/test_cache_families.py` writes it there.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import wanlab
from tests.test_shrink import given
from tests.tiny import tiny_flux
from wanlab import caches, catalog
from wanlab.errors import WanlabError
from wanlab.models import shrink
from wanlab.registry import CACHES
from wanlab.sites import StepContext

README = Path(__file__).parent.parent / "README.md"
STEPS = 10
SPEC = {"num_steps": STEPS, "num_frames": 5, "height": 48, "width": 64, "prompt": "a red circle"}
PHANTOM = catalog.find("phantom_1_3b").with_(family="phantom", missing="")
FAMILIES: dict[str, Any] = {
    "Wan 2.1 text": "wan_t2v_1_3b",
    "Wan 2.1 image": "wan_i2v_480p_14b",
    "Wan 2.2 A14B": "wan22_t2v_a14b",
    "Wan 2.2 5B": "wan22_ti2v_5b",
    "VACE": "vace_14b",
    "Phantom": PHANTOM,
    "SkyReels": "skyreels_i2v_14b",
    "SkyReels DF": "skyreels_df_1_3b",
    "Animate": "wan_animate_14b",
    "Flux": None,
}
RATIOS = [1.0 + 0.004 * (-1) ** i for i in range(2 * (STEPS - 1))]
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {"mask": [i % 2 == 0 for i in range(STEPS)]},
    "magcache": {"mag_ratios": RATIOS, "threshold": 0.1, "max_skip": 2, "retention": 0.2},
    "teacache": {"coefficients": [0.0, 0.0, 0.0, 1.0, 0.0], "threshold": 0.3},
    "easycache": {"threshold": 5.0, "warmup_steps": 2},
    "first_block": {"threshold": 0.9},
    "dbcache": {"threshold": 0.9, "warmup_steps": 2, "num_first": 1, "num_last": 1},
    "adacache": {},
    "seacache": {"threshold": 0.9},
    "taylorseer": {"interval": 3},
    "pab": {"self_range": 2, "cross_range": 3, "timesteps": [0, 1000]},
}


@dataclass
class Cell:
    """What a method did on a family."""

    words: str
    report: dict[str, Any] = field(default_factory=dict)
    counted: Counter[tuple[str, int]] = field(default_factory=Counter)


class Bench:
    """A tiny model of a family, its inputs, and its linear calls by branch and step."""

    def __init__(self, name: str, folder: Path) -> None:
        what = FAMILIES[name]
        definition = tiny_flux(folder)[1] if what is None else shrink(what, folder)
        self.model = wanlab.load(definition, device="cpu")
        media = {} if what is None else given(self.model)
        size = {} if what is None else SPEC
        self.settings = {"num_steps": STEPS, "prompt": "a red circle", **size, **_short(media)}
        spec = self.model.spec(**self.settings)
        self.text = wanlab.encode_text(self.model, spec)
        self.conditions = wanlab.encode_conditions(self.model, spec)

    def run(self, **changes: Any) -> tuple[Tensor, dict[str, Any], Counter[tuple[str, int]]]:
        """Latents, what ran, and linear calls inside blocks by (branch, step)."""
        spec = self.model.spec(**self.settings, **changes)
        with self._counting() as counted:
            latents, ran = wanlab.stages.denoise_recorded(self.model, spec, self.text, self.conditions)
        return latents, ran, counted

    @contextmanager
    def _counting(self) -> Iterator[Counter[tuple[str, int]]]:
        counted: Counter[tuple[str, int]] = Counter()
        now: list[StepContext] = []

        def clock(ctx: StepContext) -> None:
            now[:] = [ctx]

        def count(*_: Any) -> None:
            counted[now[0].branch, now[0].step] += 1

        stacks = self.model.stacks.values()
        modules = [site.module for stack in stacks for entry in stack for site in entry.linears.values()]
        hooks = [module.register_forward_hook(count) for module in modules]
        handle = self.model.on_begin(clock)
        try:
            yield counted
        finally:
            handle.remove()
            for hook in hooks:
                hook.remove()


def _short(media: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:5] if hasattr(value, "shape") else value for name, value in media.items()}


def table(cells: dict[str, dict[str, str]]) -> str:
    """Markdown: a row a method, a column a family."""
    lines = ["| cache | " + " | ".join(FAMILIES) + " |", "|---" * (len(FAMILIES) + 1) + "|"]
    lines += [f"| `{method}` | " + " | ".join(row[name] for name in FAMILIES) + " |" for method, row in cells.items()]
    return "\n".join(lines)
