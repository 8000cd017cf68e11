"""Grids of specs: written in a line, checked when they are made, listed before anything runs."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from wanlab import catalog, runs
from wanlab.errors import WanlabError, shorten
from wanlab.spec import GenerationSpec, plain
from wanlab.sweeps import _points, _table
from wanlab.sweeps._points import Settings, Zip
from wanlab.sweeps._settings import Cleaner, agrees, changes, clean_axis, looked_up, spec_at, with_frames

if TYPE_CHECKING:
    from wanlab.runs import Point
    from wanlab.sweeps._preview import Preview

SCHEMA = 1
KIND = "specs"
_DOCUMENT = ("schema", "kind", "base")


def grid(base: Any, /, *zips: Zip, **axes: Any) -> Grid:
    """Every combination of the values of some settings: grid(spec, cache=["none", "magcache"], seed=seeds(4)).

    base: a spec, a loaded model or a model's id (its default spec). Any setting of a spec is an axis, an option as
    `cache__threshold`; the last axis varies fastest, `zip_(...)` gives axes that go together. A single value is fixed
    for all points: text, a number, None, a dict {"method": ...}, a picture. Media are stored at once, frames as they
    play at the base's fps. Raises WanlabError, with axis, value and point, for a spec that cannot be.
    """
    if wrong := [z for z in zips if not isinstance(z, Zip)]:
        raise WanlabError(
            f"grid got {shorten(wrong[0], 60)} after its base", remedy="Give zip_(...) there, and axes by name"
        )
    start = _base(base)
    return Grid(start, _points.product(zips, with_frames(axes), Cleaner(start)))


@overload
def zip_(base: None = None, /, **axes: Any) -> Zip: ...
@overload
def zip_(base: Any, /, **axes: Any) -> Grid: ...
def zip_(base: Any = None, /, **axes: Any) -> Zip | Grid:
    """Axes whose values go together, as one axis of a grid: grid(spec, zip_(width=[480, 832], height=[832, 480])).

    With a base they are a whole grid. Raises WanlabError for axes of different lengths.
    """
    found = Zip.of(with_frames(axes))
    return found if base is None else grid(base, found)


class Grid(Sequence[GenerationSpec]):
    """Specs that differ in some settings, each once, in a fixed order; never changes.

    `grid + grid`, `where`, `skip` and `seeds` make other grids; `preview` says what it will take.
    """

    def __init__(self, base: GenerationSpec, settings: Iterable[Settings]) -> None:
        """One point for each dict of settings (flat names, JSON values) that `base` is changed by."""
        listed = list(settings)
        self._fill(base, ((s, spec_at(base, s, i, len(listed))) for i, s in enumerate(listed)))

    def _fill(self, base: GenerationSpec, points: Iterable[tuple[Settings, GenerationSpec]]) -> None:
        kept: dict[str, tuple[Settings, GenerationSpec]] = {}
        for settings, spec in points:
            kept.setdefault(spec.id, (settings, spec))
        if not kept:
            raise WanlabError("The grid has no point left", remedy="Skip less, or ask for less in where")
        _points.check_count(len(kept))
        self._base, self._ids = base, tuple(kept)
        self._settings = tuple(settings for settings, _ in kept.values())
        self._specs = tuple(spec for _, spec in kept.values())

    @classmethod
    def _of(cls, base: GenerationSpec, points: Iterable[tuple[Settings, GenerationSpec]]) -> Grid:
        made = cls.__new__(cls)
        made._fill(base, points)
        return made

    @property
    def base(self) -> GenerationSpec:
        """What the points are changes of."""
        return self._base

    @property
    def specs(self) -> tuple[GenerationSpec, ...]:
        """The points."""
        return self._specs

    @property
    def ids(self) -> tuple[str, ...]:
        """`spec.id` of each point."""
        return self._ids

    @property
    def names(self) -> tuple[str, ...]:
        """Settings that the axes set, by flat name, in the order of the axes."""
        return tuple(dict.fromkeys(name for settings in self._settings for name in settings))

    def settings(self, i: int) -> Settings:
        """What the axes set for point `i`: `grid.base.with_(**grid.settings(i))` is `grid[i]`. Values are JSON."""
        return plain(self._settings[i])  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._specs)

    @overload
    def __getitem__(self, i: int) -> GenerationSpec: ...
    @overload
    def __getitem__(self, i: slice) -> Grid: ...
    def __getitem__(self, i: int | slice) -> GenerationSpec | Grid:
        if isinstance(i, slice):
            return Grid._of(self._base, list(self._pairs())[i])
        return self._specs[i]

    def _pairs(self) -> Iterator[tuple[Settings, GenerationSpec]]:
        return zip(self._settings, self._specs, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return (self._base, self._settings, self._specs) == (other._base, other._settings, other._specs)

    def __hash__(self) -> int:
        return hash((self._base.id, self._ids))

    def __add__(self, other: Grid) -> Grid:
        """The points of both; settings of one with another base are all that differs from this one's."""
        if not isinstance(other, Grid):
            return NotImplemented
        is_same = self._base == other._base
        theirs = [(s if is_same else changes(self._base, spec), spec) for s, spec in other._pairs()]
        return Grid._of(self._base, [*self._pairs(), *theirs])

    def where(self, predicate: Callable[[GenerationSpec], bool]) -> Grid:
        """The points that `predicate(spec)` is true of. Raises WanlabError if it fails, or says anything but a bool."""
        return Grid._of(self._base, [p for i, p in enumerate(self._pairs()) if self._asked(predicate, i)])

    def _asked(self, predicate: Callable[[GenerationSpec], bool], i: int) -> bool:
        place = f"where: the predicate, at point {i + 1} of {len(self)} ({self._words(i)})"
        try:
            answer = predicate(self._specs[i])
        except Exception as error:
            raise WanlabError(f"{place}, raised {type(error).__name__}: {error}", remedy="It gets a spec") from error
        if type(answer).__name__ not in ("bool", "bool_"):  # numpy's too
            raise WanlabError(f"{place}, returned {shorten(answer, 60)}", remedy="Return True or False")
        return bool(answer)

    def _words(self, i: int) -> str:
        return ", ".join(f"{name}={shorten(value, 40)}" for name, value in self._settings[i].items()) or "the base"

    def skip(self, *others: Grid, **settings: Any) -> Grid:
        """The points but those of other grids and those that agree in all of the settings given.

        A list is any of its values: skip(cache="teacache", seed=[2, 3]); a method's name is it with whatever options.
        Raises WanlabError for a misspelt name, and where that leaves out nothing.
        """
        if wrong := [o for o in others if not isinstance(o, Grid)]:
            raise WanlabError(f"skip got {shorten(wrong[0], 60)}", remedy="Give settings by name, or a grid")
        gone = {i for other in others for i in other._ids}
        if others and not gone & set(self._ids):
            raise WanlabError("skip: none of the points is in the other grid", remedy="Give a grid that has some")
        pairs = [pair for pair, i in zip(self._pairs(), self._ids, strict=True) if i not in gone]
        if settings or not others:
            clean = Cleaner(self._base)
            wanted = dict(clean_axis(clean, name, values) for name, values in settings.items())
            kept = _points.left([looked_up(spec, wanted) for _, spec in pairs], wanted, agrees)
            pairs = [pairs[i] for i in kept]
        return Grid._of(self._base, pairs)

    def seeds(self, n: int) -> Grid:
        """Each point with `n` seeds, from its own on."""
        offsets = _points.seeds(n)
        _points.check_count(n * len(self))
        pairs = [(s, spec.sampling.seed + k) for s, spec in self._pairs() for k in offsets]
        return Grid(self._base, [{**s, "seed": seed} for s, seed in pairs])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A short text for each point, what it differs in; no two are the same."""
        return tuple(_table.labels(self.rows))

    @cached_property
    def rows(self) -> tuple[dict[str, str], ...]:
        """The table of what differs: of each point its settings in words."""
        return tuple(_table.cells(self._specs, self._settings, self.names))

    def _title(self) -> str:
        axes = ", ".join(f"{name} ({len({row[name] for row in self.rows})})" for name in self.rows[0])
        points = "1 point" if len(self) == 1 else f"{len(self):,} points"
        return f"{points} of {self._base.model}" + (f" over {axes}" if len(self) > 1 else "")

    def __repr__(self) -> str:
        return f"Grid({self._title()})"

    def _repr_html_(self) -> str:
        """The points as a table of what differs, the first 50."""
        return f"<p>{html.escape(self._title())}</p>{_table.html_table(self.rows, len(self))}"

    def check(self, model: Any = None) -> None:
        """Raise WanlabError, with the point, for the first one that its model cannot follow; loads nothing.

        model: a loaded one, for what is not in the catalogue; None describes each spec's.
        """
        from wanlab.sweeps._preview import check  # imports torch

        check(self, model)

    def preview(self, model: Any = None, card: Any = None, out: str | Path | None = None) -> Preview:
        """What running the grid will take: forwards alone and shared, seconds, bytes; nothing is loaded.

        model: a loaded one, for what is not in the catalogue; None describes each spec's. card: the GPU that floors of
        time are for, e.g. "H100"; None is the present one. out: a folder whose runs tell how long such ones took.
        Raises WanlabError, with the point, for one that its model cannot follow.
        """
        from wanlab.sweeps._preview import preview  # imports torch

        return preview(self, model, card, out)

    def points(self) -> tuple[Point, ...]:
        """The points as a sweep's file has them; their folders are unknown."""
        pairs = zip(self._ids, self._pairs(), strict=True)
        return tuple(runs.Point(id=i, settings=settings, spec=spec.to_dict()) for i, (settings, spec) in pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON data that `from_dict` makes an equal grid of."""
        points = [self.settings(i) for i in range(len(self))]
        return {"schema": SCHEMA, "kind": KIND, "base": self._base.to_dict(), "points": points}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Grid:
        """Read what `to_dict` wrote, or what a person did.

        {"base": {"model": "wan_tiny", "prompt": "..."}, "grid": {"cache": ["none", "magcache"]}, "zip": [{...}],
        "plus": [{"grid": {...}}], "skip": [{...}], "points": [{...}]}: the product of the grid and the zips, with the
        points of each document in `plus` and the settings in `points`, without those that a `skip` names. Media are
        MediaRefs there: a document names no files. Raises WanlabError for unknown keys and whatever `grid` refuses.
        """
        return read_grid(document)


def _base(what: Any) -> GenerationSpec:
    """The spec that a grid starts from, its model by its id."""
    if isinstance(what, GenerationSpec):
        return _canonical(what)
    if isinstance(what, str):
        return catalog.default_spec(catalog.find(what))
    if callable(getattr(what, "spec", None)) and hasattr(what, "canonical"):
        return what.spec()  # type: ignore[no-any-return]
    remedy = "Give a spec, a loaded model, or the id of a model"
    raise WanlabError(f"A grid cannot start from {shorten(what, 80)}", remedy=remedy)


def _canonical(spec: GenerationSpec) -> GenerationSpec:
    """The spec with its model's id in place of an alias, as runs have it; models unknown here stay."""
    try:
        known = catalog.find(spec.model).id
    except WanlabError:
        return spec
    return spec if known == spec.model else spec.with_(model=known)


def read_grid(document: Mapping[str, Any]) -> Grid:
    """`Grid.from_dict`."""
    parts = _points.sections(document, "The grid", _DOCUMENT)
    for key, legal in (("schema", SCHEMA), ("kind", KIND)):
        if document.get(key, legal) != legal:
            raise WanlabError(f"The grid has {key} {shorten(document[key], 40)}", choices=[legal])
    if "base" not in document:
        raise WanlabError("The grid has no base", remedy='Give "base": {"model": "wan_tiny", "prompt": "..."}')
    return _combined(_read_base(document["base"]), parts, "The grid")


def _read_base(base: Any) -> GenerationSpec:
    if isinstance(base, Mapping) and "schema" in base:
        return _canonical(GenerationSpec.from_json(base))
    if not isinstance(base, Mapping) or "model" not in base:
        raise WanlabError(
            f"The grid's base is {shorten(base, 60)}", remedy='Give {"model": "wan_tiny", "prompt": "..."}'
        )
    start = _base(base["model"])
    clean = Cleaner(start, is_document=True)
    return start.with_(**dict(clean(name, value) for name, value in base.items() if name != "model"))


def _combined(base: GenerationSpec, parts: _points.Sections, place: str) -> Grid:
    """The grid of a document and of those in its `plus`."""
    clean = Cleaner(base, is_document=True)
    made = [Grid(base, _points.product(parts.zips, parts.axes, clean))] if parts.has_product else []
    for i, more in enumerate(parts.plus):
        inner = f"{place}, plus[{i}]"
        made.append(_combined(base, _points.sections(more, inner), inner))
    if parts.points:
        made.append(Grid(base, [dict(clean(name, value) for name, value in p.items()) for p in parts.points]))
    found = Grid._of(base, [pair for part in made for pair in part._pairs()])
    for skip in parts.skip:
        found = found.skip(**skip)
    return found
