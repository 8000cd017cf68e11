"""The grammar of grids on plain dicts: axes, zips, products, unions and what is skipped. Knows nothing of specs."""

from __future__ import annotations

import itertools
import json
import keyword
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wanlab.errors import WanlabError, shorten, unknown
from wanlab.spec import Part, plain

Settings = dict[str, Any]
Clean = Callable[[str, Any], tuple[str, Any]]
"""`clean(name, value)`: both as a point holds them; raises WanlabError for what cannot be."""

Agree = Callable[[Any, Any], bool]

MOST = 100_000
"""Points of a grid; more are refused before they are made."""
_LISTED = 12  # values repeated in a message
_KEYS = ("grid", "zip", "plus", "skip", "points")


def seeds(n: int, start: int = 0) -> list[int]:
    """`n` seeds in a row, for an axis: grid(spec, seed=seeds(4)). Raises WanlabError for less than one."""
    for name, value, least in (("n", n, 1), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise WanlabError(f"seeds: {name} = {shorten(value)}", remedy=f"Give a whole number from {least} on")
    check_count(n)
    return list(range(start, start + n))


def check_count(count: int) -> None:
    """Raise WanlabError for more points than a grid may have."""
    if count > MOST:
        raise WanlabError(f"The grid would have {count:,} points, at most {MOST:,} are allowed", remedy="Vary less")


def axis(name: str, values: Any) -> tuple[list[Any], bool]:
    """The values of an axis in order, and whether it is one: a single value is fixed for all points.

    Lists, tuples, ranges, arrays and generators are axes; text, numbers, None, dicts, paths, pictures and frames are
    single values. Raises WanlabError for an axis that is empty, without an order or too long.
    """
    if _is_single(values):
        return [values], False
    if isinstance(values, set | frozenset):
        raise WanlabError(f"Axis {name!r} is a set, which has no order", remedy="Give a list")
    found = list(itertools.islice(values, MOST + 1))
    if not found:
        raise WanlabError(f"Axis {name!r} is empty", remedy="Give it at least one value, or leave it out")
    if len(found) > MOST:
        raise WanlabError(f"Axis {name!r} has more than {MOST:,} values", remedy="Vary less")
    return found, True


def _is_single(value: Any) -> bool:
    if isinstance(value, str | bytes | Mapping | Part | os.PathLike) or not isinstance(value, Iterable):
        return True
    return hasattr(value, "convert") or getattr(value, "ndim", 1) not in (1, 2)  # a picture; one number, or frames


@dataclass(frozen=True)
class Zip:
    """Axes that go together: their first values make one point, their second ones another, and so on."""

    axes: dict[str, list[Any]]

    @classmethod
    def of(cls, axes: Mapping[str, Any]) -> Zip:
        """Of axes of one length; single values go with all. Raises WanlabError for different lengths."""
        found = {name: axis(name, values) for name, values in axes.items()}
        lengths = {name: len(values) for name, (values, is_axis) in found.items() if is_axis}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise WanlabError(f"zip_ needs axes of one length: {listed}", remedy="Give each as many values")
        if not found:
            raise WanlabError("zip_ has no axes", remedy="Give some, e.g. zip_(width=[480, 832], height=[832, 480])")
        length = max(lengths.values(), default=1)
        return cls({name: values if is_axis else values * length for name, (values, is_axis) in found.items()})

    def __len__(self) -> int:
        return len(next(iter(self.axes.values())))

    def __repr__(self) -> str:
        return f"zip_({', '.join(f'{name}={shorten(values, 60)}' for name, values in self.axes.items())})"


def product(zips: Sequence[Zip], axes: Mapping[str, Any], clean: Clean) -> list[Settings]:
    """Every combination of the zips and the axes, the last one fastest; no axes at all are one point without settings.

    Raises WanlabError, with the axis and its value, for what `clean` refuses and for names that come twice.
    """
    listed = [*zips, *(Zip({name: axis(name, values)[0]}) for name, values in axes.items())]
    check_count(math.prod(len(z) for z in listed))
    taken: dict[str, str] = {}
    parts: list[list[Settings]] = []
    for part in listed:
        columns = {}
        for name, values in part.axes.items():
            known, columns_of = _cleaned(name, values, clean)
            if known in taken:
                both = f"Axes {taken[known]!r} and {name!r} both set" if taken[known] != name else "Two axes set"
                raise WanlabError(f"{both} {known}", remedy="Vary it in one of them")
            taken[known], columns[known] = name, columns_of
        parts.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return [{k: v for part in chosen for k, v in part.items()} for chosen in itertools.product(*parts)]


def _cleaned(name: str, values: Sequence[Any], clean: Clean) -> tuple[str, list[Any]]:
    """An axis with its name and values as the points hold them."""
    found = []
    for i, value in enumerate(values):
        try:
            known, kept = clean(name, value)
        except WanlabError as error:
            raise placed(error, f"Axis {name!r}, value {i + 1} of {len(values)} ({shorten(value, 80)})") from None
        found.append(kept)
    return known, found


def placed(error: WanlabError, place: str) -> WanlabError:
    """The same error, saying where."""
    return WanlabError(f"{place}: {error.problem}", choices=error.choices, remedy=error.remedy)


def expand(document: Mapping[str, Any]) -> list[Settings]:
    """The points of a grid of plain parameters, as a notebook's: dicts of JSON values, duplicates dropped.

    {"grid": {name: values}, "zip": [{name: values}, ...]} is their product; to it come the points of each document in
    the list "plus" and the ready ones in "points"; "skip", a list of {name: value or values}, leaves out those that
    agree in all its names. A document with none of them is one point without settings. Raises WanlabError for unknown
    keys, names that are no identifiers, and a skip that leaves out nothing.
    """
    points = unique(_expanded(document, "The grid"))
    if not points:
        raise WanlabError("The grid has no point left", remedy="Skip less")
    return points


def _expanded(document: Mapping[str, Any], place: str) -> list[Settings]:
    parts = sections(document, place)
    points = product(parts.zips, parts.axes, _parameter) if parts.has_product else []
    for i, more in enumerate(parts.plus):
        points += _expanded(more, f"plus[{i}]")
    points += [dict(_parameter(name, value) for name, value in point.items()) for point in parts.points]
    check_count(len(points))
    for wanted in parts.skip:
        points = _without(points, wanted)
    return points


@dataclass(frozen=True)
class Sections:
    """What a document says, checked in its form."""

    zips: list[Zip]
    axes: dict[str, Any]
    plus: list[dict[str, Any]]
    skip: list[dict[str, Any]]
    points: list[dict[str, Any]]
    has_product: bool


def sections(document: Any, place: str, also: Sequence[str] = ()) -> Sections:
    """Take a document apart; `also` are keys of the caller. Raises WanlabError for unknown keys and other forms."""
    if not isinstance(document, Mapping):
        raise WanlabError(
            f"{place} is {shorten(document, 60)}", remedy='Give a dict such as {"grid": {"seed": [0, 1]}}'
        )
    for key in document:
        if key not in (*also, *_KEYS):
            raise unknown(f"key of {place[0].lower()}{place[1:]}", key, (*also, *_KEYS))
    axes = document.get("grid", {})
    if not isinstance(axes, Mapping):
        raise WanlabError(f"{place}: grid is {shorten(axes, 60)}", remedy="Give a dict of names and their values")
    zips, plus, skip, points = (_dicts(document.get(key, []), f"{place}: {key}") for key in _KEYS[1:])
    has_product = "grid" in document or "zip" in document or not (plus or points)
    return Sections([Zip.of(z) for z in zips], dict(axes), plus, skip, points, has_product)


def _dicts(values: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, Mapping) for v in values):
        raise WanlabError(f"{place} is {shorten(values, 60)}", remedy="Give a list of dicts")
    return [dict(v) for v in values]


