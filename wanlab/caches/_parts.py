"""What caches of single modules' outputs share: which call is which, what it weighs, what the run will hold."""

from __future__ import annotations

import abc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wanlab.caches._cache import Memory
from wanlab.caches._run import Run
from wanlab.caches._work import Weighed
from wanlab.errors import WanlabError
from wanlab.sites import Branch, Entry, StepContext
from wanlab.sites.stack import BESIDE

SELF, CROSS, FEED = "self", "cross", "feed"
ROLES = {"attn1": SELF, "attn": SELF, "attn2": CROSS, "ffn": FEED, "ff": FEED, "ff_context": FEED}
"""What the parts of blocks do; joint attention ("attn") counts as self attention, what reads text only as cross."""


@dataclass(frozen=True)
class Unit:
    """One module whose output is kept, as the configuration describes it."""

    entry: str
    part: str
    main: int | None
    """Its block's index as in `Stack.main`; None for a block beside the network's list."""
    calls: int
    """How often it runs in a forward: a hint block once for each control video."""
    numbers: int
    """Numbers that all its calls give, for one sample and branch."""


@dataclass
class Plan:
    """What a cache of parts will do in a run."""

    reused: list[list[Unit]] = field(default_factory=list)
    """For each of `run.forwards`, the modules that are not computed."""
    computed: Counter[tuple[str, str, Unit]] = field(default_factory=Counter)
    """(expert, branch, unit) -> forwards that compute it."""


