"""What running a grid will take, before anything is loaded: forwards, seconds, bytes, each with where it comes from."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wanlab import caches, models, pipeline
from wanlab.errors import WanlabError, shorten
from wanlab.models import Model
from wanlab.registry import late
from wanlab.spec import GenerationSpec
from wanlab.study._cards import Card, chosen_card
from wanlab.study._estimate import _bytes
from wanlab.sweeps import _table
from wanlab.sweeps._costs import Cost, History, kind_of
from wanlab.sweeps._points import placed

if TYPE_CHECKING:
    from wanlab.sweeps._grid import Grid

_forecast = late("wanlab.sweeps._plan", "forecast")


@dataclass(frozen=True)
class Preview:
    """What `grid.preview()` returns; shows itself as a table of the points and one of what they take."""

    title: str
    rows: list[dict[str, Any]]
    """A point each: `id`, `label`, the settings that differ as words, `forwards`, `seconds` and `cache_bytes` of its
    own; None where a figure is unknown."""
    alone: int
    """Forwards that are computed when the points run one by one."""
    shared: int
    """The same when they share what they agree in."""
    groups: tuple[tuple[int, ...], ...]
    """Points that share at least their first step, by their places in the grid; single ones too."""
    unknown: tuple[int, ...]
    """Points whose cache decides only while it runs: they count as computed, and as sharing nothing there."""
    seconds: float | None
    """Of denoising, with sharing, one after another; None where it is unknown."""
    seconds_alone: float | None
    seconds_words: str
    """Where the seconds come from, or why there are none."""
    latents_bytes: int
    """Of all latents on disk."""
    clips: Cost
    """Bytes of all clips on disk."""
    cache_bytes: int
    """The most that the state of one point's cache holds."""
    cache_words: str
    columns: tuple[str, ...] = ()
    """The settings that differ."""

    @property
    def share_saved(self) -> float:
        """Share of the forwards that sharing saves, 0 to 1."""
        return 1 - self.shared / self.alone if self.alone else 0.0

    def _figures(self) -> Iterator[tuple[str, str]]:
        groups = "1 group" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        yield "forwards", f"{self.alone:,} one by one, {self.shared:,} shared in {groups}: {self.share_saved:.0%} saved"
        if self.unknown:
            points = (
                "1 point's cache decides" if len(self.unknown) == 1 else f"{len(self.unknown)} points' caches decide"
            )
            yield "unknown", f"{points} only while running, counted as computed and separate: it may be fewer"
        if self.seconds is None or self.seconds_alone is None:
            yield "denoising", self.seconds_words
        else:
            times = f"{_time(self.seconds_alone)} one by one, {_time(self.seconds)} shared"
            yield "denoising", f"{times}; {self.seconds_words}"
        yield "latents on disk", f"{_bytes(self.latents_bytes)}, float32"
        value = self.clips.value
        yield "clips on disk", self.clips.words if value is None else f"{_bytes(int(value))}, {self.clips.words}"
        yield "cache in memory", f"{_bytes(self.cache_bytes)} at the most{self.cache_words}"

    def __str__(self) -> str:
        listed = [{name: row[name] for name in self.columns} for row in self.rows]
        figures = [f"  {name:<15}  {words}" for name, words in self._figures()]
        return "\n".join([self.title, *(f"  {line}" for line in _table.text_table(listed)), *figures])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names = (*self.columns, "forwards", "seconds")
        listed = [{n: _shown(row[n]) for n in names} for row in self.rows]
        left = 'style="text-align:left"'
        figures = "".join(
            f"<tr><th {left}>{html.escape(name)}</th><td {left}>{html.escape(words)}</td></tr>"
            for name, words in self._figures()
        )
        table = _table.html_table(listed, len(listed))
        return f"<b>{html.escape(self.title)}</b><table>{figures}</table>{table}"


@dataclass(frozen=True)
class _Kind:
    """Points of one model and size, and what one forward of them takes."""

    model: Model
    places: list[int]
    specs: list[GenerationSpec]
    forward: Cost
    clip: Cost
    latents_bytes: int


def check(grid: Grid, model: Any) -> None:
    """`Grid.check`."""
    described = _Described(_given(model), None)
    for spec, label in zip(grid.specs, grid.labels, strict=True):
        _checked(described, spec, label)


def preview(grid: Grid, model: Any, card: str | Card | None, out: str | Path | None) -> Preview:
    """`Grid.preview`."""
    model = _given(model)
    chosen, _ = chosen_card(card, torch.device("cpu") if model is None else model.device)
    history = History(out, None if model is None else model.device, card if card is None else chosen or card)
    described = _Described(model, chosen if card is not None else None)
    checked = [_checked(described, spec, label) for spec, label in zip(grid.specs, grid.labels, strict=True)]
    kinds = _kinds(grid.specs, checked, history)
    own = [kinds[_key(found, resolved)] for found, resolved in checked]
    rows = _rows(grid, checked, own)
    largest = max(rows, key=lambda row: row["cache_bytes"])
    where = f" ({largest['label']})" if largest["cache_bytes"] else ": no point has a cache that holds something"
    return Preview(
        title=repr(grid).removeprefix("Grid(").removesuffix(")"),
        rows=rows,
        **_shared([*kinds.values()]),
        seconds_words=_said([kind.forward for kind in kinds.values()]),
        latents_bytes=sum(kind.latents_bytes for kind in own),
        clips=Cost(_sum(kind.clip.value for kind in own), _said([kind.clip for kind in own])),
        cache_bytes=largest["cache_bytes"],
        cache_words=where,
        columns=tuple(grid.rows[0]),
    )


