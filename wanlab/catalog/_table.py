"""The catalogue as a table: every model, what of it is on this machine, what to do to have it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wanlab.catalog._definition import Definition
from wanlab.catalog._disk import Presence, presence
from wanlab.catalog._library import library
from wanlab.errors import WanlabError
from wanlab.spec.part import Part
from wanlab.workspace import Workspace, find_workspace


class Row(Part):
    """One line of the catalogue."""

    id: str
    family: str
    title: str
    on_disk: bool
    size: int | None
    """Bytes of its files on disk; None if they are not there."""
    remedy: str
    """What to do to have the weights; empty if they are there, and for a model that cannot run yet."""
    defined_in: str = ""
    """The user's file that defines or changes it; empty for a model as it ships."""
    missing: str = ""
    """What wanlab lacks to run it; empty for a model that runs."""
    error: str = ""
    """What is wrong in the definition's file; empty for a sound one."""


class Catalogue(Sequence[Row]):
    """The models wanlab knows, as a list of rows that prints as a table."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        lines = [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(_HEADS, *lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in [_HEADS, *lines])

    def _repr_html_(self) -> str:
        """What is on the disk as a table; the others folded below it, what can run before what cannot yet."""
        here = [row for row in self.rows if row.on_disk or row.error]
        others = [row for row in self.rows if row not in here]
        groups = {"whose weights are not here": [row for row in others if not row.missing]}
        groups["that cannot run yet"] = [row for row in others if row.missing]
        folded = (
            f"<details><summary>{len(rows)} more {what}</summary>{_html(rows)}</details>"
            for what, rows in groups.items()
            if rows
        )
        return _html(here) + "".join(folded)


def _html(rows: Sequence[Row]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        left = "text-align:left"  # notebooks align to the right, for numbers
        wraps = (
            f"{left};overflow-wrap:anywhere" if n in ("title", "remedy") else f"{left};white-space:nowrap"
            for n in _HEADS
        )
        pairs = zip(wraps, cells, strict=True)
        return "<tr>" + "".join(f'<{tag} style="{s}">{html.escape(c)}</{tag}>' for s, c in pairs) + "</tr>"

    return f"<table>{line('th', _HEADS)}{''.join(line('td', _cells(row)) for row in rows)}</table>"


_HEADS = ("id", "family", "title", "on disk", "remedy")


def _cells(row: Row) -> tuple[str, ...]:
    size = f"{row.size / 1e6:,.1f} MB" if row.size is not None else "no"
    remedy = row.error or (f"cannot run yet: {row.missing}" if row.missing else row.remedy)
    title = f"{row.title} (yours)" if row.defined_in else row.title
    return (row.id, row.family, title, "broken" if row.error else size, remedy)


def catalogue(workspace: Workspace | None = None) -> Catalogue:
    """All definitions, those whose weights are on this machine first. Asks the disk only, never the network.

    A finetune whose file is broken, or whose folder may not be read, is a row with its `error`; the others are listed
    all the same.
    """
    workspace = workspace or find_workspace()
    known, roots = library(workspace), workspace.roots
    rows = []
    for name in known.ids():
        try:
            definition = known.find(name)
            if definition.visible:
                rows.append(_row(definition, presence(definition, workspace, roots=roots), known.file_of(name)))
        except WanlabError as error:
            rows.append(_broken(name, error))
    return Catalogue(sorted(rows, key=lambda row: not row.on_disk))


def remedy(definition: Definition, found: Presence) -> str:
    """What to do to have a model's weights; empty if they are here, and where they would be of no use yet."""
    source = definition.weights
    if found.is_complete or definition.missing:
        return ""
    if source.asset:
        return "Install wanlab again: its files ship with it"
    repos = [source.repo] if source.repo else sorted({f.repo or f.url or "" for f in found.missing.values()} - {""})
    if not repos:
        return "put its files where its definition says"
    return f"`wanlab models --download {definition.id}` fetches it from {' and '.join(repos)}"


def _row(definition: Definition, found: Presence, file: Path | None) -> Row:
    return Row(
        id=definition.id,
        family=definition.family,
        title=definition.title,
        on_disk=found.is_complete,
        size=found.size,
        remedy=remedy(definition, found),
        missing=definition.missing,
        defined_in=str(file or ""),
    )


def _broken(name: str, error: WanlabError) -> Row:
    return Row(
        id=name, family="", title=name, on_disk=False, size=None, remedy="Correct or remove the file", error=str(error)
    )
