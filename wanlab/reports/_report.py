"""`report`: reads a folder of runs, measures what was asked for, writes the page; `Report` is what it returns."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import runs
from wanlab.errors import WanlabError, shorten
from wanlab.files import atomic_write
from wanlab.notebook import link
from wanlab.reports import _tables
from wanlab.reports._clips import Clip, look
from wanlab.reports._columns import STATUS, Column, Entry, chosen, gather
from wanlab.reports._distances import Distances, measure
from wanlab.reports._facts import Facts, tell
from wanlab.reports._groups import Group, groups
from wanlab.reports._page import page

if TYPE_CHECKING:
    from wanlab.runs import Results

_PAGE = "report.html"
_SHOWN, _COLUMNS = 8, 8  # rows and columns in a notebook, where more would need scrolling


@dataclass(frozen=True, eq=False)
class Report:
    """A folder of runs as tables and as a page: `.path`, `.rows`, `.columns`, `.to_markdown()`, `.to_latex()`."""

    folder: Path
    path: Path
    """The page; it links to clips, notebooks and run folders from where it lies, so move it together with them."""
    facts: Facts
    entries: tuple[Entry, ...]
    _columns: tuple[Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that any run has a value for: the status, settings, measures."""
        return tuple(c.name for c in self._columns)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict a run: id, label, folder and its value for each column, None where it has none."""
        return [
            {"id": e.row.id, "label": e.label, "folder": e.row.folder, **{n: e.values.get(n) for n in self.columns}}
            for e in self.entries
        ]

    @cached_property
    def means(self) -> list[Group]:
        """Runs that differ only in seed and prompt, as one: mean, sample standard deviation and n of each column."""
        return groups(self._columns, self.entries)

    def to_markdown(self, columns: Sequence[str] | None = None, *, mean: bool = False) -> str:
        """A table for an appendix, with the base settings, units and the environment below it.

        columns: names in order; by default all that say something. mean: a row for each group of repetitions, as
        mean ± sample standard deviation, with n. Raises WanlabError for an unknown column, and for mean where nothing
        was repeated.
        """
        return _tables.markdown(self._table(columns, mean), self.facts)

    def to_latex(self, columns: Sequence[str] | None = None, *, mean: bool = False) -> str:
        r"""The table for LaTeX with booktabs, numbers aligned at the point; arguments and errors as `to_markdown`.

        Needs `\usepackage{booktabs}`; letters beyond Latin need a font that has them.
        """
        return _tables.latex(self._table(columns, mean), self.facts)

    def _table(self, columns: Sequence[str] | None, mean: bool) -> _tables.Table:
        wanted = chosen(self._columns, columns)
        if columns is None and all(e.row.status == "ok" for e in self.entries):
            wanted = [c for c in wanted if c.name != STATUS]
        if not mean:
            return _tables.of_runs(wanted, self.entries)
        if not self.means:
            raise WanlabError("No run differs from another in seed or prompt alone", remedy="Leave mean out.")
        return _tables.of_means(wanted, self.means)

    def _repr_html_(self) -> str:
        address = link(self.path)
        name = html.escape(str(self.path))
        place = f"<code>{name}</code>" if address is None else f'<a href="{html.escape(address)}">{name}</a>'
        if address is not None:  # jupyter_server sends pages with a sandbox, whose requests carry no login
            place += "<br><small>Open it from disk: shown by Jupyter’s server, it cannot load its clips.</small>"
        columns = self._table(None, False).columns
        table = _tables.of_runs(columns[:_COLUMNS], self.entries[:_SHOWN])
        left = {"rows": len(self.entries) - _SHOWN, "columns": len(columns) - _COLUMNS}
        words = " and ".join(f"{count} more {name}" for name, count in left.items() if count > 0)
        more = f"<p><small>{words} in the page</small></p>" if words else ""
        return f"<div><p><b>{html.escape(self.facts.verdict)}</b><br>{place}</p>{_tables.plain_html(table)}{more}</div>"

    def __repr__(self) -> str:
        return f"Report({self.facts.verdict}; {self.path})"


def report(
    folder: str | os.PathLike[str] | Results,
    path: str | os.PathLike[str] | None = None,
    *,
    reference: str | Mapping[str, Any] | None = None,
) -> Report:
    """Write a folder of runs as one page, by default `folder/report.html`, that opens from disk without a network.

    It holds a table, the trade-off of cost and quality, means over seeds, each run's settings as they differ from the
    base, and plays the clips, which it links to. Runs that failed, wait or cannot be read are in it too.
    reference: a run's id, or settings, as {"cache": "none"}: each clip is compared with the one of the same other
    settings (seed and prompt with an id) that has these; PSNR and SSIM of decoded frames, PSNR of latents. That decodes
    every clip, about 30 ms a frame of 832 x 480; the numbers are kept in `folder/report_metrics.json`.
    Raises WanlabError for a folder without runs, an unknown reference, and where the page cannot be written.
    """
    if reference is not None and not isinstance(reference, str | Mapping):
        raise WanlabError(f"reference = {shorten(reference)}", remedy='Give a run\'s id or {"cache": "none"}.')
    results = runs.results(folder) if isinstance(folder, str | os.PathLike) else folder
    folder = Path(results.folder)
    place = Path(os.path.abspath(folder / _PAGE if path is None else path))
    if place.suffix not in (".html", ".htm"):
        raise WanlabError(f"A report is a page, {place.name!r} is none", remedy=f"Give a path such as {_PAGE!r}.")
    rows = list(results)
    if not rows:
        raise WanlabError(f"{folder} holds no runs", remedy="Give the folder that run_sweep or generate wrote to.")
    sweep = results.sweep
    base = sweep.base if sweep is not None and sweep.kind == "notebook" else {}
    found = Distances() if reference is None else measure(rows, reference, base, folder)
    columns, entries = gather(rows, () if sweep is None else sweep.names, found.values, found.references)
    made = Report(folder, place, tell(results, found), tuple(entries), tuple(columns))
    clips: list[Clip | None] = look([row.clip for row in rows])
    atomic_write(place, page(made.facts, columns, entries, clips, made.means, place))
    return made