def _rows(grid: Grid, checked: Sequence[tuple[Model, GenerationSpec]], own: Sequence[_Kind]) -> list[dict[str, Any]]:
    """What `Preview.rows` is; `own` are the points' kinds."""
    known: dict[tuple[Any, ...], tuple[int, int]] = {}
    rows: list[dict[str, Any]] = []
    for i, (model, resolved) in enumerate(checked):
        key = (_key(model, resolved), resolved.sampling.with_(seed=0), resolved.guidance, resolved.cache)
        if key not in known:  # neither the seed nor what the text says matters
            known[key] = (_forecast(model, [grid.specs[i]]).alone, caches.predict_bytes(model, resolved))
        forwards, held = known[key]
        row = {"id": grid.ids[i], "label": grid.labels[i], **grid.rows[i], "forwards": forwards}
        rows.append(row | {"seconds": _times(forwards, own[i].forward), "cache_bytes": held})
    return rows


def _shared(kinds: Sequence[_Kind]) -> dict[str, Any]:
    """Forwards, groups and seconds with sharing and without: points of different kinds share nothing."""
    forecasts = [_forecast(kind.model, kind.specs) for kind in kinds]
    pairs = list(zip(kinds, forecasts, strict=True))
    return {
        "alone": sum(f.alone for f in forecasts),
        "shared": sum(f.shared for f in forecasts),
        "groups": tuple(tuple(kind.places[i] for i in group) for kind, f in pairs for group in f.groups),
        "unknown": tuple(kind.places[i] for kind, f in pairs for i in f.unknown),
        "seconds": _sum(_times(f.shared, kind.forward) for kind, f in pairs),
        "seconds_alone": _sum(_times(f.alone, kind.forward) for kind, f in pairs),
    }


def _given(model: Any) -> Model | None:
    if model is not None and not isinstance(model, Model):
        remedy = "Give what wanlab.load(...) returns, or leave it out"
        raise WanlabError(f"{shorten(model, 60)} is no loaded model", remedy=remedy)
    return model


class _Described:
    """The model of each spec: the one that is given, else described as its weights say, once."""

    def __init__(self, model: Model | None, card: Card | None) -> None:
        self._model, self._card = model, card
        self._device = "auto" if card is None else "cpu"
        self._known: dict[tuple[Any, ...], Model] = {}

    def of(self, spec: GenerationSpec) -> Model:
        if self._model is not None and spec.model == self._model.id:
            return self._model
        leaves = {name: getattr(spec.weights, name) for name in type(spec.weights).model_fields}
        if self._card is not None:  # models are loaded on such cards like this, whatever is here
            leaves |= {name: "bfloat16" for name in ("dtype", "vae_dtype") if leaves[name] == "auto"}
        key = (spec.model, *leaves.values())
        if key not in self._known:
            self._known[key] = models.describe(spec.model, device=self._device, **leaves)
        return self._known[key]


def _checked(described: _Described, spec: GenerationSpec, label: str) -> tuple[Model, GenerationSpec]:
    """The point's model and resolved spec; raises WanlabError, with the point, for what would not run."""
    try:
        model = described.of(spec)
        return model, pipeline.checked(model, spec)
    except WanlabError as error:
        raise placed(error, f"Point {label}") from None


def _key(model: Model, resolved: GenerationSpec) -> tuple[Any, ...]:
    return id(model), *kind_of(resolved)


def _kinds(
    specs: Sequence[GenerationSpec], checked: Sequence[tuple[Model, GenerationSpec]], history: History
) -> dict[tuple[Any, ...], _Kind]:
    found: dict[tuple[Any, ...], _Kind] = {}
    for i, (spec, (model, resolved)) in enumerate(zip(specs, checked, strict=True)):
        key = _key(model, resolved)
        if key not in found:
            latents = 4 * math.prod(model.latent_shape(resolved))
            found[key] = _Kind(model, [], [], history.forward(model, resolved), history.clip(resolved), latents)
        found[key].places.append(i)
        found[key].specs.append(spec)
    return found


def _times(count: int, cost: Cost) -> float | None:
    return None if cost.value is None else count * cost.value


def _sum(values: Any) -> float | None:
    listed = list(values)
    return None if None in listed else math.fsum(listed)


def _said(costs: Sequence[Cost]) -> str:
    """Where figures come from, each source once; why there are none if one is missing."""
    missing = [cost for cost in costs if cost.value is None]
    return "; ".join(dict.fromkeys(cost.words for cost in missing or costs))


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
