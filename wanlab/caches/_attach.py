"""Attach the cache that a spec asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wanlab.caches._cache import Cache
from wanlab.errors import WanlabError
from wanlab.registry import CACHES, GUIDANCE
from wanlab.sites import NO_CONDITIONS, StepContext
from wanlab.spec import GenerationSpec


@contextmanager
def attach(model: Any, spec: GenerationSpec) -> Iterator[Cache | None]:
    """A fresh cache of the spec's method on all experts while inside; None for method "none".

    Raises WanlabError for options that do not fit the run, before anything runs.
    """
    cache = _checked(model, spec)
    if cache is None:
        yield None
        return
    with cache.attach(model):
        yield cache


def check(model: Any, spec: GenerationSpec) -> None:
    """Raise WanlabError if the spec's cache does not fit the run that it describes; loads no weights."""
    _checked(model, spec)


def _checked(model: Any, spec: GenerationSpec) -> Cache | None:
    if spec.cache.method == "none":
        return None
    cache: Cache = CACHES.get(spec.cache.method)(spec.cache.bind())
    num_steps = len(model.sigmas(spec)) - 1
    if model.frame_steps(spec) is not None:
        raise WanlabError(
            f"A cache counts the sampler's {num_steps} steps, and with ar_step = {spec.sampling.ar_step} each block of "
            f"frames is at a step of its own in the run's {len(model.experts(spec))}",
            remedy="Set cache to none, or ar_step to 0",
        )
    cache.check(spec, _branches(model, spec), num_steps)
    return cache


def _branches(model: Any, spec: GenerationSpec) -> set[str]:
    """Names of the guidance branches that some step of some expert runs, before any batching."""
    rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
    levels = model.sigmas(spec)[:-1].tolist()
    text: dict[str, dict[str, Any]] = {"prompt": {}, "negative_prompt": {}}
    clock = (
        StepContext(i, len(levels), sigma, expert=name)
        for i, sigma in enumerate(levels)
        for name in model.experts_present
    )
    return {branch.name for ctx in clock for branch in rule.branches(ctx, text, NO_CONDITIONS)}
