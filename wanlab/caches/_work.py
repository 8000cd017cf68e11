"""What the blocks of a forward cost: the weights of what a cache left out of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from wanlab.caches._cache import Cache
from wanlab.caches._run import Run
from wanlab.sites import Branch
from wanlab.spec import GenerationSpec

Works = Mapping[tuple[str, str], int]
"""(block, part) -> operations in a forward; a hint block's are those of all its calls."""


class Weighed(Cache):
    """A cache that may run some of the blocks or their parts, and weighs them by their operations.

    Operations are those of the run's spec; without `prepare`, of the model's default settings.
    """

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._model: Any = None
        self._run: Run | None = None
        self._works: dict[Any, Works] = {}

    def prepare(self, run: Run) -> Cache:
        self._run = run
        return self

    def bind(self, model: Any) -> None:
        super().bind(model)
        if model is not self._model:
            self._works.clear()
        self._model = model

    def works(self, expert: str, branch: Branch) -> Works:
        """What each block's parts take in a forward of the branch, without blocks that its guidance leaves out."""
        key = (expert, branch.skip_blocks, branch.nag is not None)
        if key not in self._works:
            spec: GenerationSpec = self._model.default_spec if self._run is None else self._run.spec
            entries = self._model.workload(spec, branch, expert).entries
            self._works[key] = {(entry.name, part): work for entry in entries for part, work in entry.parts.items()}
        return self._works[key]


def share_of(works: Works, blocks: Collection[str]) -> float:
    """Share of the operations that these blocks take, 0 to 1; 1.0 for all of them, and where there are none."""
    total = sum(works.values())
    return sum(work for (block, _), work in works.items() if block in blocks) / total if total else 1.0
