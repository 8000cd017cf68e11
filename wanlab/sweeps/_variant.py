"""One run among several: what each of its steps depends on, and what of it is known before the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

from wanlab import caches, stages
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError
from wanlab.guidance import Rule
from wanlab.registry import GUIDANCE
from wanlab.sampling import Sampler, Staggered
from wanlab.sites import NO_CONDITIONS, StepContext
from wanlab.spec import GenerationSpec
from wanlab.sweeps._keys import group_key

ALL = "all"
"""The action of a cache that computes everything at a step, whatever it finds: all caches do the same there."""


class Variant:
    """A spec on a model, with a key of the caller's, as a sequence of signatures: one for each step.

    Two variants with equal group keys that shared the steps before one do the same in it if their signatures of it are
    equal; then one of them can take it for both. Where it is a cache's decision whether they do, their signatures are
    equal and the cache asks for both (`Cache.agree`).
    """

    def __init__(self, model: Any, key: str, spec: GenerationSpec) -> None:
        self.key, self.asked, self.spec = key, spec, spec.resolve(model)
        self.group = group_key(model, spec)
        self.sampler: Sampler = stages.make_sampler(model, self.spec)
        self.experts: list[str] = model.experts(self.spec)
        self.cache, self._run = _executor(model, spec)
        """What executes the cache; None for "none". The run is the cache's."""
        self.start = float(model.sigmas(self.spec)[0])  # float64: a video to start from is mixed by it

    @property
    def num_steps(self) -> int:
        return len(self.experts)

    @cached_property
    def rule(self) -> Rule:
        """The guidance, for what it says of itself; it runs nothing."""
        found: Rule = GUIDANCE.get(self.spec.guidance.method)(self.spec.guidance, self.spec.guidance.bind())
        return found

    @cached_property
    def needs_negative(self) -> bool:
        """Whether its guidance uses the negative prompt."""
        return self.rule.needs_negative(self.num_steps)

    @cached_property
    def memory_class(self) -> str:
        """Caches of one such class that took the same steps know the same: their class and what shapes the state."""
        if self.cache is None:
            return ""
        return json.dumps([type(self.cache).__module__, *self.cache.made_by], sort_keys=True)

    # Steps

    @cached_property
    def signatures(self) -> list[Hashable]:
        """What each step depends on, beyond the group key and the steps before."""
        return [self._signature(i) for i in range(self.num_steps)]

    @cached_property
    def apart(self) -> list[Hashable]:
        """The same where nobody asks for siblings: unless it is known beforehand, other options decide otherwise."""
        options = "" if self.cache is None or isinstance(self.cache, Fixed) else self.cache.options.model_dump_json()
        return [s if self._actions[i] == ALL else (s, options) for i, s in enumerate(self.signatures)]

    def path(self, stop: int) -> str:
        """A digest of the steps before `stop`: variants that have it in common were the same until there, but for
        decisions of their caches."""
        return hashlib.sha256(repr([self.group, *self.signatures[:stop]]).encode()).hexdigest()

    def _signature(self, i: int) -> Hashable:
        return self.experts[i], self._levels(i), self.rule.at(self._clocks[i]), self._actions[i]

    def _levels(self, i: int) -> Hashable:
        """What of the noise levels the sampler and the network see at a step."""
        sampler = self.sampler
        start = self.start if i == 0 else None
        if isinstance(sampler, Staggered):
            inner = sampler.inner
            return start, _numbers(inner.sigmas), _numbers(inner.timesteps), _numbers(sampler.plan[i])
        if vars(type(sampler)).get("reads_ahead", True):
            return start, i, _numbers(sampler.sigmas), _numbers(sampler.timesteps)
        return start, _numbers(sampler.sigmas[i : i + 2]), sampler.timesteps[i].item()

    @cached_property
    def _clocks(self) -> list[StepContext]:
        sampler, sigmas = self.sampler, tuple(self.sampler.sigmas.tolist())
        found = []
        for step, expert in enumerate(self.experts):
            sigma, timestep = sampler.clock(step, 1)
            found.append(StepContext(step, sampler.num_steps, sigma, sigmas, timestep, expert))
        return found

    @cached_property
    def forwards(self) -> list[list[str]]:
        """The names of each step's forwards, as the clock has them: "cond+uncond" where branches run as one."""
        nothing: Any = {"prompt": {}, "negative_prompt": {}}
        found = []
        for ctx in self._clocks:
            names = [branch.name for branch in self.rule.branches(ctx, nothing, NO_CONDITIONS)]
            is_joined = self.spec.guidance.batch_branches and len(names) > 1
            found.append(["+".join(names)] if is_joined else names)
        return found

    # The cache

    @cached_property
    def _actions(self) -> list[Hashable]:
        """What the cache does at each step, as far as it is known."""
        if self.cache is None:
            return [ALL] * self.num_steps
        if type(self.cache) is Fixed:
            return [ALL if all(c for _, c in row) else ("fixed", row) for row in self._plan]
        own = ("own", self.memory_class, _numbers(self.sampler.sigmas))
        assert self._run is not None, "a cache has a run"
        forced = (self.cache.forced(self._run) or {}) if self.cache.joins else {}
        names = self.forwards
        return [ALL if all(name in forced and forced[name][i] for name in row) else own for i, row in enumerate(names)]

    @cached_property
    def _plan(self) -> list[tuple[tuple[str, bool], ...]]:
        """Of a fixed cache, (forward, whether its blocks run) of each step."""
        assert isinstance(self.cache, Fixed), "others have no plan"
        assert self._run is not None, "a cache has a run"
        found = []
        for i, names in enumerate(self.forwards):
            clocks = [StepContext(i, self.num_steps, 0.0, expert=self.experts[i], branch=name) for name in names]
            row = [(c.branch, self.cache.decide(c) or (i, c.branch) in self._run.begins) for c in clocks]
            found.append(tuple(row))
        return found

    @cached_property
    def reused(self) -> frozenset[tuple[str, str, int]]:
        """Of a fixed cache, (expert, forward, step) where the forward's next one reuses what is known then."""
        found, last = set(), dict[tuple[str, str], int]()
        for i, row in enumerate(self._plan):
            for name, computes in row:
                key = (self.experts[i], name)
                if not computes and key in last:
                    found.add((*key, last[key]))
                last[key] = i
        return frozenset(found)

    @cached_property
    def computed(self) -> list[int]:
        """Forwards of each step whose blocks run, those of one batch one by one; where that is open, all."""
        weights = [[name.count("+") + 1 for name in row] for row in self.forwards]
        if self.cache is None:
            return [sum(row) for row in weights]
        if isinstance(self.cache, Fixed):
            return [
                sum(w for w, (_, c) in zip(row, plan, strict=True) if c)
                for row, plan in zip(weights, self._plan, strict=True)
            ]
        if self._schedule is None:
            return [sum(row) for row in weights]
        shares = iter(self._schedule)
        return [sum(w for w in row if next(shares) >= 1) for row in weights]

    @cached_property
    def _schedule(self) -> list[float] | None:
        assert self.cache is not None, "none was answered before"
        assert self._run is not None, "a cache has a run"
        return self.cache.schedule(self._run)

    @property
    def is_known(self) -> bool:
        """Whether `computed` is known before the run."""
        return self.cache is None or isinstance(self.cache, Fixed) or self._schedule is not None


def partition(variants: Sequence[Variant], step: int) -> list[list[Variant]]:
    """Those of variants that shared the steps before one which share it too, in order."""
    found: dict[Hashable, list[Variant]] = {}
    for variant in variants:
        found.setdefault(variant.signatures[step], []).append(variant)
    return list(found.values())


def _executor(model: Any, spec: GenerationSpec) -> tuple[caches.Cache | None, caches.Run | None]:
    """What executes the spec's cache, and its run; of a described model the cache itself where weights would say."""
    found = caches.checked(model, spec)
    if found is None:
        return None, None
    try:
        return caches.lowered(*found), found[1]
    except WanlabError:
        if not model.is_described:
            raise
        return found


def _numbers(tensor: Any) -> tuple[float, ...]:
    return tuple(tensor.flatten().tolist())
