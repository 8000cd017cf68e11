"""Attach the cache that a spec asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wanlab.caches._cache import Cache
from wanlab.registry import CACHES
from wanlab.spec import GenerationSpec


@contextmanager
def attach(model: Any, spec: GenerationSpec) -> Iterator[Cache | None]:
    """A fresh cache of the spec's method on all experts while inside; None for method "none".

    Raises WanlabError for options that do not fit the run, before anything runs.
    """
    if spec.cache.method == "none":
        yield None
        return
    cache: Cache = CACHES.get(spec.cache.method)(spec.cache.bind())
    cache.check(spec.sampling.num_steps)
    with cache.attach(model):
        yield cache
