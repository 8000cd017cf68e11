"""VBench, which wanlab does not run."""

from __future__ import annotations

from typing import Any, NoReturn

from wanlab.errors import WanlabError


def vbench(*arguments: Any, **options: Any) -> NoReturn:
    """Always raises WanlabError that says how to get VBench's scores: no test here covers its evaluator yet."""
    raise WanlabError(
        "wanlab does not run VBench yet",
        remedy="Save clips with Result.save and run the vbench package on them, with VBENCH_CACHE_DIR naming the "
        "folder of its checkpoints and HF_HUB_OFFLINE=1, so that nothing is downloaded.",
    )
