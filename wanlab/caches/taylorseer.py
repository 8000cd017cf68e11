"""TaylorSeer: between computed steps a tensor is extrapolated by its Taylor polynomial in the step number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from wanlab.caches._cache import Memory
from wanlab.caches._parts import PartCache
from wanlab.caches._run import Run
from wanlab.caches._size import latent_bytes
from wanlab.registry import CACHES
from wanlab.sites import Branch, StepContext
from wanlab.spec import Part

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OUTPUT = "velocity"


@CACHES.register("taylorseer")
class TaylorSeer(PartCache):
    """Compute every `interval`-th step of a branch and extrapolate in between; interval=1 is exact.

    After a computed step D_0 is the tensor, D_i+1 = (D_i - its value at the computed step before) / (steps between
    them) as far as there are any; k steps later sum D_i k^i / i! stands for it. max_order=0 is FORA: the tensor itself.
    Each branch of each expert has its own schedule, which starts with `warmup_steps` computed forwards; what a branch
    has not computed for an interval, because it was away or guidance left the block out, is computed.
    Source: arXiv:2503.06923; Shenyi-Z/TaylorSeer 288776d, TaylorSeer-Wan2.1/wan/taylorseer. Its schedule, not
    diffusers', whose first interval after the warm-up has two steps.
    """

    judged = frozenset()
    options: Options

    class Options(Part):
        """When to compute, and what to extrapolate; the defaults are those of TaylorSeer for Wan2.1."""

        interval: PositiveInt = 5
        """Steps from one computed step to the next."""
        max_order: int = Field(1, ge=0, le=4)
        """Highest derivative."""
        warmup_steps: PositiveInt = 1
        """First steps of every expert that are computed."""
        modules: Literal["last_block", "all"] = "last_block"
        """last_block: what the network gives after its last block, as in diffusers' lite mode; nothing else runs. all:
        what each attention and feed-forward of every block gives, at (max_order + 1) * 3 * blocks times the memory of
        a branch's tokens."""
        factor_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
        """What derivatives are kept in; auto is the network's dtype."""

    def __init__(self, options: Part | None = None) -> None:
        super().__init__(options)
        self.level = "part" if self.options.modules == "all" else "forward"

    def lighter(self, run: Run) -> str:
        held = self._output_bytes(run) / 1e9
        return f"modules = 'last_block' holds {held:,.2f} GB; a lower max_order or factor_dtype 'bfloat16' may do too"

    # The schedule

    def due(self, part: str, index: int, gap: int | None, sigma: float) -> bool:
        return gap is None or index < self.options.warmup_steps or gap >= self.options.interval

    def forced(self, run: Run) -> Mapping[str, list[bool]] | None:
        if self.options.modules == "all":
            return super().forced(run)
        return run.by_branch(known > 0 for _, _, known in self._outputs(run))

    def _outputs(self, run: Run) -> list[tuple[str, str, int]]:
        """(expert, branch, how many computed outputs the branch then knows, 0 where it reuses) of every forward."""
        found, indices = [], Counter[tuple[str, str]]()
        last: dict[tuple[str, str], int] = {}
        known: Counter[tuple[str, str]] = Counter()
        for step, *names in run.forwards:
            key = (names[0], names[1])
            if (step, key[1]) in run.begins:  # outputs of other blocks are forgotten
                known[key] = 0
                last.pop(key, None)
            gap = step - last[key] if key in last else None
            is_due = self.due(_OUTPUT, indices[key], gap, run.sigmas[step])
            indices[key] += 1
            if is_due:
                last[key] = step
                known[key] += 1
            found.append((*key, known[key] if is_due else 0))
        return found

    def schedule(self, run: Run) -> list[float] | None:
        if self.options.modules == "all":
            return super().schedule(run)
        return [1.0 if known else 0.0 for _, _, known in self._outputs(run)]

    def predict(self, run: Run) -> int:
        return super().predict(run) if self.options.modules == "all" else self._output_bytes(run)

    def _output_bytes(self, run: Run) -> int:
        held, most = dict[tuple[str, str], int](), 0
        for expert, branch, known in self._outputs(run):
            if known:
                held[expert, branch] = self.num_kept(known) * (branch.count("+") + 1)
                most = max(most, sum(held.values()))
        return most * latent_bytes(run, self._itemsize(run))

    def num_kept(self, computed: int) -> int:
        return min(self.options.max_order + 1, computed)

    def _itemsize(self, run: Run) -> int:
        return int(_DTYPES.get(self.options.factor_dtype, run.model.dtype).itemsize)

    # The polynomial

    def around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        if self.level == "part":
            return super().around_forward(call, latents, ctx, branch)
        memory = self.memory(ctx)
        gap = ctx.step - int(memory.numbers[_OUTPUT]) if _OUTPUT in memory.numbers else None
        if gap is not None and not self.due(_OUTPUT, len(memory.shares), gap, 0.0):
            self.did(ctx, 0.0)
            return self.recall(memory, _OUTPUT, gap)[0]
        velocity = call(latents, ctx, branch)
        self.keep(memory, _OUTPUT, (velocity.contiguous(),), gap)  # a slice would hold the frames that were cut off
        memory.numbers[_OUTPUT] = ctx.step
        self.did(ctx, 1.0)
        return velocity

    def keep(self, memory: Memory, name: str, outputs: tuple[Tensor, ...], gap: int | None) -> None:
        dtype = _DTYPES.get(self.options.factor_dtype)
        for i, output in enumerate(outputs):
            factors = [output]
            for order in range(self.options.max_order):
                before = memory.tensors.get(f"{name}.{i}.{order}")
                if before is None or gap is None:
                    break
                factors.append((factors[order] - before.to(output.dtype)) / gap)
            memory.tensors |= {f"{name}.{i}.{order}": factor.to(dtype) for order, factor in enumerate(factors)}

    def recall(self, memory: Memory, name: str, gap: int) -> tuple[Tensor, ...]:
        outputs = []
        while f"{name}.{len(outputs)}.0" in memory.tensors:
            at = f"{name}.{len(outputs)}"
            factors = [
                memory.tensors[f"{at}.{k}"] for k in range(self.options.max_order + 1) if f"{at}.{k}" in memory.tensors
            ]
            terms = (factor.to(self._model.dtype) * (gap**k / math.factorial(k)) for k, factor in enumerate(factors))
            outputs.append(sum(terms, start=next(terms)))
        return tuple(outputs)
