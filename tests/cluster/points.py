"""What the tests of clusters look at: the processes that are there, and a spec of a tiny model."""

from __future__ import annotations

from typing import Any

import psutil

from wanlab.models import Model


def children() -> set[int]:
    """Processes below this one, but the helper of `multiprocessing` that stays."""
    found = psutil.Process().children(recursive=True)
    return {p.pid for p in found if p.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in str(p.cmdline())}


def spec_of(model: Model, **changes: Any) -> Any:
    size = {"width": 32, "height": 32, "num_frames": 5, "max_text_tokens": 8, "num_steps": 4}
    return model.spec(prompt="a cat", **{**size, **changes})
