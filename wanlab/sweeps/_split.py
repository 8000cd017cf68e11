"""How groups are given to several workers: whole, and in parts only where a worker would otherwise have nothing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wanlab.spec import GenerationSpec
from wanlab.sweeps._plan import Segment, plan

_SLACK = 1.1
"""The longest part may be so much longer than it need be, if less is then done twice."""
_WORTH = 0.98
"""A group is split if all is then done in less than this share of the time."""


@dataclass(frozen=True)
class Line:
    """The leaves of a group's trees from left to right: neighbours share the most.

    `paths[i]` is what leaf i takes alone and `shared[i]` what of that the leaf before it has done, 0 for the first.
    """

    keys: tuple[str, ...]
    paths: tuple[int, ...]
    shared: tuple[int, ...]

    @classmethod
    def of(cls, model: Any, specs: Mapping[str, GenerationSpec]) -> Line:
        """The line of what specs share. Raises WanlabError for a spec that the model cannot follow."""
        found = [leaf for tree in plan(model, specs) for leaf in _leaves(tree, 0, 0)]
        keys, paths, shared = zip(*found, strict=True)
        return cls(keys, paths, shared)

    @cached_property
    def _sums(self) -> list[int]:
        """What the leaves up to each one add, each to the one before it."""
        found = [0]
        for path, shared in zip(self.paths, self.shared, strict=True):
            found.append(found[-1] + path - shared)
        return found

    def cost(self, start: int = 0, stop: int | None = None) -> int:
        """Forwards that the leaves [start, stop) take together."""
        stop = len(self.keys) if stop is None else stop
        return self.shared[start] + self._sums[stop] - self._sums[start]

    def part(self, start: int, stop: int) -> Line:
        """Some neighbours as a line of their own."""
        return Line(self.keys[start:stop], self.paths[start:stop], (0, *self.shared[start + 1 : stop]))

    def parts(self, number: int) -> list[Line]:
        """The line cut in at most so many parts: the longest about as short as it can be, and least done twice."""
        ends = self._cheapest(number, int(self._shortest(number) * _SLACK))
        return [self.part(start, stop) for start, stop in zip([0, *ends], [*ends, len(self.keys)], strict=True)]

    def _shortest(self, number: int) -> int:
        low, high = max(self.cost(i, i + 1) for i in range(len(self.keys))), self.cost()
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(number, middle) else (middle + 1, high)
        return low

    def _fits(self, number: int, bound: int) -> bool:
        start = 0
        for stop in range(1, len(self.keys) + 1):
            if self.cost(start, stop) > bound:
                start, number = stop - 1, number - 1
        return number >= 1

    def _cheapest(self, number: int, bound: int) -> list[int]:
        """Where to cut, at most `number` parts of at most `bound`; what is done twice is what is shared at a cut."""
        length = len(self.keys)
        best: list[dict[int, tuple[int, int, list[int]]]] = [{0: (0, 0, [])}]
        """After some parts: where they end -> (done twice, the longest, cuts)."""
        for _ in range(number):
            ends: dict[int, tuple[int, int, list[int]]] = {}
            for start, (repeated, longest, cuts) in best[-1].items():
                for stop in range(start + 1, length + 1):
                    if (cost := self.cost(start, stop)) > bound:
                        break
                    found = (repeated + (self.shared[start] if start else 0), max(longest, cost))
                    if stop not in ends or found < ends[stop][:2]:
                        ends[stop] = (*found, [*cuts, start] if start else cuts)
            best.append(ends)
        return min(ends[length] for ends in best if length in ends)[2]


def _leaves(tree: Segment, path: int, shared: int) -> Iterable[tuple[str, int, int]]:
    """(key, path, shared with the leaf before) of a tree below a path of which `shared` was done by leaves before."""
    here = path + tree.computed
    if not tree.children:
        for i, key in enumerate(tree.keys):
            yield key, here, shared if i == 0 else here
        return
    for i, child in enumerate(tree.children):
        yield from _leaves(child, here, shared if i == 0 else here)


def spread(lines: Sequence[Line], workers: int) -> list[Line]:
    """The lines, the longest first, some cut so that no worker waits long for the others."""
    done, left = list[Line](), sorted(lines, key=Line.cost, reverse=True)
    while left:
        line = left.pop(0)
        others = [*done, *left]
        fair = (sum(other.cost() for other in others) + line.cost()) / workers
        if line.cost() <= fair:
            done += [line, *left]  # those after it are shorter
            break
        candidates = [line.parts(number) for number in range(2, min(workers, len(line.keys)) + 1)]
        best = min(candidates, key=lambda parts: makespan([*others, *parts], workers), default=[line])
        is_worth = makespan([*others, *best], workers) < _WORTH * makespan([*others, line], workers)
        done += best if is_worth else [line]
    return sorted(done, key=Line.cost, reverse=True)


def makespan(lines: Sequence[Line], workers: int) -> int:
    """Forwards of the busiest worker if each takes the longest line that is left when it has none."""
    busy = [0] * workers
    for cost in sorted((line.cost() for line in lines), reverse=True):
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy)
