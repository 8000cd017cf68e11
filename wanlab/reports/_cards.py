"""A run on the page: its clip, what it is called, what went wrong, its settings as a difference to the base."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.inline import ellipsis
from wanlab.reports._clips import Clip
from wanlab.reports._columns import STATUS, Column, Entry, words

if TYPE_CHECKING:
    from wanlab.reports._facts import Facts
    from wanlab.reports._page import Links

_LABEL = 200
_VALUE = 600  # characters of a setting
_ERROR = 1200
_WHOLE_SPECS = 100  # runs; with more, the page links to run.json instead of repeating the specs
_EAGER = 80  # clips that ask for their length when the page opens
_NUMBERS = 6  # measures below a clip
_LOG, _RUN = "log.txt", "run.json"


class Cards:
    """Makes the cards of one page."""

    def __init__(self, facts: Facts, columns: Sequence[Column], links: Links) -> None:
        self._facts = facts
        self._measures = [c for c in columns if c.is_number and not c.is_setting]
        self._links = links
        self._many = len(facts.specs)

    def card(self, entry: Entry, clip: Clip | None) -> str:
        """One run; its id on the page is "run-<number>"."""
        label = html.escape(ellipsis(entry.label, _LABEL))
        return (
            f'<article id="run-{entry.number}" class="card" data-row="{entry.number - 1}">{self._picture(entry, clip)}'
            f'<h3><span class="tick"></span><span class="number">{entry.number}</span> {label}</h3>'
            f"<p>{badge(entry)}{self._numbers(entry)}</p>{self._error(entry, clip)}{self._settings(entry)}"
            f"<p class=links>{self._addresses(entry, clip)}</p></article>"
        )

    def _picture(self, entry: Entry, clip: Clip | None) -> str:
        if clip is None:
            return f'<div class="empty">{html.escape(entry.row.status)}</div>'
        source, size = _attribute(self._links.to(clip.path)), ""
        if clip.width and clip.height:
            size = f' width="{clip.width}" height="{clip.height}"'
        name = _attribute(ellipsis(entry.label, _LABEL))
        small = ' class="pixels"' if 0 < max(clip.width, clip.height) <= 160 else ""
        if not clip.is_video:
            return f'<img{small}{size} loading="lazy" alt="{name}" src="{source}">'
        poster = f' poster="{clip.poster}"' if clip.poster else ""
        preload = "metadata" if self._many <= _EAGER else "none"
        return (
            f'<video{small}{size} controls loop muted playsinline preload="{preload}"{poster} aria-label="{name}" '
            f'src="{source}"></video>'
        )

    def _numbers(self, entry: Entry) -> str:
        shown = [(c, c.text(entry.values.get(c.name))) for c in self._measures]
        told = [f"{html.escape(c.title)} <b>{html.escape(t)}</b> {html.escape(c.unit)}" for c, t in shown if t]
        return "".join(f'<span class="measure">{text.strip()}</span>' for text in told[:_NUMBERS])

    def _error(self, entry: Entry, clip: Clip | None) -> str:
        told = [text for text in (entry.row.error, clip.problem if clip is not None else "") if text]
        if entry.row.stale:
            told.append("Made with earlier numerics: the same settings may give another result now.")
        return "".join(f'<p class="error">{html.escape(ellipsis(text, _ERROR))}</p>' for text in told)

    def _settings(self, entry: Entry) -> str:
        """What differs from the base, and the whole spec, both folded."""
        index = entry.number - 1
        different = self._facts.differences[index]
        rows = [(name, f"{words(own)}", f"{words(base)}") for name, (base, own) in different.items()]
        lines = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{_value(own)}</td><td class=was>{_value(base)}</td></tr>"
            for name, own, base in rows
        )
        heads = "<tr><th></th><th>here</th><th>base</th></tr>"
        table = f"<table class=diff><thead>{heads}</thead><tbody>{lines}</tbody></table>"
        spec = self._facts.specs[index]
        whole = ""
        if spec is not None and self._many <= _WHOLE_SPECS:
            text = json.dumps(spec, ensure_ascii=False, separators=(", ", ": "))
            whole = f"<details><summary>whole spec</summary><pre>{html.escape(text)}</pre></details>"
        count = f"{len(rows)} setting{'s' if len(rows) != 1 else ''} unlike the base" if rows else "the base's settings"
        return f"<details><summary>{count}</summary>{table if rows else ''}{whole}</details>" if rows or whole else ""

    def _addresses(self, entry: Entry, clip: Clip | None) -> str:
        """Links to the files of the run that are there."""
        row, found = entry.row, []
        if clip is not None:
            found.append(self._link(clip.path))
        if row.notebook is not None:
            found.append(self._link(row.notebook))
        if row.folder is not None:
            found += [self._link(file) for name in (_LOG, _RUN) if (file := row.folder / name).is_file()]
            found.append(self._link(row.folder, is_folder=True))
        return " · ".join(found)

    def _link(self, path: Path, *, is_folder: bool = False) -> str:
        text = "folder" if is_folder else path.name
        return (
            f'<a href="{_attribute(self._links.to(path, is_folder=is_folder))}">{html.escape(ellipsis(text, 60))}</a>'
        )


def badge(entry: Entry) -> str:
    """The status as a coloured word, and whether others are measured against this run."""
    status = words(entry.values.get(STATUS))
    kind = status if status in ("ok", "pending", "running") else "bad"
    reference = '<span class="badge reference">reference</span>' if entry.is_reference else ""
    return f'<span class="badge {kind}">{html.escape(status)}</span>{reference}'


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values; "" without any."""
    lines = "".join(f"<tr><th>{html.escape(name)}</th><td>{_value(value)}</td></tr>" for name, value in rows)
    return f'<table class="pairs"><tbody>{lines}</tbody></table>' if lines else ""


def _value(value: Any) -> str:
    return html.escape(ellipsis(str(value), _VALUE)) if value not in (None, "", "null") else "–"


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)
