"""Model families, one file each, and `load`.

The names below load on first use: listing families needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanlab.models._load import load, skeleton
    from wanlab.models._parts import ModelPart
    from wanlab.models.base import Media, Model

_HOME = {"load": "_load", "skeleton": "_load", "ModelPart": "_parts", "Media": "base", "Model": "base"}
__all__ = ["Media", "Model", "ModelPart", "load", "skeleton"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
