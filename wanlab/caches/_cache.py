"""What all caches share: memory of each expert and branch, shares of work, attaching, siblings, state, the report."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from wanlab.caches._memory import TOGETHER, CacheReport, Key, Memory, from_bytes, pack, path_of, to_bytes, unpack
from wanlab.caches._run import Run
from wanlab.errors import WanlabError, shorten
from wanlab.sites import Entry, Handle, Stack, StepContext, Streams
from wanlab.spec import Part

V = TypeVar("V")


class Cache(abc.ABC):
    """A method that reuses a step's work in later ones. State belongs to a run: an earlier or equal step forgets it.

    A method that runs all blocks or none overrides `decide` and, to look at tensors, `signal`. One that splits the
    stack overrides `around_stack`, one that skips embedding and head too `around_forward` with `level = "forward"`,
    one that keeps single modules' outputs `around_part`, and `around_forward` around all of them, with
    `level = "part"`. All work through `memory(ctx)` and tell `did(ctx, share)` what they did. The first forward of an
    expert, branch and window has nothing to reuse.

    A class that has `judged` lets runs share steps: in forwards that are `forced` it passes on what its `call` gives,
    to which other caches may belong, and runs that differ in those options alone stay together until `agree` tells
    that a decision differs.
    """

    judged: ClassVar[frozenset[str]] = frozenset()
    """Options that act through `agree` alone, none perhaps. A class says so of itself: it is not inherited."""
    method: str = ""
    level: str = "stack"
    """Which sites it is attached to: "stack", "forward", or "part", which is around the forward too."""

    class Options(Part):
        """No options."""

    def __init__(self, options: Part | None = None) -> None:
        self.options: Any = self.Options() if options is None else options
        self.method = self.method or type(self).__name__.lower()
        self._ctx: StepContext | None = None
        self._memories: dict[Key, Memory] = {}
        self._stacks: Mapping[str, Stack] = {}
        self._paused = False
        self._peak = 0
        self.siblings: dict[Any, Any] = {}
        """Options of other runs that were like this one so far, by names of the caller's."""
        self.parted: set[Any] = set()
        """Names of siblings that decided otherwise since; they are no siblings any more."""

    # What a method is

    @classmethod
    def unfit(cls, model: Any) -> str:
        """Why a model's networks cannot follow this method, as a sentence; empty where they can."""
        return ""

    def check(self, run: Run) -> None:  # noqa: B027 - an optional hook
        """Raise WanlabError if the options do not fit the run."""

    def prepare(self, run: Run) -> Cache:
        """What executes the method in this run: itself, or a `Fixed` that it lowers to."""
        return self

    def forced(self, run: Run) -> Mapping[str, list[bool]] | None:
        """Forwards that compute whatever the method finds, by the clock's branch: one entry a step; None: not known."""
        return None

    def schedule(self, run: Run) -> list[float] | None:
        """The share of the blocks' work in each of `run.forwards`, where that is known before; None where it is not."""
        return None

    @abc.abstractmethod
    def predict(self, run: Run) -> int:
        """Bytes of state that a run of one expert will hold at its end, from the model's configuration alone."""

    def predict_most(self, run: Run) -> int:
        """Bytes of state that a run will hold at the most: an expert's are given back when the next one begins."""
        return max(self.predict(run.only(expert)) for expert in dict.fromkeys(run.experts))

    def decide(self, ctx: StepContext) -> bool:
        """Whether to run the blocks at this forward."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither decide nor the level it works at")

    def signal(self, streams: Streams, ctx: StepContext) -> None:  # noqa: B027 - an optional hook
        """Look at the streams that enter the stack, before `decide`; by default nothing is looked at."""

    def around_stack(self, call: Callable[..., Streams], streams: Streams, ctx: StepContext) -> Streams:
        """The streams after the stack; `call(streams, start=..., stop=...)` runs a part of it."""
        memory = self.memory(ctx)
        self.signal(streams, ctx)
        if not self.decide(ctx) and memory.tensors:
            self.did(ctx, 0.0)
            return streams.plus({name: memory.tensors[name] for name in self.stack(ctx).outputs})
        after = call(streams)
        self.keep_residual(memory, streams, after, ctx)
        self.did(ctx, 1.0)
        return after

    def keep_residual(self, memory: Memory, before: Streams, after: Streams, ctx: StepContext) -> None:
        """Remember what the stack added."""
        outputs = self.stack(ctx).outputs
        memory.tensors |= {name: after.tokens[name] - before.tokens[name] for name in outputs}

    def around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Any) -> Tensor:
        """The velocity of `latents` (B, C, T, H, W)."""
        return call(latents, ctx, branch)

    def around_part(self, call: Callable[..., Any], entry: Entry, part: str, args: tuple[Any, ...], kw: Any) -> Any:
        """What a module inside a block gives; `self.ctx` is the forward that it is part of."""
        return call(*args, **kw)

    def parts(self, entry: Entry) -> tuple[str, ...]:
        """Of a block, the parts that `around_part` is called for."""
        return tuple(entry.parts)

    def cuts(self, stack: Stack) -> tuple[int, ...]:
        """Where `around_stack` cuts a stack; nowhere by default."""
        return ()

    # What a method uses

    def agree(self, rule: Callable[[Any], V]) -> V:
        """`rule(options)` under the cache's own options; siblings that it gives another value are noted as parted.

        The value is all that the options change at this forward, whether it is recorded or done.
        """
        value = rule(self.options)
        apart = [name for name, options in self.siblings.items() if rule(options) != value]
        for name in apart:
            del self.siblings[name]
        self.parted.update(apart)
        return value

    @property
    def own_judged(self) -> frozenset[str]:
        """`judged`, as far as the class says it of itself."""
        found: frozenset[str] = vars(type(self)).get("judged", frozenset())
        return found

    @property
    def ctx(self) -> StepContext:
        """The forward that is running."""
        assert self._ctx is not None, "the network ran before model.begin"
        return self._ctx

    def memory(self, ctx: StepContext, branch: str | None = None) -> Memory:
        """The memory of the forward's expert, branch (or another one) and window."""
        key = (ctx.expert, ctx.branch if branch is None else branch, -1 if ctx.window is None else ctx.window)
        return self._memories.setdefault(key, Memory())

    def together(self, ctx: StepContext) -> Memory:
        """The memory that all branches of the forward's expert and window share."""
        return self.memory(ctx, TOGETHER)

    def stack(self, ctx: StepContext) -> Stack:
        """The stack of the forward's expert."""
        return self._stacks[ctx.expert]

    def did(self, ctx: StepContext, share: float, signal: float | None = None) -> None:
        """Note the share of the blocks' work that this forward did, and what was held against the threshold."""
        memory = self.memory(ctx)
        memory.shares[ctx.step] = share
        if signal is not None:
            memory.signals[ctx.step] = signal

    @property
    def joins(self) -> bool:
        """Whether the class says of itself what lets others share its steps."""
        return "judged" in vars(type(self))

    # Attaching

    def attach(self, model: Any) -> Handle:
        """Work on all experts of a model until the handle is removed. Raises WanlabError where another cache does."""
        return attach_all([self], model, self._around_stack)

    def bind(self, model: Any) -> None:
        """Take the model that the cache will be attached to."""
        self._stacks = model.stacks

    def wrap(self, stack: Stack, handles: list[Handle]) -> None:
        """Attach to a stack's forward and, at level "part", to the modules in it."""
        assert self.level in ("stack", "forward", "part"), self.level
        assert stack.forward is not None, "a model's stack"
        handles.append(stack.forward.wrap(self._around_forward, "cache"))
        for entry in stack if self.level == "part" else ():
            handles += [entry.parts[name].wrap(self._part(entry, name), "cache") for name in self.parts(entry)]

    def begin(self, ctx: StepContext) -> None:
        """The clock: a run that starts anew forgets the one before."""
        if self._paused:
            return
        last = self._ctx
        again = ctx.step in self.memory(ctx).shares or (last is not None and _same_forward(last, ctx))
        if again or (last is not None and ctx.step < last.step):
            self.reset()
        self._leave_experts(ctx.expert)
        self._ctx = ctx

    def _leave_experts(self, present: str) -> None:
        """Noise only falls, so an expert that was left does not come back: its tensors are given back."""
        for memory in [m for key, m in self._memories.items() if key[0] != present and m.num_bytes]:
            self._forget(memory)

    def _forget(self, memory: Memory) -> None:
        self._peak = max(self._peak, self._held)
        memory.forget()

    @property
    def _held(self) -> int:
        return sum(memory.num_bytes for memory in self._memories.values())

    def _around_stack(
        self, call: Callable[..., Streams], streams: Streams, start: int = 0, stop: int | None = None
    ) -> Streams:
        if self._paused or start != 0 or stop is not None:  # a part of the stack has no residual of its own
            return call(streams, start=start, stop=stop)
        return self.around_stack(call, streams, self.ctx)

    def _around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Any) -> Tensor:
        if self._paused:
            return call(latents, ctx, branch)
        if self.level != "part":  # which keeps each block's outputs apart
            self._note_skips(self.memory(ctx), branch.skip_blocks)
        return self.around_forward(call, latents, ctx, branch)

    def _note_skips(self, memory: Memory, skips: tuple[int, ...]) -> None:
        """What other blocks gave is not reused: a branch that leaves out others than before starts anew."""
        if memory.skips not in (None, skips):
            self._forget(memory)
        memory.skips = skips

    def _part(self, entry: Entry, name: str) -> Callable[..., Any]:
        def around(call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
            return call(*args, **kw) if self._paused else self.around_part(call, entry, name, args, kw)

        return around

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, forwards compute everything and leave no trace in the state: what the network would have given."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    # State and report

    def reset(self) -> None:
        """Forget everything."""
        self._memories.clear()
        self._peak = 0

    def computed(self, step: int) -> int:
        """Forwards of a step in which everything was computed, those of one batch one by one."""
        full = [branch for (_, branch, _), m in self._memories.items() if m.shares.get(step, 0.0) >= 1]
        return sum(branch.count("+") + 1 for branch in full)

    def report(self) -> CacheReport:
        """Hit map, counts, bytes of state, ideal speed-up."""
        memories = {path_of(key): m for key, m in self._memories.items() if m.shares}
        shares = [share for m in memories.values() for share in m.shares.values()]
        computed, done = sum(share >= 1 for share in shares), math.fsum(shares)
        return CacheReport(
            method=self.method,
            hit_map={key: {step: share >= 1 for step, share in m.shares.items()} for key, m in memories.items()},
            shares={key: dict(m.shares) for key, m in memories.items()},
            signals={key: dict(m.signals) for key, m in memories.items() if m.signals},
            computed=computed,
            reused=len(shares) - computed,
            state_bytes=max(self._peak, self._held),
            ideal_speedup=len(shares) / done if done else 1.0,
        )

    def state(self) -> dict[str, Tensor]:
        """All state as named tensors, which safetensors can store: tensors, numbers, rows (step, share or signal).

        "made_by" says, as JSON in bytes, which method it is of, and the options that it depends on.
        """
        return {"made_by": to_bytes(self.made_by), "peak": torch.tensor(self._peak), **pack(self._memories)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state that `state` gave; the next forward goes on from there, at whatever step.

        Raises WanlabError for a state of another method, or of other options than those that only decide.
        """
        found = from_bytes(tensors["made_by"]) if "made_by" in tensors else None
        if found != self.made_by:
            raise WanlabError(
                f"This state was left by {_words(found)} and cannot be read by {_words(self.made_by)}",
                remedy="Go on with the cache it was made with, or begin with an empty one: replace(state, cache={})",
            )
        self.restore(unpack(tensors), int(tensors["peak"]))

    @property
    def made_by(self) -> list[Any]:
        """Of what executes: its class and the options that the state depends on, as JSON data."""
        options = self.options.model_dump(mode="json")
        return [type(self).__name__, {name: value for name, value in options.items() if name not in self.own_judged}]

    @property
    def peak(self) -> int:
        """Bytes that were held at the most before tensors were given back."""
        return self._peak

    def snapshot(self) -> dict[Key, Memory]:
        """The state of this moment, for `restore`: it shares the tensors, which nothing changes."""
        return {key: memory.copy() for key, memory in self._memories.items()}

    def restore(self, memories: dict[Key, Memory], peak: int) -> None:
        """Take a snapshot and the `peak` that went with it; the next forward goes on from there."""
        self._memories, self._peak, self._ctx = {k: memory.copy() for k, memory in memories.items()}, peak, None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options!r})"


def _same_forward(a: StepContext, b: StepContext) -> bool:
    """Whether a forward began twice: the first time it was stopped before it could say what it did."""
    return (a.step, a.expert, a.branch, a.window) == (b.step, b.expert, b.branch, b.window)


def _words(made_by: list[Any] | None) -> str:
    """A cache's class and its options."""
    if made_by is None:
        return "an unknown cache"
    options = ", ".join(f"{name}={shorten(value, 30)}" for name, value in made_by[1].items())
    return f"{made_by[0]}({options})"


def attach_all(members: Sequence[Cache], model: Any, around_stack: Callable[..., Streams]) -> Handle:
    """Attach caches that work at the same time; those of level "stack" through `around_stack`.

    Raises WanlabError where the model has a cache already.
    """
    handles: list[Handle] = []
    handle = Handle.join(handles)
    try:
        for stack in model.stacks.values():
            _check_alone(stack, members[0].method)
        for member in members:
            member.bind(model)
            handles.append(model.on_begin(member.begin))
        for stack in model.stacks.values():
            for member in members:
                member.wrap(stack, handles)
            if any(member.level == "stack" for member in members):
                handles.append(stack.site.wrap(around_stack, "cache"))
    except BaseException:
        handle.remove()
        raise
    return handle


def _check_alone(stack: Stack, method: str) -> None:
    sites = [stack.site, *(part for entry in stack for part in entry.parts.values())]
    sites += [stack.forward] if stack.forward is not None else []
    if any("cache" in site.layers for site in sites):
        raise WanlabError(
            f"A cache is attached to this model already, and {method} would be a second one on {stack.name}",
            remedy="Remove the first one: leave its `with` block, or call its handle's remove()",
        )
