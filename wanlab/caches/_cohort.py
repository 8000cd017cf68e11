"""Several caches at once, in steps that each of them computes: every one builds its own state from the same blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from wanlab.caches._cache import Cache, attach_all
from wanlab.sites import Handle, Streams


class Cohort:
    """Caches that work on one model at the same time, as if each were alone there; none of them may reuse anything.

    Forwards and modules call them one inside the other. The stack runs once, in parts where some member cuts it, and
    every member gets from its `call` the streams that were there.
    """

    def __init__(self, members: Sequence[Cache]) -> None:
        self.members = list(members)
        self._inside = [member for member in members if member.level == "stack"]

    def attach(self, model: Any) -> Handle:
        """Work until the handle is removed. Raises WanlabError where the model has a cache."""
        if not self.members:
            return Handle.join([])
        if len(self.members) == 1:
            return self.members[0].attach(model)
        return attach_all(self.members, model, self._around_stack)

    def _around_stack(
        self, call: Callable[..., Streams], streams: Streams, start: int = 0, stop: int | None = None
    ) -> Streams:
        if start != 0 or stop is not None:
            return call(streams, start=start, stop=stop)
        ctx = self._inside[0].ctx
        stack = self._inside[0].stack(ctx)
        end = len(stack)
        cuts = sorted({0, end, *(cut for member in self._inside for cut in member.cuts(stack))})
        reached = {0: streams}
        for a, b in itertools.pairwise(cuts):
            reached[b] = call(reached[a], start=a, stop=b)

        def replay(given: Streams, start: int = 0, stop: int | None = None) -> Streams:
            assert given is reached[start], "a member of a cohort changed what the blocks see"
            return reached[end if stop is None else stop]

        for member in self._inside:
            after = member.around_stack(replay, streams, ctx)
            assert after is reached[end], f"{member.method} reused something in a step that all compute"
        return reached[end]
