"""What methods share whose signal depends on no content: published constants, who they fit, the mask before the run."""

from __future__ import annotations

import abc
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.caches._cache import Cache
from wanlab.caches._run import Run
from wanlab.caches._size import residual_bytes
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError, shorten
from wanlab.spec import Part

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class ConstantsWarning(UserWarning):
    """A cache's constants were measured under other settings than those of the run."""


class MadeFor(Part):
    """What constants were measured with; None is not known."""

    model: str | None = None
    sampler: str | None = None
    num_steps: int | None = None
    flow_shift: float | None = None


@dataclass(frozen=True)
class Span:
    """Consecutive steps in which one forward runs on one expert, with the same blocks.

    Between two of them a residual grows too old, or other blocks gave it.
    """

    name: str
    """The clock's name of the branch, "cond+uncond" where branches run as one."""
    expert: str
    steps: range


def spans(run: Run) -> list[Span]:
    """The spans of a run; the first forward of each has nothing to reuse, so it computes whatever a rule says."""
    steps: dict[tuple[str, str], list[int]] = {}
    for step, expert, name in run.forwards:
        steps.setdefault((name, expert), []).append(step)
    found = []
    for (name, expert), taken in steps.items():
        starts = [i for i in taken if i - 1 not in taken or (i, name) in run.begins]
        ends = [i for i in taken if i + 1 not in taken or i + 1 in starts]
        found += [Span(name, expert, range(start, end + 1)) for start, end in zip(starts, ends, strict=True)]
    return found


def columns(run: Run, name: str, num_columns: int) -> list[int]:
    """Which columns of constants that were measured by branch hold for a forward: one for each branch that it joins.

    The first branch of the run (the conditional one) takes the first. The second was measured on the unconditional
    forwards and is the only other one there is, so every other branch takes it.
    """
    first = run.branch_names[0]
    return [0 if part == first else min(1, num_columns - 1) for part in name.split("+")]


class Static(Cache):
    """A method that knows its steps before the run and lowers to `Fixed`.

    Its options have `made_for` and `strict`, and it overrides `masks` and `entry`.
    """

    key: str = ""
    """Under which the definition's constants hold what the method needs."""
    given: str = ""
    """The option that replaces the definition's."""

    @abc.abstractmethod
    def masks(self, run: Run) -> dict[str, Mask]:
        """For every name that forwards of the run have, (num_steps,) True = computed; True where it does not run.

        Raises WanlabError where constants are missing or do not fit.
        """

    @abc.abstractmethod
    def most(self, run: Run) -> dict[str, Mask]:
        """The same when everything is skipped that the options allow to skip."""

    def check(self, run: Run) -> None:
        self._check_constants(run)
        if all(mask.all() for mask in self.most(run).values()):
            raise WanlabError(
                f"{self.method} computes all of these {run.num_steps} steps, whatever the threshold: they are too few, "
                "or none may be skipped",
                remedy="Give more steps, a shorter warm-up, or set cache to none",
            )

    def prepare(self, run: Run) -> Cache:
        masks = {name: tuple(mask.tolist()) for name, mask in self.masks(run).items()}
        first = masks[run.forwards[0][2]]
        return Fixed(Fixed.Options(mask=first, branch_masks={k: v for k, v in masks.items() if v != first}))

    def predict(self, run: Run) -> int:
        return residual_bytes(run)

    def forced(self, run: Run) -> Mapping[str, list[bool]] | None:
        return {name: mask.tolist() for name, mask in self.most(run).items()}

    # Constants

    def entry(self, run: Run) -> Mapping[str, Any]:
        """What the definition has for this method. Raises WanlabError where it has nothing."""
        found: Mapping[str, Any] | None = run.constants.get(self.key)
        if found is None:
            raise WanlabError(
                f"The cache {self.method} needs constants that were measured on the network, and none are known for "
                f"{run.model.id}",
                remedy=f"Measure them: wanlab.study.calibrate(model, prompts, {self.method!r}). Or give {self.given}",
            )
        return found

    def _check_constants(self, run: Run) -> None:
        """Raise WanlabError for constants that are missing or another model's; warn, or raise under `strict`, where
        they were measured with other settings."""
        is_given = getattr(self.options, self.given) is not None
        entry = {} if is_given else self.entry(run)
        made = self.options.made_for if is_given else MadeFor(**entry.get("made_for", {}))
        if made is None:
            return
        own = made.model in (None, run.model.id, *run.model.definition.aliases) or run.model.id in entry.get("also", ())
        if is_given and not own:
            raise WanlabError(
                f"These {self.given} were made for {made.model}, and the model is {run.model.id}",
                remedy=f"Calibrate {run.model.id}, or leave made_for out to use them all the same",
            )
        sampling = run.spec.sampling
        other = [] if own else [f"model {made.model} instead of {run.model.id}"]
        for name in ("sampler", "num_steps", "flow_shift"):
            wanted, have = getattr(made, name), getattr(sampling, name)
            if wanted is not None and wanted != have:
                other.append(f"{name} {wanted} instead of {have}")
        if other:
            self._tell(f"The constants of {self.method} were measured with {', '.join(other)}")

    def _tell(self, problem: str) -> None:
        remedy = f"wanlab.study.calibrate(model, prompts, {self.method!r}) measures them for these settings"
        if self.options.strict:
            raise WanlabError(problem, remedy=remedy)
        warnings.warn(f"{problem}: the plan may skip too much or too little. {remedy}.", ConstantsWarning, stacklevel=4)


