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
    from wanlab.caches._attach import attach, check, predict_bytes, prepared
    from wanlab.caches._cache import Cache, CacheReport
    from wanlab.caches._run import Run

_HOME = {
    "attach": "_attach",
    "check": "_attach",
    "prepared": "_attach",
    "predict_bytes": "_attach",
    "Cache": "_cache",
    "CacheReport": "_cache",
    "Run": "_run",
}
__all__ = ["Cache", "CacheReport", "Run", "attach", "check", "predict_bytes", "prepared"]
__getattr__ = lazy(__name__, _HOME)
