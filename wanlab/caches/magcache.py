"""MagCache: how much residuals grow from step to step is known beforehand, and so is the error of keeping one.

Source: arXiv:2506.09045; Zehong-Ma/MagCache df81cb18 (Apache-2.0), MagCache4Wan2.1/magcache_generate.py:270-315 and
MagCache4Wan2.2/magcache_generate.py:255-362.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from wanlab.caches._run import Run
from wanlab.caches._static import Floats, MadeFor, Mask, Span, Static, joined, search, settings, unused, whole
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.spec import Part


def plan(  # noqa: PLR0913 - the names that the scripts' settings have
    mag_ratios: ArrayLike,
    num_steps: int,
    threshold: float,
    max_skip: int,
    retention: float,
    num_branches: int = 2,
    split_step: int | None = None,
    paper_sqrt: bool = False,
    *,
    keep_first_phase: bool = False,
) -> list[bool]:
    """Which forwards compute: num_branches * num_steps values, branches interleaved, True = computed.

    mag_ratios: as published, branches interleaved from the second step on; each branch's list is interpolated to
    num_steps by its nearest values. A forward is reused while the sum of |1 - product of ratios| since the last
    computed one stays below `threshold` and at most `max_skip` follow each other; the first int(retention * forwards)
    all compute. split_step: the second expert's first step; `retention` then holds at the start of both, and with
    keep_first_phase (MagCache4Wan2.2's rule for pictures) the first expert computes everything. paper_sqrt: take the
    ratios' square root, as the paper's figures do and the published code does not.
    The first forward of each branch computes, whatever the settings. Raises WanlabError for lists that do not fit.
    """
    masks = plan_many(
        mag_ratios=mag_ratios,
        num_steps=num_steps,
        threshold=threshold,
        max_skip=max_skip,
        retention=retention,
        num_branches=num_branches,
        split_step=split_step,
        paper_sqrt=paper_sqrt,
        keep_first_phase=keep_first_phase,
    )
    return [bool(x) for x in masks[0]]


def plan_many(  # noqa: PLR0913 - as `plan`
    *,
    mag_ratios: ArrayLike,
    num_steps: int,
    threshold: ArrayLike,
    max_skip: ArrayLike,
    retention: ArrayLike,
    num_branches: int = 2,
    split_step: int | None = None,
    paper_sqrt: bool = False,
    keep_first_phase: bool = False,
) -> Mask:
    """`plan` for N settings at once, (N, num_branches * num_steps); threshold, max_skip, retention: (N,) or one."""
    limit, longest, kept = settings(threshold=threshold, max_skip=max_skip, retention=retention)
    ratios = ratios_by_step(mag_ratios, num_steps, num_branches, paper_sqrt)
    starts = np.zeros(ratios.shape, bool)
    starts[0] = True
    phases = Phases(split_step, keep_first_phase)
    usable = usable_steps(kept, num_steps, num_branches, phases)
    return walk(ratios, usable, starts, limit, longest).reshape(len(limit), -1)


@dataclass(frozen=True)
class Phases:
    """Two experts, one after the other."""

    split_step: int | None = None
    """The second one's first step; None where there is one expert."""
    keep_first: bool = False
    """Whether the first one computes everything."""


def ratios_by_step(mag_ratios: ArrayLike, num_steps: int, num_branches: int, paper_sqrt: bool = False) -> Floats:
    """(num_steps, num_branches) from a published list: 1.0 put before each branch's, nearest values where lengths
    differ."""
    num_steps, num_branches = whole("num_steps", num_steps, 1), whole("num_branches", num_branches, 1)
    given = np.asarray(mag_ratios, dtype=np.float64)
    if given.ndim != 1 or given.size == 0 or given.size % num_branches:
        raise WanlabError(
            f"mag_ratios of shape {given.shape} for {num_branches} branches",
            remedy="Give one ratio for each forward after the first step, branches interleaved",
        )
    if not bool((np.isfinite(given) & (given > 0)).all()):
        raise WanlabError("mag_ratios are not all positive numbers", remedy="Give the list as published")
    found = np.concatenate([np.ones(num_branches), np.sqrt(given) if paper_sqrt else given]).reshape(-1, num_branches)
    if len(found) == num_steps:
        return found
    if num_steps == 1:
        return found[-1:]
    nearest = np.round(np.arange(num_steps) * ((len(found) - 1) / (num_steps - 1))).astype(int)
    return found[nearest]


def usable_steps(retention: Floats, num_steps: int, num_branches: int, phases: Phases) -> Mask:
    """(N, num_steps, num_branches): forwards that may reuse something; counted in forwards, as the scripts do."""
    forward, total = np.arange(num_steps * num_branches), num_steps * num_branches
    kept = retention[:, None].astype(np.float64)
    if phases.split_step is None:
        forced = forward < np.trunc(total * kept)
    else:
        split = whole("split_step", phases.split_step, 0) * num_branches
        if split > total:
            raise WanlabError(f"split_step {phases.split_step} of {num_steps} steps", remedy="Give 0 to num_steps")
        if phases.keep_first:
            forced = forward < np.trunc(split + (total - split) * kept)
        else:
            second = (forward >= split) & (forward <= (total - split) * kept + split)
            forced = (forward < np.trunc(split * kept)) | second
    return ~forced.reshape(len(kept), num_steps, num_branches)


def walk(ratios: Floats, usable: Mask, starts: Mask, threshold: Floats, max_skip: NDArray[Any]) -> Mask:
    """The rule, step by step, for N settings: (N, num_steps, num_branches), True = computed.

    ratios, starts: (num_steps, num_branches); at a start there is nothing to reuse. usable: (N, num_steps,
    num_branches), or 1 for N. Where a forward is not usable the sums stay as they are, as in the scripts.
    """
    num, (num_steps, num_branches) = len(threshold), ratios.shape
    limit, longest = threshold[:, None], max_skip[:, None]
    product, error = np.ones((num, num_branches)), np.zeros((num, num_branches))
    length = np.zeros((num, num_branches), int)
    computed = np.ones((num, num_steps, num_branches), bool)
    for step in range(num_steps):
        asked = np.broadcast_to(usable[:, step], product.shape)
        if not asked.any():
            continue
        product = np.where(asked, product * ratios[step], product)
        error = error + np.where(asked, np.abs(1 - product), 0)
        length = length + asked
        skip = asked & (error < limit) & (length <= longest) & ~starts[step]
        ended = asked & ~skip
        product[ended], error[ended], length[ended] = 1, 0, 0
        computed[:, step] = ~skip
    return computed


def smart_threshold(
    mag_ratios: ArrayLike, num_steps: int, speedup: float, *, max_skip: int = 2, start_step: int = 0
) -> float:
    """The threshold that WanGP finds for a wanted speed-up, by the conditional forwards; see `search`.

    Steps up to and with `start_step` compute.
    """
    return _search(ratios_by_step(mag_ratios, num_steps, 2)[:, :1], speedup, max_skip, start_step)


def _search(ratios: Floats, speedup: float, max_skip: int, start_step: int) -> float:
    num_steps = len(ratios)
    usable = (np.arange(num_steps) > start_step)[None, :, None]

    def count(thresholds: Floats) -> NDArray[np.int64]:
        longest = np.full(len(thresholds), max_skip)
        return walk(ratios, usable, np.zeros(ratios.shape, bool), thresholds, longest).sum((1, 2))

    return search(count, num_steps, speedup)


@CACHES.register("magcache")
class MagCache(Static):
    """Reuse the residual while its known growth, summed up, stays below `threshold`; threshold=0 is exact.

    The definition's constants "mag_ratios" hold the list; of two experts one list covers both. In a run that starts
    later (denoising_strength) the list's last part is used. With `speedup` the threshold is searched as WanGP does.
    """

    key = "mag_ratios"
    given = "mag_ratios"
    options: Options

    class Options(Part):
        """The published settings: threshold 0.12 with max_skip 2 or 4, 0.24 with 6."""

        threshold: NonNegativeFloat = 0.12
        """Error that may add up before a step computes again."""
        max_skip: NonNegativeInt = 2
        """The most forwards of a branch in a row that reuse."""
        retention: float = Field(0.2, ge=0, le=1)
        """Share of the forwards, from the first on, that all compute."""
        paper_sqrt: bool = False
        """Take the ratios' square root: the paper's figures are made so, the published code is not."""
        speedup: float | None = Field(None, ge=1.5, le=2.5)
        """The speed-up wanted, WanGP's way: threshold and retention then have no use."""
        start_percent: float = Field(0.0, ge=0, le=100)
        """With `speedup`: percent of the steps, from the first on, that all compute."""
        mag_ratios: tuple[PositiveFloat, ...] | None = None
        """As published, branches interleaved from the second step on; None is the definition's."""
        num_branches: int = Field(2, ge=1, le=2)
        """Branches that are interleaved in `mag_ratios`."""
        keep_first_phase: bool | None = None
        """Whether the first of two experts computes everything; None is the definition's word."""
        made_for: MadeFor | None = None
        """What `mag_ratios` were measured with."""
        strict: bool = False
        """Raise where constants were measured with other settings, instead of warning."""

        @model_validator(mode="after")
        def _check_use(self) -> Self:
            unused(self, ("threshold", "retention") if self.speedup is not None else ("start_percent",))
            unused(self, () if self.mag_ratios is not None else ("num_branches", "made_for"))
            return self

    def masks(self, run: Run) -> dict[str, Mask]:
        return self._masks(run, self._threshold(run))

    def most(self, run: Run) -> dict[str, Mask]:
        return self._masks(run, np.inf)

    def _masks(self, run: Run, threshold: float) -> dict[str, Mask]:
        ratios, usable = self._ratios(run), self._usable(run)
        longest = np.array([self.options.max_skip])

        def one(span: Span, column: int) -> Mask:
            inside, starts = np.zeros((1, run.num_steps, 1), bool), np.zeros((run.num_steps, 1), bool)
            inside[:, span.steps.start : span.steps.stop] = True
            starts[span.steps.start] = True
            pick = slice(column, column + 1)
            allowed = usable[:, :, pick] & inside
            return walk(ratios[:, pick], allowed, starts, np.array([threshold]), longest)[0, :, 0]

        return joined(run, one, ratios.shape[1])

    def _threshold(self, run: Run) -> float:
        """The option, or what `speedup` finds."""
        if self.options.speedup is None:
            return self.options.threshold
        return _search(self._ratios(run)[:, :1], self.options.speedup, self.options.max_skip, self._start(run))

    def _start(self, run: Run) -> int:
        return int(self.options.start_percent * run.num_steps / 100)

    def _usable(self, run: Run) -> Mask:
        num_branches = self._ratios(run).shape[1]
        if self.options.speedup is not None:
            late = np.arange(run.num_steps) > self._start(run)
            return np.broadcast_to(late[None, :, None], (1, run.num_steps, num_branches))
        keep = self.options.keep_first_phase
        if keep is None:
            keep = bool((run.constants.get(self.key) or {}).get("keep_first_phase", False))
        phases = Phases(run.split_step, keep)
        return usable_steps(np.array([self.options.retention]), run.num_steps, num_branches, phases)

    def _ratios(self, run: Run) -> Floats:
        """(num_steps, branches) of the steps that run."""
        ratios, num_branches = self._list(run)
        sampling = run.spec.sampling
        num_steps = sampling.num_steps if sampling.sigmas is None else run.num_steps
        found = ratios_by_step(ratios, num_steps, num_branches, self.options.paper_sqrt)
        return found[num_steps - run.num_steps :]

    def _list(self, run: Run) -> tuple[Sequence[float], int]:
        if self.options.mag_ratios is not None:
            return self.options.mag_ratios, self.options.num_branches
        entry = self.entry(run)
        with_image = entry.get("with_image") if run.spec.media.image is not None else None
        return with_image or entry["ratios"], int(entry.get("num_branches", 2))
