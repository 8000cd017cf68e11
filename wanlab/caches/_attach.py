"""Attach the cache that a spec asks for; its plan and its size before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wanlab.caches._cache import Cache
from wanlab.caches._run import Run
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.spec import GenerationSpec


@contextmanager
def attach(model: Any, spec: GenerationSpec) -> Iterator[Cache | None]:
    """A fresh cache of the spec's method on all experts while inside; None for method "none".

    Raises WanlabError for options that do not fit the run, before anything runs.
    """
    cache = prepared(model, spec)
    if cache is None:
        yield None
        return
    with cache.attach(model):
        yield cache


def check(model: Any, spec: GenerationSpec) -> None:
    """Raise WanlabError if the spec's cache does not fit the run that it describes; loads no weights."""
    checked(model, spec)


def prepared(model: Any, spec: GenerationSpec) -> Cache | None:
    """What will execute the spec's cache: of a static method, the `Fixed` that it lowers to. None for "none"."""
    found = checked(model, spec)
    if found is None:
        return None
    return lowered(*found)


def lowered(cache: Cache, run: Run) -> Cache:
    """What executes a cache that fits the run."""
    executor = cache.prepare(run)
    executor.method = cache.method
    return executor


def checked(model: Any, spec: GenerationSpec) -> tuple[Cache, Run] | None:
    """The spec's cache and the run that it fits, before `Cache.prepare`; None for "none". Raises as `check` does."""
    if spec.cache.method == "none":
        return None
    spec = spec.resolve(model)
    cls: type[Cache] = CACHES.get(spec.cache.method)
    cache = cls(spec.cache.bind())
    cache.method = spec.cache.method
    num_steps = len(model.sigmas(spec)) - 1
    if model.frame_steps(spec) is not None:
        raise WanlabError(
            f"A cache counts the sampler's {num_steps} steps, and with ar_step = {spec.sampling.ar_step} each block of "
            f"frames is at a step of its own in the run's {len(model.experts(spec))}",
            remedy="Set cache to none, or ar_step to 0",
        )
    if why := cls.unfit(model):
        raise WanlabError(f"The cache {cache.method} cannot serve {model.id}. {why}", remedy="Choose another cache")
    run = Run.of(model, spec)
    cache.check(run)
    return cache, run


def predict_bytes(model: Any, spec: GenerationSpec) -> int:
    """Bytes of state that the spec's cache will hold at the most in a run of one sample; 0 for "none"."""
    found = None if spec.cache.method == "none" else checked(model, spec)
    if found is None:
        return 0
    cache, run = found
    return cache.predict_most(run)
