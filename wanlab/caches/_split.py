"""Caches that always run the first blocks, judge by what those add, and run or reuse the blocks after them."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from torch import Tensor

from wanlab.caches._cache import Memory
from wanlab.caches._dynamic import change
from wanlab.caches._run import Run
from wanlab.caches._work import Weighed, share_of
from wanlab.errors import WanlabError
from wanlab.sites import Branch, Stack, StepContext, Streams

FIRST = "first"
"""What the first blocks added to the stream that is read last, at the last computed step."""


class Split(Weighed):
    """The stack in three: `num_first` blocks, a middle whose residual is kept, `num_last` blocks.

    Each branch judges for itself, by all its samples; branches that run as one batch get one decision.
    """

    num_first = 1
    num_last = 0
    """Blocks of the network's own list; those beside it (hints, faces) go with them."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._branch: Branch | None = None

    @abc.abstractmethod
    def reuses(self, added: Tensor, ctx: StepContext) -> tuple[bool, float | None]:
        """Whether to reuse the middle, and what was held against the threshold; `added` as in `FIRST`.

        The caller asks only where there is something to reuse.
        """

    def check(self, run: Run) -> None:
        for expert in set(run.experts):
            config = run.model.config(expert)
            num_blocks = config["num_layers"] + (config.get("num_single_layers") or 0)
            if self.num_first + self.num_last >= num_blocks:
                raise WanlabError(
                    f"{self.method} always runs the first {self.num_first} and the last {self.num_last} blocks, and "
                    f"{expert} has {num_blocks}: nothing is left to reuse",
                    remedy=self._fewer(num_blocks),
                )

    def _fewer(self, num_blocks: int) -> str:
        """What to do where no block is left."""
        names = [n for n in ("num_first", "num_last") if n in type(self.options).model_fields]
        if not names or num_blocks < 2:
            return "Set cache to none"
        return f"Give {' and '.join(names)} that sum to less than {num_blocks}, or set cache to none"

    def around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        self._branch = branch
        return call(latents, ctx, branch)

    def around_stack(self, call: Callable[..., Streams], streams: Streams, ctx: StepContext) -> Streams:
        stack, memory = self.stack(ctx), self.memory(ctx)
        first, last = self.cuts(stack)
        head = call(streams, stop=first)
        name = stack.outputs[0]
        added = head.tokens[name] - streams.tokens[name]
        reuse, signal = self.reuses(added, ctx) if FIRST in memory.tensors else (False, None)
        if reuse:
            after = head.plus(self.recall(memory, ctx))
        else:
            after = call(head, start=first, stop=last)
            memory.tensors[FIRST] = added
            self.keep(memory, self._residual(stack, head, after), ctx)
        if last < len(stack):
            after = call(after, start=last)
        assert self._branch is not None, "the stack ran outside a forward"
        ran = {entry.name for i, entry in enumerate(stack) if not (reuse and first <= i < last)}
        self.did(ctx, share_of(self.works(ctx.expert, self._branch), ran), signal)
        return after

    def cuts(self, stack: Stack) -> tuple[int, int]:
        return stack.cut(self.num_first), stack.cut(stack.num_main - self.num_last)

    def _residual(self, stack: Stack, head: Streams, after: Streams) -> dict[str, Tensor]:
        """What the middle added: to all streams where blocks follow, else to those that the head reads."""
        names = stack.outputs if not self.num_last else after.tokens
        return {
            name: after.tokens[name] - head.tokens[name]
            for name in names
            if after.tokens[name] is not head.tokens[name]
        }

    def keep(self, memory: Memory, residual: dict[str, Tensor], ctx: StepContext) -> None:
        """Remember the middle's residual."""
        memory.tensors |= {f"rest/{name}": value for name, value in residual.items()}

    def recall(self, memory: Memory, ctx: StepContext) -> dict[str, Tensor]:
        """The middle's residual for this step."""
        return {name.removeprefix("rest/"): x for name, x in memory.tensors.items() if name.startswith("rest/")}

    def measure(self, added: Tensor, memory: Memory) -> float:
        """The relative change of what the first blocks add; the one read on the host."""
        return float(change(added, memory.tensors[FIRST]))