def joined(run: Run, walk: Callable[[Span, int], Mask], num_columns: int) -> dict[str, Mask]:
    """Masks by forward from `walk(span, column) -> (num_steps,)`; a joined forward computes where a branch of it
    would."""
    found: dict[str, Mask] = {}
    for span in spans(run):
        mask = found.setdefault(span.name, np.ones(run.num_steps, bool))
        inside = slice(span.steps.start, span.steps.stop)
        parts = [walk(span, column)[inside] for column in dict.fromkeys(columns(run, span.name, num_columns))]
        mask[inside] = np.logical_or.reduce(parts)
    return found


def search(count: Callable[[Floats], NDArray[np.int64]], num_steps: int, speedup: float) -> float:
    """WanGP's threshold for a wanted speed-up: of 0.01, 0.02, ... 0.60 the one whose computed steps are nearest to
    int(num_steps / speedup), the search ending where they move away again.

    `count(thresholds)`: computed steps of each. Source: deepbeepmeep/Wan2GP 8681e9f7, models/wan/modules/model.py:
    1373-1482; thresholds are sums of 0.01 as there.
    """
    thresholds = np.array([t for t in itertools.accumulate([0.01] * 60) if t <= 0.6])
    wanted, best, nearest = int(num_steps / speedup), 0.01, 1000
    for threshold, number in zip(thresholds.tolist(), count(thresholds).tolist(), strict=True):
        distance = abs(wanted - number)
        if distance < nearest:
            best, nearest = threshold, distance
        elif distance > nearest:
            break
    return float(best)


def settings(**values: Any) -> list[NDArray[Any]]:
    """Settings as 1-D arrays of one length. Raises WanlabError for what cannot be brought to one, and for no number."""
    try:
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v)) for v in values.values()))
    except ValueError:
        shapes = ", ".join(f"{k} {np.shape(v)}" for k, v in values.items())
        raise WanlabError(f"The settings have different lengths: {shapes}", remedy="Give N of each, or one") from None
    for name, array in zip(values, arrays, strict=True):
        good = array.ndim == 1 and array.dtype.kind in "iuf" and bool((array >= 0).all())  # False for NaN
        if not good:
            raise WanlabError(f"{name} = {shorten(values[name], 80)}", remedy="Give numbers from 0 on")
    return [np.array(a) for a in arrays]


def whole(name: str, value: int, least: int) -> int:
    """An integer of at least `least`. Raises WanlabError for others."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise WanlabError(f"{name} = {value!r}", remedy=f"Give a whole number from {least} on")
    return int(value)


def unused(options: Part, names: Sequence[str]) -> None:
    """Raise WanlabError for an option that was changed and has no use beside the others."""
    for name in names:
        if getattr(options, name) != type(options).model_fields[name].default:
            raise WanlabError(f"The cache's {name} has no effect beside its other options", remedy=f"Leave {name} out")