class PartCache(Weighed):
    """A cache that keeps the outputs of modules inside the blocks; `due` says when one is computed.

    Every call of a module in a forward has an output of its own. What a part's module does not do (norms, the
    projections of Flux' single blocks and of VACE's hints, Animate's face blocks) is always computed.
    """

    level = "part"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._calls: Counter[tuple[str, str]] = Counter()
        self._reused: Counter[tuple[str, str]] = Counter()

    @abc.abstractmethod
    def due(self, part: str, index: int, gap: int | None, sigma: float) -> bool:
        """Whether a part is computed in a branch's forward `index`, `gap` steps after it last was (None: never)."""

    @abc.abstractmethod
    def keep(self, memory: Memory, name: str, outputs: tuple[Tensor, ...], gap: int | None) -> None:
        """Take what a module gave."""

    @abc.abstractmethod
    def recall(self, memory: Memory, name: str, gap: int) -> tuple[Tensor, ...]:
        """What it gives `gap` steps later."""

    @abc.abstractmethod
    def num_kept(self, computed: int) -> int:
        """Tensors that are held for each output of a module after so many computed forwards."""

    @abc.abstractmethod
    def lighter(self, run: Run) -> str:
        """What to change so that the run holds less, for an error."""

    # Before the run

    def keeps(self, part: str) -> bool:
        """Whether the method keeps the outputs of a part of this name."""
        return True

    def parts(self, entry: Entry) -> tuple[str, ...]:
        return tuple(name for name in entry.parts if self.keeps(name))

    def plan(self, run: Run) -> Plan:
        """What will be computed, from the configurations alone."""
        plan, kept, indices = Plan(), dict[Any, int](), Counter[tuple[str, str]]()
        units = {expert: [u for u in kept_units(run, expert) if self.keeps(u.part)] for expert in set(run.experts)}
        for step, expert, branch in run.forwards:
            skipped = run.skip_blocks.get((step, branch.split("+")[0]), ())
            reused = []
            for unit in units[expert]:
                if unit.main is not None and unit.main in skipped:
                    continue
                key = (expert, branch, unit)
                gap = step - kept[key] if key in kept else None
                if self.due(unit.part, indices[expert, branch], gap, run.sigmas[step]):
                    kept[key] = step
                    plan.computed[key] += 1
                else:
                    reused.append(unit)
            indices[expert, branch] += 1
            plan.reused.append(reused)
        return plan

    def forced(self, run: Run) -> Mapping[str, list[bool]] | None:
        """Branch -> for each step, whether everything is computed, which is known before the run; True where it is not
        run."""
        return run.by_branch(not reused for reused in self.plan(run).reused)

    def schedule(self, run: Run) -> list[float] | None:
        self._model = self._model or run.model
        found = []
        for (step, expert, name), reused in zip(run.forwards, self.plan(run).reused, strict=True):
            key = (step, name.split("+")[0])
            nag = (1.0, 1.0, 1.0) if key in run.nag else None  # the operations do not depend on its numbers
            works = self.works(expert, Branch(name, {}, skip_blocks=run.skip_blocks.get(key, ()), nag=nag))
            total = sum(works.values())
            left = sum(works[unit.entry, unit.part] for unit in reused)
            found.append((total - left) / total if reused else 1.0)
        return found

    def predict(self, run: Run) -> int:
        width = self._itemsize(run)
        return sum(
            unit.numbers * width * self.num_kept(count) * (branch.count("+") + 1)
            for (_, branch, unit), count in self.plan(run).computed.items()
        )

    def _itemsize(self, run: Run) -> int:
        """Bytes of a kept number."""
        return int(run.model.dtype.itemsize)

    # The run

    def bind(self, model: Any) -> None:
        """As `Cache.bind`. Raises WanlabError if the run will hold more than the model's device has free."""
        super().bind(model)
        self._check_memory(model.device)

    def _check_memory(self, device: torch.device) -> None:
        if self._run is None:
            return
        need, free = self.predict_most(self._run) - self._held, free_bytes(device)
        if free is not None and need > free:
            raise WanlabError(
                f"The cache {self.method} will hold {need / 1e9:,.2f} GB beside the network, and {free / 1e9:,.2f} GB "
                f"are free on {device}",
                remedy=self.lighter(self._run),
            )

    def around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        self._calls.clear()
        self._reused.clear()
        velocity = call(latents, ctx, branch)
        self.did(ctx, self._share(ctx, branch) if self._reused else 1.0)
        return velocity

    def _share(self, ctx: StepContext, branch: Branch) -> float:
        """The share of the blocks' work that was done in this forward."""
        works = self.works(ctx.expert, branch)
        total = sum(works.values())
        return (total - sum(works[site] * n // self._calls[site] for site, n in self._reused.items())) / total

    def around_part(self, call: Callable[..., Any], entry: Entry, part: str, args: tuple[Any, ...], kw: Any) -> Any:
        ctx, site = self.ctx, (entry.name, part)
        memory, name = self.memory(ctx), f"{entry.name}.{part}.{self._calls[site]}"
        self._calls[site] += 1
        gap = ctx.step - int(memory.numbers[name]) if name in memory.numbers else None
        if gap is not None and not self.due(part, len(memory.shares), gap, level(ctx)):
            self._reused[site] += 1
            outputs = self.recall(memory, name, gap)
            return outputs if len(outputs) > 1 else outputs[0]
        found = call(*args, **kw)
        self.keep(memory, name, found if isinstance(found, tuple) else (found,), gap)
        memory.numbers[name] = ctx.step
        return found


def kept_units(run: Run, expert: str) -> Iterator[Unit]:
    """The modules of an expert's blocks that have sites, in the order they run."""
    work = run.model.workload(run.spec, expert=expert)
    main = 0
    for entry in work.entries:
        place = None if entry.kind in BESIDE else main
        main += place is not None
        for part in (name for name in entry.parts if name in ROLES and entry.kind != "face"):
            streams = _outputs(run.model, work, entry.kind, part)
            calls = len(streams) if entry.kind == "hint" else 1
            yield Unit(entry.name, part, place, calls, sum(prod(work.tokens[name]) for name in streams))


def _outputs(model: Any, work: Any, kind: str, part: str) -> tuple[str, ...]:
    """The token streams whose sizes a module's outputs have."""
    if kind == "hint":
        return tuple(name for name in work.changed if name not in model.outputs)
    if part == "attn":
        return tuple(work.changed)
    return ("text",) if part == "ff_context" else tuple(model.outputs)


def level(ctx: StepContext) -> float:
    """The step's noise level; the highest where samples or latent frames differ."""
    return float(ctx.sigma.max()) if isinstance(ctx.sigma, Tensor) else ctx.sigma


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
