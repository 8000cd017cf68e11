"""Recorders: what they measure at each call, and how they are put on a model and taken off again."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.probe._attention import LOOKS, Look
from wanlab.probe._keep import KEPT, Keep, Store
from wanlab.probe._measure import CHEAP, Measure, Norms, Previous, token_norms
from wanlab.probe._names import STACK, Place, Where, select
from wanlab.probe._trace import Pending, Series, Trace
from wanlab.probe._words import positions
from wanlab.sites import AttentionSite, Handle, StepContext, Streams
from wanlab.watch import Interrupts

CHUNK_BYTES = 256 << 20
MAIN = ("video", "image")
"""The token streams that a network denoises."""
ATTENDED = "attention"
"""What the result of an attention is called as a stream; further calls in one forward get a number."""


@contextmanager
def record(
    model: Any,
    *names: str,
    inside: Literal["cache"] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    prompt: str | None = None,
    keep: Keep | None = None,
) -> Iterator[Trace]:
    """Record what the names say (`model.sites()` lists them) at each forward while inside; the outputs stay bit-equal.

    Of tokens (B, L, D), with norms over channels and means over tokens and samples, for each guidance branch:
    `in`, `out`: mean norm of a token, and root mean square; `residual`: the same norm of out - in; `change`: relative
    L1 and L2 change since the branch's last recorded call; `cosine` to it; `ratio`: mean of ||r_t|| / ||r_t-1|| of the
    residuals r (MagCache's). These wait for nothing: numbers leave the device together, when they are first read.
    `change` and `cosine` hold the last output of each site and branch on the device (`trace.state_bytes`: for Wan 1.3B
    at 480x832x81 in bfloat16 100 MB a block and branch, 6.0 GB for all 30 with guidance); `ratio` holds one float32 a
    token.

    Of attentions: `entropy` a head, in nats; `mass` on keys |dT| frames away (self, joint) or on each key (cross);
    `text_mass` of joint attention; `text_map`. They compute the scores again, in chunks of at most `chunk_bytes`: half
    the attention's FLOPs, but in float32 and through memory, so many times its seconds. An attention that is looked at
    keeps its block from running compiled.

    `keep` says how much of `tensor` and `text_map` is kept; with a folder the trace is saved there. `prompt` names the
    text tokens, so that maps can be asked for by words. inside="cache" records only calls of blocks and stack that a
    cache does not skip; a call of a part of the stack is not recorded. Raises WanlabError for a name that matches
    nothing, for what cannot fit `keep`, and while another thread generates.
    """
    keep = keep or Keep()
    chosen = select(model, names)
    if inside not in (None, "cache"):
        raise WanlabError(f"inside = {inside!r} is no place for a recorder", choices=[None, "cache"])
    trace = Trace.of(model, [(place.where, wanted) for place, wanted in chosen], prompt)
    recorder = Recorder(trace, Store(keep), chunk_bytes, positions(keep.tokens, trace.pieces))
    handles: list[Handle] = []
    handle = Handle.join(handles)
    with Interrupts() as interrupts:
        try:
            recorder.attach(model, chosen, inside, handles)
            with interrupts.let_through():
                yield trace
        finally:
            handle.remove()
            recorder.finish()
            if keep.folder is not None and trace.data:
                trace.save(Path(keep.folder))


class Recorder:
    """Measures at its sites and adds to one trace; what it holds of earlier steps belongs to a run."""

    def __init__(self, trace: Trace, store: Store, chunk_bytes: int, tokens: tuple[int, ...]) -> None:
        self.trace = trace
        self.store = store
        self.chunk_bytes = chunk_bytes
        self.tokens = tokens
        trace.tokens = tokens
        self._ctx: StepContext | None = None
        self._run = 0
        self._forwards: set[tuple[Any, ...]] = set()
        self._previous: dict[tuple[Where, str, str], Previous] = {}
        self._held = 0
        self._norms = Norms()
        self._streams: dict[Where, tuple[str, ...]] = {}
        self._calls: Counter[Where] = Counter()
        self._num_kept: Counter[tuple[str, ...]] = Counter()

    def attach(
        self, model: Any, chosen: list[tuple[Place, list[str]]], inside: str | None, handles: list[Handle]
    ) -> None:
        """Record at the chosen places until what is added to `handles` is removed."""
        handles.append(model.on_begin(self._begin))
        for place, wanted in chosen:
            self._num_kept.update(_kind(place.where, q) for q in wanted if q in KEPT)
            if place.where.part:
                handles.append(place.site.wrap(_Attended(self, place.where, set(wanted)), "recorder"))
            else:
                fn = functools.partial(self._block, place.where, set(wanted))
                handles.append(place.site.wrap(fn, "recorder", inside))

    def finish(self) -> None:
        """Let go of what the next step would have needed, and bring the numbers to the CPU."""
        self._forget()
        self._norms.forget()
        if self.store.stopped:
            self.trace.stopped = self.store.stopped
            warnings.warn(self.store.stopped, stacklevel=4)
        self.trace.flush()

    # The clock

    def _begin(self, ctx: StepContext) -> None:
        """A new run starts where an earlier step, or the same forward, comes again."""
        last = self._ctx
        forward = (ctx.expert, ctx.branch, ctx.step, ctx.window)
        is_earlier = last is not None and last.window == ctx.window and ctx.step < last.step
        if is_earlier or forward in self._forwards:
            self._run += 1
            self._forwards.clear()
            self._forget()
        elif last is None or (last.expert, last.window) != (ctx.expert, ctx.window):
            self._forget()
        self.trace.steps.add(ctx.step)
        self._forwards.add(forward)
        self._ctx = ctx
        self._calls.clear()
        self._norms.forget()

    def _forget(self) -> None:
        """What the next forward is not to be compared with."""
        self._previous.clear()
        self._held = 0

    @property
    def ctx(self) -> StepContext:
        """The forward that runs now."""
        assert self._ctx is not None, "a forward before model.begin"
        return self._ctx

    # What the sites call

    def _block(
        self, where: Where, wanted: set[str], call: Callable[..., Streams], streams: Streams, **span: int | None
    ) -> Streams:
        after = call(streams, **span)
        if where.role == STACK and (span.get("start", 0) != 0 or span.get("stop") is not None):
            return after
        for stream in self._changed(where, streams, after):
            self.note(where, wanted, stream, streams.tokens[stream], after.tokens[stream])
        return after

    def _changed(self, where: Where, before: Streams, after: Streams) -> tuple[str, ...]:
        """The streams that a call changed; for one that passed them on, those that it changed before."""
        changed = tuple(name for name, x in after.tokens.items() if x is not before.tokens.get(name))
        if changed:
            self._streams[where] = changed
        return self._streams.get(where) or tuple(name for name in MAIN if name in after.tokens)

    def looked(self, where: Where, wanted: set[str], q: Tensor, k: Tensor, about: tuple[Any, ...]) -> str:
        """Note what an attention looks at; returns what its result is called as a stream. `about`: site and mask."""
        self._calls[where] += 1
        number = self._calls[where]
        stream = ATTENDED if number == 1 else f"{ATTENDED}_{number}"
        looks = {quantity for quantity in wanted & set(LOOKS) if quantity not in KEPT or self._keeps}
        if looks:
            num_branches = len(self.ctx.branch.split("+"))
            found = Look(looks, self.chunk_bytes, self.tokens)(q, k, *about, num_branches)
            for quantity, values in found.items():
                if quantity in KEPT:
                    self._keep(where, quantity, stream, values.unbind())
                else:
                    self._add(where, stream, values, functools.partial(_only, quantity))
        return stream

    # Taking notes

    def note(self, where: Where, wanted: set[str], stream: str, before: Tensor | None, after: Tensor) -> None:
        """Note what is wanted of tokens (B, L, ...) that a site made of others."""
        ctx = self.ctx
        branches = len(ctx.branch.split("+"))
        if wanted & set(CHEAP):
            key = (where, stream, ctx.branch)
            previous = self._previous.get(key)
            is_last = ctx.step + 1 == ctx.num_steps  # then nothing is held while the latents are decoded
            seen = token_norms if is_last else functools.partial(self._norms, stream)
            measure = Measure(wanted, branches)
            sums, left = measure(before, after, previous, seen)
            self._previous[key] = left = Previous() if is_last else left
            self._held += left.num_bytes - (previous.num_bytes if previous else 0)
            self.trace.state_bytes = max(self.trace.state_bytes, self._held)
            if sums:
                self._add(where, stream, torch.stack(list(sums.values())), measure.finish(sums, after))
        if "tensor" in wanted:
            self._keep(where, "tensor", stream, after.unflatten(0, (branches, -1)).unbind())

    def _add(self, where: Where, stream: str, numbers: Tensor, finish: Callable[..., dict[str, np.ndarray]]) -> None:
        series = Series(where, "", stream, window=self.ctx.window, run=self._run)
        self.trace.add(Pending(series, self.ctx.branch.split("+"), self.ctx.step, numbers, finish))

    def _series(self, where: Where, quantity: str, stream: str) -> list[Series]:
        """Where the values of this forward go, one entry for each guidance branch in it."""
        first = Series(where, quantity, stream, window=self.ctx.window, run=self._run)
        return [replace(first, branch=branch) for branch in self.ctx.branch.split("+")]

    @property
    def _keeps(self) -> bool:
        """Whether anything of this forward may be kept."""
        return not self.store.stopped and any(
            self.store.keep.wants(self.ctx.step, branch) for branch in self.ctx.branch.split("+")
        )

    def _keep(self, where: Where, quantity: str, stream: str, values: tuple[Tensor, ...]) -> None:
        ctx, keep = self.ctx, self.store.keep
        for series, value in zip(self._series(where, quantity, stream), values, strict=True):
            if not keep.wants(ctx.step, series.branch):
                continue
            kind = _kind(where, quantity)
            times = self._num_kept[kind] * keep.num_left(ctx.step, ctx.num_steps)
            self.store.expect(kind, value.numel() * value.element_size(), times)
            kept = self.store.put(f"{series.name} at step {ctx.step}, {series.branch}", value)
            if kept is not None:
                self.trace.put(series, ctx.step, kept)


@dataclass(frozen=True)
class _Attended:
    """A recorder's place around an attention."""

    recorder: Recorder
    where: Where
    wanted: set[str]

    def __call__(
        self,
        call: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        site: AttentionSite,
        mask: Tensor | None = None,
    ) -> Tensor:
        stream = self.recorder.looked(self.where, self.wanted, q, k, (site, mask))  # before: some kernels change k
        out = call(q, k, v, site, mask)
        self.recorder.note(self.where, self.wanted, stream, None, out)
        return out


def _only(quantity: str, values: np.ndarray) -> dict[str, np.ndarray]:
    return {quantity: values}


def _kind(where: Where, quantity: str) -> tuple[str, ...]:
    """What has tensors of one size: an expert's blocks, or its attentions of one role."""
    return where.expert, where.role, quantity
