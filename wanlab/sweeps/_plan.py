"""Which steps several runs share: a tree of segments, known before anything runs, and the forwards that it saves."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wanlab.spec import GenerationSpec
from wanlab.sweeps._variant import Variant


@dataclass(frozen=True)
class Segment:
    """Steps [start, stop) that some variants take together; what they do then are its `children`."""

    start: int
    stop: int
    keys: tuple[str, ...]
    computed: int
    """Forwards of these steps whose blocks run, those of one batch one by one; all where that is open."""
    children: tuple[Segment, ...] = ()

    @property
    def total(self) -> int:
        """`computed`, with all that follows."""
        return self.computed + sum(child.total for child in self.children)


@dataclass(frozen=True)
class Forecast:
    """How many forwards several runs take whose blocks run, as `Estimate.computed_forwards` counts them."""

    alone: int
    """One by one."""
    shared: int
    """Sharing what is known to be equal beforehand."""
    groups: tuple[tuple[int, ...], ...]
    """Indices of specs that share at least their first step; single ones too."""
    unknown: tuple[int, ...] = ()
    """Indices of specs whose cache decides during the run. Here it computes everything, and shares nothing with others
    where it may decide: the run takes at most so many."""

    @property
    def ratio(self) -> float:
        """shared / alone."""
        return self.shared / self.alone if self.alone else 1.0


def plan(model: Any, variants: Mapping[str, GenerationSpec]) -> tuple[Segment, ...]:
    """The trees of what the variants share, one for each first step; `model` may be described only.

    Raises WanlabError for a spec that the model cannot follow.
    """
    return tuple(_trees([Variant(model, key, spec) for key, spec in variants.items()]))


def forecast(model: Any, specs: Sequence[GenerationSpec]) -> Forecast:
    """What the specs take, one by one and sharing; loads nothing of a described model.

    Raises WanlabError for a spec that the model cannot follow.
    """
    variants = [Variant(model, str(i), spec) for i, spec in enumerate(specs)]
    trees = _trees(variants)
    return Forecast(
        alone=sum(sum(variant.computed) for variant in variants),
        shared=sum(tree.total for tree in trees),
        groups=tuple(tuple(map(int, tree.keys)) for tree in trees),
        unknown=tuple(i for i, variant in enumerate(variants) if not variant.is_known),
    )


def _trees(variants: Sequence[Variant]) -> list[Segment]:
    groups: dict[Hashable, list[Variant]] = {}
    for variant in variants:
        groups.setdefault((variant.group, variant.apart[0]), []).append(variant)
    return [_segment(group, 0) for group in groups.values()]


def _segment(variants: list[Variant], start: int) -> Segment:
    """The longest segment that variants take together from a step that they share."""
    first, stop = variants[0], start + 1
    parts = [variants]
    while stop < first.num_steps and len(parts := _apart(variants, stop)) == 1:
        stop += 1
    children = () if stop == first.num_steps else tuple(_segment(part, stop) for part in parts)
    return Segment(start, stop, tuple(v.key for v in variants), sum(first.computed[start:stop]), children)


def _apart(variants: Sequence[Variant], step: int) -> list[list[Variant]]:
    found: dict[Hashable, list[Variant]] = {}
    for variant in variants:
        found.setdefault(variant.apart[step], []).append(variant)
    return list(found.values())
