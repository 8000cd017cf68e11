"""What all caches share: the residual of each expert and branch, the hit map, attaching, state that saves."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wanlab.sites import Handle, StepContext, Streams
from wanlab.spec import GenerationSpec, Part

Key = tuple[str, str, int]
"""(expert, branch, window): every such sequence of forwards has its own state; window is -1 where there is none."""


@dataclass(frozen=True)
class CacheReport:
    """What a cache did in a run."""

    hit_map: dict[str, dict[int, bool]]
    """"expert/branch/window" -> step -> whether the blocks ran."""
    computed: int
    """Forwards whose blocks ran."""
    reused: int
    state_bytes: int
    ideal_speedup: float
    """Forwards over computed forwards: what reuse that costs nothing would give."""


class Cache(abc.ABC):
    """Runs the block stack where `decide` says so and adds the last computed residual where not.

    A method overrides `decide`; one that looks at tensors overrides `signal` too, and reads what that left behind. The
    first forward of an expert, branch and window computes whatever was decided, since there is nothing to reuse yet;
    the hit map says so. State belongs to a run: going back to an earlier step forgets it.
    """

    class Options(Part):
        """No options."""

    def __init__(self, options: Part | None = None) -> None:
        self.options: Any = self.Options() if options is None else options
        self._ctx: StepContext | None = None
        self._residuals: dict[Key, dict[str, Tensor]] = {}
        self._hits: dict[Key, dict[int, bool]] = {}

    @abc.abstractmethod
    def decide(self, ctx: StepContext) -> bool:
        """Whether to run the blocks at this forward."""

    def signal(self, streams: Streams, ctx: StepContext) -> None:  # noqa: B027 - an optional hook
        """Look at the streams that enter the stack, before `decide`; by default nothing is looked at."""

    def check(self, spec: GenerationSpec, branches: Collection[str], num_steps: int) -> None:  # noqa: B027 - optional
        """Raise WanlabError if the options do not fit the spec's run: its guidance branches and the steps that run."""

    def attach(self, model: Any) -> Handle:
        """Work on all experts of a model until the handle is removed."""
        handles: list[Handle] = []
        handle = Handle.join(handles)
        try:
            handles.append(model.on_begin(self._begin))
            handles.extend(stack.site.wrap(self._around, "cache") for stack in model.stacks.values())
        except BaseException:
            handle.remove()
            raise
        return handle

    def _begin(self, ctx: StepContext) -> None:
        if self._ctx is not None and ctx.step < self._ctx.step:
            self.reset()
        self._ctx = ctx

    def _around(
        self, call: Callable[..., Streams], streams: Streams, start: int = 0, stop: int | None = None
    ) -> Streams:
        if start != 0 or stop is not None:  # a part of the stack has no residual of its own
            return call(streams, start=start, stop=stop)
        ctx = self._ctx
        assert ctx is not None, "the stack ran before model.begin"
        key = _key(ctx)
        self.signal(streams, ctx)
        compute = self.decide(ctx) or key not in self._residuals
        self._hits.setdefault(key, {})[ctx.step] = compute
        if not compute:
            return streams.plus(self._residuals[key])
        after = call(streams)
        self._residuals[key] = after.residual(streams)
        return after

    def reset(self) -> None:
        """Forget all residuals and hits."""
        self._residuals.clear()
        self._hits.clear()

    def report(self) -> CacheReport:
        """Hit map, counts, bytes of state now held, ideal speed-up."""
        hits = [hit for steps in self._hits.values() for hit in steps.values()]
        held = [t for residual in self._residuals.values() for t in residual.values()]
        computed = sum(hits)
        return CacheReport(
            hit_map={"/".join(map(str, key)): dict(steps) for key, steps in self._hits.items()},
            computed=computed,
            reused=len(hits) - computed,
            state_bytes=sum(t.numel() * t.element_size() for t in held),
            ideal_speedup=len(hits) / computed if computed else 1.0,
        )

    def state(self) -> dict[str, Tensor]:
        """All state as named tensors, which safetensors can store: residuals, and hits as rows (step, computed)."""
        tensors = {
            f"residual/{'/'.join(map(str, key))}/{name}": value
            for key, residual in self._residuals.items()
            for name, value in residual.items()
        }
        for key, steps in self._hits.items():
            tensors[f"hits/{'/'.join(map(str, key))}"] = torch.tensor(list(steps.items()), dtype=torch.int64)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state that `state` gave; the next forward goes on from there, at whatever step."""
        self.reset()
        self._ctx = None
        for path, value in tensors.items():
            what, expert, branch, window, *rest = path.split("/")
            key = (expert, branch, int(window))
            if what == "hits":
                self._hits[key] = {int(step): bool(hit) for step, hit in value.tolist()}
            else:
                self._residuals.setdefault(key, {})["/".join(rest)] = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options!r})"


def _key(ctx: StepContext) -> Key:
    return ctx.expert, ctx.branch, -1 if ctx.window is None else ctx.window
