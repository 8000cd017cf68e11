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
    from wanlab.caches._attach import attach, check, checked, lowered, predict_bytes, prepared
    from wanlab.caches._cache import Cache, CacheReport
    from wanlab.caches._cohort import Cohort
    from wanlab.caches._run import Run
    from wanlab.caches._static import ConstantsWarning, MadeFor

_HOME = {
    "attach": "_attach",
    "check": "_attach",
    "checked": "_attach",
    "lowered": "_attach",
    "Cohort": "_cohort",
    "prepared": "_attach",
    "predict_bytes": "_attach",
    "Cache": "_cache",
    "CacheReport": "_cache",
    "Run": "_run",
    "ConstantsWarning": "_static",
    "MadeFor": "_static",
}
__all__ = [
    "Cache",
    "CacheReport",
    "Cohort",
    "ConstantsWarning",
    "MadeFor",
    "Run",
    "attach",
    "check",
    "checked",
    "lowered",
    "predict_bytes",
    "prepared",
]
__getattr__ = lazy(__name__, _HOME)
