"""Pyramid attention broadcast: an attention's output is kept and reused for a few steps in the middle of the run."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from wanlab.caches._cache import Memory
from wanlab.caches._parts import CROSS, FEED, ROLES, SELF, PartCache
from wanlab.caches._run import Run
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.spec import Part

Timestep = Annotated[float, Field(ge=0, le=1000)]


@CACHES.register("pab")
class PAB(PartCache):
    """Compute an attention in every `range`-th forward of a branch and reuse its output in between; ranges 1 are exact.

    Only while start < 1000 * noise level < stop; outside everything is computed. Each branch of each expert counts its
    own forwards. A hint block's attentions (VACE) have the ranges of the others; a joint attention (Flux) is one self
    attention of image and text; face blocks (Animate) are always computed. What a branch has not computed within the
    range, because it was away or guidance left the block out, is computed.
    Source: arXiv:2408.12588; NUS-HPC-AI-Lab/VideoSys a6f635d, pab_mgr.py, whose "spatial" attention is self attention
    here: the networks have no temporal one of its own. diffusers 0.42.1 counts the calls of all branches together, so
    that with two of them the second one gets the first one's output.
    """

    judged = frozenset()
    options: Options

    class Options(Part):
        """How long each kind of module is reused, and when; the defaults are VideoSys' for Open-Sora 1.2."""

        self_range: PositiveInt = 2
        """Forwards for which the output of self or joint attention serves; 1 computes always."""
        cross_range: PositiveInt = 5
        """The same for attention to text and pictures."""
        ffn_range: PositiveInt | None = None
        """The same for feed-forwards; None computes them always."""
        start: Timestep = 100.0
        """Timestep, 0 to 1000, above which outputs are reused."""
        stop: Timestep = 800.0
        """Timestep below which they are."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.start >= self.stop:
                raise WanlabError(f"start {self.start:g} is not below stop {self.stop:g}", remedy="Timesteps fall")
            return self

    def range_of(self, part: str) -> int:
        """How many forwards the output of a part serves."""
        o = self.options
        return {SELF: o.self_range, CROSS: o.cross_range, FEED: o.ffn_range or 1}[ROLES[part]]

    def keeps(self, part: str) -> bool:
        return self.range_of(part) > 1

    def due(self, part: str, index: int, gap: int | None, sigma: float) -> bool:
        period = self.range_of(part)
        is_inside = self.options.start < round(1000 * sigma, 3) < self.options.stop  # samplers round levels to float32
        return gap is None or gap >= period or index % period == 0 or not is_inside

    def keep(self, memory: Memory, name: str, outputs: tuple[Tensor, ...], gap: int | None) -> None:
        memory.tensors |= {f"{name}.{i}": output for i, output in enumerate(outputs)}

    def recall(self, memory: Memory, name: str, gap: int) -> tuple[Tensor, ...]:
        first = memory.tensors[f"{name}.0"]
        second = memory.tensors.get(f"{name}.1")
        return (first,) if second is None else (first, second)

    def lighter(self, run: Run) -> str:
        return "A range of 1 (ffn_range: None) keeps nothing of its kind: attention to text is the cheapest to compute"

    def num_kept(self, computed: int) -> int:
        return 1
