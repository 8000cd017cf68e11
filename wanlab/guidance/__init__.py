"""Guidance as data and a function: a rule names the branches to run and combines their predictions.

One file a rule (`wanlab.registry.GUIDANCE`). The names below load on first use: listing rules needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.guidance._predict import predict
    from wanlab.guidance._rule import Guidance, Rule

_HOME = {"Guidance": "_rule", "Rule": "_rule", "predict": "_predict"}
__all__ = ["Guidance", "Rule", "predict"]
__getattr__ = lazy(__name__, _HOME)
