"""What is known of a run before it starts: its steps, experts and branches, and what of the network a block costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from wanlab.registry import GUIDANCE
from wanlab.sites import NO_CONDITIONS, Branch, StepContext
from wanlab.spec import GenerationSpec


@dataclass(frozen=True)
class Run:
    """A spec on a model, seen by a cache before the run; loads no weights."""

    model: Any
    spec: GenerationSpec
    sigmas: tuple[float, ...]
    """num_steps + 1 noise levels, falling."""
    experts: tuple[str, ...]
    """The expert of each step."""
    branches: tuple[tuple[str, ...], ...]
    """Names of each step's guidance branches in the order in which they run, before any batching."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """The model's, from its definition."""
    skip_blocks: Mapping[tuple[int, str], tuple[int, ...]] = field(default_factory=dict)
    """(step, branch) -> blocks that its guidance leaves out, indices as in `Stack.main`."""
    nag: frozenset[tuple[int, str]] = frozenset()
    """(step, branch) with normalized attention guidance."""

    @classmethod
    def of(cls, model: Any, spec: GenerationSpec) -> Run:
        """The run that a spec describes."""
        sigmas = tuple(model.sigmas(spec).tolist())
        experts = tuple(model.experts(spec))
        branches = _branches(spec, sigmas, experts)
        names = tuple(tuple(branch.name for branch in found) for found in branches)
        skipped = {(step, b.name): b.skip_blocks for step, found in enumerate(branches) for b in found}
        nag = frozenset((step, b.name) for step, found in enumerate(branches) for b in found if b.nag is not None)
        return cls(model, spec, sigmas, experts, names, model.constants, skipped, nag)

    @property
    def num_steps(self) -> int:
        """Steps that run, fewer than the spec's where denoising_strength leaves some out."""
        return len(self.experts)

    @cached_property
    def branch_names(self) -> tuple[str, ...]:
        """The branches that some step runs, the conditional one first."""
        return tuple(dict.fromkeys(name for names in self.branches for name in names))

    @property
    def batched(self) -> bool:
        """Whether the branches of a step run as one forward."""
        return self.spec.guidance.batch_branches

    @property
    def forwards(self) -> list[tuple[int, str, str]]:
        """(step, expert, branch) of every forward, as the clock will name them."""
        found = []
        for step, (expert, names) in enumerate(zip(self.experts, self.branches, strict=True)):
            together = self.batched and len(names) > 1
            found += [(step, expert, name) for name in (["+".join(names)] if together else names)]
        return found

    def by_branch(self, values: Iterable[bool]) -> dict[str, list[bool]]:
        """A value for each of `forwards` as rows of steps by branch; True where a branch does not run."""
        found: dict[str, list[bool]] = {}
        for (step, _, branch), value in zip(self.forwards, values, strict=True):
            found.setdefault(branch, [True] * self.num_steps)[step] = value
        return found

    @cached_property
    def begins(self) -> frozenset[tuple[int, str]]:
        """(step, branch as the clock names it) of forwards that have nothing to reuse, whatever a method decides.

        A branch's first one on an expert, and those that leave out other blocks than the one before.
        """
        found, skips = set(), dict[tuple[str, str], tuple[int, ...]]()
        for step, expert, branch in self.forwards:
            skipped = self.skip_blocks.get((step, branch.split("+")[0]), ())
            if skips.get((expert, branch)) != skipped:
                found.add((step, branch))
            skips[expert, branch] = skipped
        return frozenset(found)

    @cached_property
    def split_step(self) -> int | None:
        """The first step of the second expert; None where one expert runs all steps."""
        other = [i for i, expert in enumerate(self.experts) if expert != self.experts[0]]
        return other[0] if other else None

    def only(self, expert: str) -> Run:
        """The steps of one expert as a run of their own."""
        steps = self.steps_of(expert)
        skipped = {(steps.index(step), name): b for (step, name), b in self.skip_blocks.items() if step in steps}
        return replace(
            self,
            sigmas=(*(self.sigmas[step] for step in steps), self.sigmas[steps[-1] + 1]),
            experts=(expert,) * len(steps),
            branches=tuple(self.branches[step] for step in steps),
            skip_blocks=skipped,
            nag=frozenset((steps.index(step), name) for step, name in self.nag if step in steps),
        )

    def steps_of(self, expert: str) -> list[int]:
        """The steps of an expert."""
        return [i for i, name in enumerate(self.experts) if name == expert]


def _branches(spec: GenerationSpec, sigmas: tuple[float, ...], experts: tuple[str, ...]) -> list[list[Branch]]:
    rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
    nothing: dict[str, Tensor] = {}
    text = {"prompt": nothing, "negative_prompt": nothing}
    clock = StepContext(0, len(experts), sigmas[0], sigmas)
    found = []
    for step, expert in enumerate(experts):
        ctx = replace(clock, step=step, sigma=sigmas[step], expert=expert)
        found.append(rule.branches(ctx, text, NO_CONDITIONS))
    return found
