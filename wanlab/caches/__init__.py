"""Caches: methods that reuse a step's work in later steps, one file each, and the context manager that attaches one.

    caches.check(model, spec)  # before anything runs
    with caches.attach(model, spec) as cache:
        ...
    cache.report()

The names below load on first use: listing caches needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.caches._attach import attach, check
    from wanlab.caches._cache import Cache, CacheReport

_HOME = {"attach": "_attach", "check": "_attach", "Cache": "_cache", "CacheReport": "_cache"}
__all__ = ["Cache", "CacheReport", "attach", "check"]
__getattr__ = lazy(__name__, _HOME)