def _parameter(name: str, value: Any) -> tuple[str, Any]:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise WanlabError(f"{shorten(name)} is no name of a parameter", remedy="Give a Python identifier")
    return name, plain(value, name)


def _without(points: list[Settings], skip: Mapping[str, Any]) -> list[Settings]:
    """The points but those that have one of the wanted values for every name of `skip`."""
    wanted = {name: [_parameter(name, v)[1] for v in axis(name, values)[0]] for name, values in skip.items()}
    names = {name for point in points for name in point}
    for name in wanted:
        if name not in names:
            raise unknown("name in skip", name, names)
    return [points[i] for i in left(points, wanted)]


def left(rows: Sequence[Settings], wanted: Mapping[str, Sequence[Any]], agree: Agree | None = None) -> list[int]:
    """Indices of the rows that stay when those go that agree with one of the wanted values in every name.

    agree: `agree(there, wanted)`, None is `same`. Raises WanlabError for a value that no row has, and where none goes.
    """
    agree = agree or same
    if not wanted:
        raise WanlabError("skip got nothing to leave out", remedy="Name settings and their values")
    for name, values in wanted.items():
        there = [row[name] for row in rows if name in row]
        for value in values:
            if not any(agree(other, value) for other in there):
                words = list(dict.fromkeys(_word(other) for other in there))
                raise WanlabError(f"skip: no point has {name} = {shorten(value, 80)}", choices=words[:_LISTED])
    kept = [
        i for i, r in enumerate(rows) if not all(n in r and any(agree(r[n], v) for v in vs) for n, vs in wanted.items())
    ]
    if len(kept) == len(rows):
        listed = " and ".join(f"{name} in {shorten(list(values), 60)}" for name, values in wanted.items())
        raise WanlabError(f"skip: no point has {listed}", remedy="Points are left out that agree in all names")
    return kept


def _word(value: Any) -> str:
    """A value in a list of choices; of a method its name."""
    return str(value["method"]) if isinstance(value, Mapping) and "method" in value else shorten(value, 40)


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, numbers to nine digits: a range's 0.30000000000000004 is 0.3."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if (
        isinstance(a, float | int)
        and isinstance(b, float | int)
        and not isinstance(a, bool)
        and not isinstance(b, bool)
    ):
        return a == b or (not (isinstance(a, int) and isinstance(b, int)) and math.isclose(a, b, rel_tol=1e-9))
    return type(a) is type(b) and bool(a == b)


def unique(points: Iterable[Settings]) -> list[Settings]:
    """The points without repetitions; the first of equal ones stays."""
    found: dict[str, Settings] = {}
    for point in points:
        found.setdefault(json.dumps(point, sort_keys=True), point)
    return list(found.values())
