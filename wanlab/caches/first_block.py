"""First-Block Cache: the first block's residual tells whether the others' may be reused."""

from __future__ import annotations

from torch import Tensor

from wanlab.caches._dynamic import Threshold, ages, check_reuse, each_branch
from wanlab.caches._run import Run
from wanlab.caches._size import sequences, stream_bytes
from wanlab.caches._split import Split
from wanlab.registry import CACHES
from wanlab.sites import StepContext
from wanlab.spec import Part


@CACHES.register("first_block")
class FirstBlock(Split):
    """Always run block 0; reuse what the others added while the relative L1 change of its residual is <= `threshold`.

    The change is since the branch's last computed step. Each branch judges for itself: one read on the host a forward.
    threshold = 0 is exact. Equal to diffusers 0.42.1's FirstBlockCache (after ParaAttention), but for the sums, which
    are in float32 here whatever the network's dtype is.
    """

    judged = frozenset({"threshold"})
    options: Options

    class Options(Part):
        threshold: Threshold = 0.05
        """Relative change up to which the blocks are not run; 0.05 to 0.2 are usual."""

    def reuses(self, added: Tensor, ctx: StepContext) -> tuple[bool, float]:
        signal = self.measure(added, self.memory(ctx))
        return self.agree(lambda options: signal <= options.threshold), signal

    def check(self, run: Run) -> None:
        super().check(run)
        check_reuse(self.method, self._forced_steps(run), "Take more steps")

    def forced(self, run: Run) -> dict[str, list[bool]]:
        return each_branch(run, self._forced_steps(run))

    def _forced_steps(self, run: Run) -> list[bool]:
        """Which steps are computed whatever they contain: an expert's first."""
        return [age == 0 for age in ages(run)]

    def predict(self, run: Run) -> int:
        outputs = run.model.outputs
        return sequences(run) * (stream_bytes(run, outputs[:1]) + stream_bytes(run, outputs))
