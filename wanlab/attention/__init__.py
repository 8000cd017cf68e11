"""Attention backends, one file each, and the context manager that puts one at chosen sites.

    with attention.using(model, "math", blocks=range(2, 28), kinds=["self"]):
        ...

A backend is `fn(q, k, v, site, mask=None)` with tensors (B, L, H, D). It serves every call or raises: no silent
fallback. The names below load on first use: listing backends needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.attention._nag import normalized_guidance
    from wanlab.attention._using import Used, available, resolve, using

_HOME = {
    "Used": "_using",
    "available": "_using",
    "normalized_guidance": "_nag",
    "resolve": "_using",
    "using": "_using",
}
__all__ = ["Used", "available", "normalized_guidance", "resolve", "using"]
__getattr__ = lazy(__name__, _HOME)
