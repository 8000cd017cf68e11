"""EasyCache: reuse while the output's predicted change is small, judged by raw latents and outputs alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from wanlab.caches._cache import Cache, Memory
from wanlab.caches._dynamic import Threshold, ages, check_reuse, each_branch, first_branch, mean_abs
from wanlab.caches._run import Run
from wanlab.caches._size import latent_bytes, sequences
from wanlab.registry import CACHES
from wanlab.sites import StepContext
from wanlab.spec import Part


@CACHES.register("easycache")
class EasyCache(Cache):
    """Skip embedding, blocks and head while the output's predicted change adds up to less than `threshold`.

    Output v, latents x, c the last computed step: a step adds k * mean|x - x_before| / mean|v_c|, with k =
    mean|v_c - v_p| / mean|x_c - x_p| of the last two computed steps. Reuse gives x + (v_c - x_c). The first branch of a
    step decides, by all its samples, and the others follow, but for one that did not run at c, which computes; state is
    of latent size. An expert's first two steps are computed, since k needs both. One read on the host a step after the
    warm-up. threshold = 0 is exact.
    Source: arXiv:2507.02860; H-EmbodVis/EasyCache 5127804, EasyCache4Wan2.1/easycache_generate.py.
    """

    judged = frozenset({"threshold", "warmup_steps"})
    level = "forward"
    options: Options

    class Options(Part):
        threshold: Threshold = 0.05
        """Predicted relative change that may add up before a step is computed; 0.025 for Hunyuan Video."""
        warmup_steps: Annotated[int, Field(ge=0)] = 10
        """First steps of the run that are computed, besides its last; 5 for Hunyuan Video."""

    def check(self, run: Run) -> None:
        check_reuse(self.method, self._forced_steps(run), "Take more steps, or fewer warmup_steps")

    def forced(self, run: Run) -> dict[str, list[bool]]:
        return each_branch(run, self._forced_steps(run))

    def _forced_steps(self, run: Run) -> list[bool]:
        """Which steps are computed whatever they contain."""
        return [age < 2 or _is_forced(self.options, i, run.num_steps) for i, age in enumerate(ages(run))]

    def predict(self, run: Run) -> int:
        """For each expert two latents and one output, for each branch a float32 difference; k once there are two."""
        experts = set(run.experts)
        rates = sum(len(run.steps_of(expert)) > 1 for expert in experts)
        shared = 2 * latent_bytes(run) + latent_bytes(run, run.model.dtype.itemsize)
        return len(experts) * shared + sequences(run) * latent_bytes(run) + 4 * rates

    def around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Any) -> Tensor:
        together, memory = self.together(ctx), self.memory(ctx)
        kept = memory.tensors
        leads = together.numbers.get("step") != ctx.step
        error, allows = self._error(together, first_branch(latents, ctx), ctx) if leads else (None, False)
        follows = not leads and not together.numbers["computed"]
        is_known = "offset" in kept and memory.numbers["at"] >= together.numbers.get("at", 0)  # False: it was away then
        reuse = is_known and (follows or allows)
        if reuse:
            velocity = (latents + kept["offset"]).to(together.tensors["velocity"].dtype)
        else:
            velocity = call(latents, ctx, branch)
            kept["offset"] = velocity - latents
            memory.numbers["at"] = ctx.step
        if leads:
            self._note(together, first_branch(latents, ctx), first_branch(velocity, ctx), ctx, error if reuse else None)
        self.did(ctx, 0.0 if reuse else 1.0, error)
        return velocity

    def _error(self, together: Memory, x: Tensor, ctx: StepContext) -> tuple[float | None, bool]:
        """What the predicted change adds up to with this step, None where it is computed anyway; and whether that
        allows reuse."""
        tensors = together.tensors
        if "k" not in tensors:
            return None, False

        @functools.cache
        def error() -> float:
            moved = mean_abs(x - tensors["last"]) / mean_abs(tensors["velocity"])
            return float(together.numbers["error"] + tensors["k"] * moved)

        def rule(options: Any) -> tuple[float | None, bool]:
            if _is_forced(options, ctx.step, ctx.num_steps):
                return None, False
            return error(), error() < options.threshold

        return self.agree(rule)

    def _note(self, together: Memory, x: Tensor, velocity: Tensor, ctx: StepContext, error: float | None) -> None:
        """Remember a step of the first branch; `error` is None where it was computed."""
        tensors = together.tensors
        if error is None:
            if "velocity" in tensors:
                tensors["k"] = mean_abs(velocity - tensors["velocity"]) / mean_abs(x - tensors["computed"])
            tensors |= {"computed": x.clone(), "velocity": velocity.clone()}
            together.numbers["at"] = ctx.step
        tensors["last"] = x.clone()
        together.numbers |= {"step": ctx.step, "computed": error is None, "error": error or 0.0}


def _is_forced(options: Any, step: int, num_steps: int) -> bool:
    return bool(step < options.warmup_steps or step == num_steps - 1)
