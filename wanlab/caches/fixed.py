"""An explicit plan: which steps run the blocks. Methods whose signal does not depend on content lower to this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self

from pydantic import Field, model_validator

from wanlab.caches._cache import Cache
from wanlab.caches._memory import Memory
from wanlab.caches._run import Run
from wanlab.caches._size import residual_bytes
from wanlab.errors import WanlabError, unknown
from wanlab.registry import CACHES
from wanlab.sites import StepContext, Streams
from wanlab.spec import Part

Mask = Annotated[tuple[bool, ...], Field(min_length=1, max_length=10_000)]


@CACHES.register("fixed")
class Fixed(Cache):
    """Run the blocks at the steps whose mask is True, reuse the last residual elsewhere; all True is exact."""

    judged = frozenset({"mask", "branch_masks"})
    options: Options

    class Options(Part):
        mask: Mask
        """One entry for each step that runs, True computes; the first is True."""
        branch_masks: dict[str, Mask] = Field(default_factory=dict)
        """Masks for single guidance branches of the run, e.g. "uncond", instead of `mask`."""

        @model_validator(mode="after")
        def _check_masks(self) -> Self:
            for name, mask in {"mask": self.mask, **self.branch_masks}.items():
                if not mask[0]:
                    raise WanlabError(f"{name} starts with False", remedy="There is nothing to reuse at the first step")
                if len(mask) != len(self.mask):
                    raise WanlabError(f"{name} has {len(mask)} entries and mask has {len(self.mask)}")
            return self

    def __init__(self, options: Part | None = None) -> None:
        super().__init__(options)
        self.needed: Callable[[StepContext], bool] | None = None
        """Whether something will reuse what a forward adds, for who knows; None keeps it always."""

    def keep_residual(self, memory: Memory, before: Streams, after: Streams, ctx: StepContext) -> None:
        if self.needed is None or self.needed(ctx):
            memory.unkept = 0
            super().keep_residual(memory, before, after, ctx)
            return
        memory.tensors.clear()
        memory.unkept = sum(after.tokens[name].nbytes for name in self.stack(ctx).outputs)

    def decide(self, ctx: StepContext) -> bool:
        self._check_length(ctx.num_steps)
        return self.options.branch_masks.get(ctx.branch, self.options.mask)[ctx.step]

    def predict(self, run: Run) -> int:
        return residual_bytes(run)

    def check(self, run: Run) -> None:
        sampling = run.spec.sampling
        left = f" of {sampling.num_steps} that denoising_strength = {sampling.denoising_strength:g} leaves"
        self._check_length(run.num_steps, left if run.num_steps != sampling.num_steps else "")
        masks = self.options.branch_masks
        if masks and run.batched:
            raise WanlabError(
                "The cache's branch_masks need branches of their own, and guidance.batch_branches runs them as one",
                remedy="Give only mask, or set guidance.batch_branches to False",
            )
        if wrong := sorted(set(masks) - set(run.branch_names)):
            raise unknown("guidance branch in the cache's branch_masks", wrong[0], run.branch_names)

    def _check_length(self, num_steps: int, left: str = "") -> None:
        """Raise WanlabError for another number of steps; `left` says why they are not the spec's num_steps."""
        if len(self.options.mask) != num_steps:
            raise WanlabError(
                f"The cache's mask has {len(self.options.mask)} entries for {num_steps} steps{left}",
                remedy=f"Give one entry for each step that runs: {num_steps}",
            )
