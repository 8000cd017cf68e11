"""Guidance as data and a function: a rule names the branches to run and combines their predictions.

One file a rule (`wanlab.registry.GUIDANCE`). The names below load on first use: listing rules needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanlab.guidance._predict import predict
    from wanlab.guidance._rule import Guidance, Rule, needs_negative

_HOME = {"Guidance": "_rule", "Rule": "_rule", "needs_negative": "_rule", "predict": "_predict"}
__all__ = ["Guidance", "Rule", "needs_negative", "predict"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
