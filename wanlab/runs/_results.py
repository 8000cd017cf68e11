"""`wanlab.results`: the runs of a folder as rows, to filter, to tabulate and to open."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import wanlab
from wanlab.errors import WanlabError, shorten, unknown
from wanlab.runs import _read
from wanlab.runs._plan import SweepFile
from wanlab.runs._row import STATUSES, Row

if TYPE_CHECKING:
    import pandas

_OWN = ("id", "status")


def results(folder: str | Path) -> Results:
    """The runs below a folder, as they are now: those that a sweep planned there, in its order, then all others.

    Costs about 1 ms a run the first time, a tenth of that later; no clip or latents are read. A run that somebody is
    writing, that crashed, or whose record is damaged is a row too. Raises WanlabError for a folder that is not there.

    >>> found = wanlab.results("runs/caches")
    >>> found.filter(status="ok", cache="magcache").to_frame()
    """
    if not isinstance(folder, str | os.PathLike) or not str(folder).strip() or "\0" in str(folder):
        raise WanlabError(f"{shorten(folder)} is no folder", remedy='Give a path such as "runs/caches"')
    sweep, rows = _read.rows(Path(folder))
    return Results(Path(folder), rows, sweep)


class Results(Sequence[Row]):
    """Rows of a folder at one moment; `refresh()` reads it again."""

    def __init__(self, folder: Path, rows: Iterable[Row], sweep: SweepFile | None = None) -> None:
        self.folder, self.sweep = folder, sweep
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Row | Results:
        return Results(self.folder, self._rows[index], self.sweep) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> Results:
        """All rows of the folder as they are now; files that did not change are not read again."""
        return results(self.folder)

    @property
    def names(self) -> list[str]:
        """The settings that tell the rows apart: the axes of the sweep, in order, then where other specs differ."""
        axes = self.sweep.names if self.sweep else ()  # of an empty filter too, so that its frame has their columns
        return list(dict.fromkeys([*axes, *(name for row in self for name in row.settings)]))

    def counts(self) -> dict[str, int]:
        """How many rows have each status; without those that none has."""
        counted = Counter(row.status for row in self)
        return {status: counted[status] for status in STATUSES if counted[status]}

    def filter(self, predicate: Callable[[Row], bool] | None = None, /, **wanted: Any) -> Results:
        """The rows that have all of the wanted values, and that the predicate accepts.

        wanted: `status`, `id`, a setting (`seed`, `cache__threshold`, or `**{"cache.threshold": 0.1}`; a method by its
        name) or a metric; a list, tuple, set or range accepts any of its values. Raises WanlabError for a name that no
        row knows.
        """
        rows = [row for row in self if predicate is None or predicate(row)]
        if wanted:
            known = {id(row): _values(row) for row in self}
            names = {n: _named(n, known.values(), self.names) for n in wanted}
            rows = [
                row
                for row in rows
                if all(
                    names[n] in (all_ := known[id(row)]) and _fits(all_[names[n]], value) for n, value in wanted.items()
                )
            ]
        return Results(self.folder, rows, self.sweep)

    def to_frame(self) -> pandas.DataFrame:
        """A pandas DataFrame, one row a run: id, status, attempt, settings, seconds, metrics, what it took, folder.

        A metric that is called like a setting gets the column `metric.<name>`.
        """
        from wanlab.runs._tables import frame

        return frame(self)

    def sql(self, query: str) -> pandas.DataFrame:
        """The answer of DuckDB to a query over `runs`, which is `to_frame()`; names with a dot go in double quotes.

        Needs `pip install "wanlab[frame]"`. Raises WanlabError without it and for a query that DuckDB refuses.

        >>> found.sql("select cache, avg(total_seconds) from runs where status = 'ok' group by cache")
        """
        from wanlab.runs._tables import ask

        return ask(self, query)

    def open(self, row: Row | str | int) -> Any:
        """The `Result` of a row, an id, the name of a folder or an index. Raises WanlabError where there is none."""
        found = self._chosen(row)
        if found.folder is None or found.status != "ok":
            why = f": {found.error}" if found.error else ""
            raise WanlabError(f"Run {found.id} is {found.status}{why}", remedy='Open one of filter(status="ok")')
        return wanlab.open_result(found.folder)

    def _chosen(self, row: Row | str | int) -> Row:
        if isinstance(row, Row):
            return row
        if isinstance(row, int) and not isinstance(row, bool):
            if not -len(self) <= row < len(self):
                raise WanlabError(f"There is no row {row}", remedy=f"Give 0 to {len(self) - 1}")
            return self[row]
        ordered = sorted(self, key=lambda r: r.status == "ok")  # of several with one id, one that can be opened
        folders = {r.folder.name: r for r in ordered if r.folder is not None}
        ids = {r.record.id: r for r in ordered if r.record is not None} | {r.id: r for r in ordered}
        found = folders.get(str(row)) or ids.get(str(row))
        if found is None:
            raise unknown("run", row, ids, remedy="Iterate over the rows to see them all")
        return found

    def __repr__(self) -> str:
        counted = ", ".join(f"{number} {status}" for status, number in self.counts().items())
        return f"Results({len(self)} runs{': ' if counted else ''}{counted} · {self.folder})"

    def _repr_html_(self) -> str:
        from wanlab.runs._tables import page

        return page(self)


def _values(row: Row) -> dict[str, Any]:
    """All that a row can be filtered by; what the sweep sets goes before the metrics, those before the whole spec."""
    own = {"status": row.status, "id": row.id}
    return {**_read.everything(row), **row.metrics, **row.settings, **own}


def _named(name: str, known: Iterable[Mapping[str, Any]], varied: Sequence[str]) -> str:
    """The name as the rows have it: `cache.threshold` of `cache__threshold`, `seed` of `sampling.seed`."""
    dotted = name.replace("__", ".")
    every = dict.fromkeys(n for values in known for n in values)
    for form in (name, dotted, dotted.rpartition(".")[2]):
        if form in every or form in (*_OWN, *varied):
            return form
    raise unknown("setting or metric", name, every, remedy="results.names lists what differs")


def _fits(value: Any, wanted: Any) -> bool:
    if _equals(value, wanted):
        return True
    return isinstance(wanted, list | tuple | set | frozenset | range) and any(_equals(value, one) for one in wanted)


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(value, Mapping) and isinstance(wanted, str):
        return value.get("method") == wanted
    if isinstance(value, bool) != isinstance(wanted, bool):
        return False
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return list(value) == list(wanted)
    return bool(value == wanted)
