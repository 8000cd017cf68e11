"""Model families, one file each, and `load`.

The names below load on first use: listing families needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.models._load import describe, load, skeleton
    from wanlab.models._offers import Offers
    from wanlab.models._parts import ModelPart
    from wanlab.models._shrink import shrink
    from wanlab.models.base import Media, Model

_HOME = {
    "describe": "_load",
    "load": "_load",
    "skeleton": "_load",
    "ModelPart": "_parts",
    "Offers": "_offers",
    "shrink": "_shrink",
    "Media": "base",
    "Model": "base",
}
__all__ = ["Media", "Model", "ModelPart", "Offers", "describe", "load", "shrink", "skeleton"]
__getattr__ = lazy(__name__, _HOME)
