"""What a RunBrowser shows of one run: settings, end, files, clip. Plain HTML that a notebook keeps."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from wanlab import details, notebook
from wanlab.errors import WanlabError
from wanlab.inline import ellipsis

_FILES = {"notebook": ("notebook.ipynb", "failed.ipynb"), "log": ("log.txt",), "record": ("run.json",)}
_TAIL = 4_000  # characters of a traceback
_WORDS = 240  # characters of a value
_CELL = "text-align:left;padding:1px 12px 1px 0;border:none"


def run_page(row: Any, results: Any, *, embed: bool) -> str:
    """HTML of a row of `wanlab.results`: the facts, then the clip if there is one. Reads the clip's frames.

    embed: put a small copy of the clip into the page instead of a link.
    """
    return f'<div class="wanlab-run">{_facts(row)}{_settings(row)}{_error(row)}{_clip(row, results, embed)}</div>'


def _facts(row: Any) -> str:
    name = row.folder.name if row.folder is not None else row.id
    words = [
        row.status,
        *([f"{row.seconds:.1f} s"] if row.seconds is not None else []),
        *(["stale"] if row.stale else []),
    ]
    line = " · ".join([html.escape(" · ".join(words)), *(_links(row.folder) if row.folder is not None else [])])
    return f'<p style="margin:8px 0 4px 0"><b>{html.escape(name)}</b><br><small>{line}</small></p>'


def _links(folder: Path) -> list[str]:
    """Links to the files that there are; the folder as a path."""
    found = []
    for word, names in _FILES.items():
        for file in (folder / name for name in names):
            if file.is_file():
                address = notebook.link(file)
                found.append(word if address is None else f'<a href="{html.escape(address, quote=True)}">{word}</a>')
    return [*found, details.place(folder, None)]


def _settings(row: Any) -> str:
    """The settings that differ from the sweep's base."""
    name_style, value_style = (
        f"{_CELL};font-weight:normal;opacity:0.7;white-space:nowrap",
        f"{_CELL};overflow-wrap:anywhere",
    )
    told = {name: details.in_words({name: value}).partition(" ")[2] for name, value in row.settings.items()}
    lines = "".join(
        f'<tr><th style="{name_style}">{html.escape(name)}</th>'
        f'<td style="{value_style}">{html.escape(ellipsis(words, _WORDS))}</td></tr>'
        for name, words in told.items()
    )
    return f'<table style="margin:0 0 6px 0;table-layout:auto"><tbody>{lines}</tbody></table>' if lines else ""


def _error(row: Any) -> str:
    if not row.error:
        return ""
    failure = row.record.error if row.record is not None else None
    tail = failure.traceback_tail[-_TAIL:] if failure is not None else ""
    pre = f'<pre style="white-space:pre-wrap">{html.escape(tail)}</pre>'
    trace = f"<details><summary>Where it happened</summary>{pre}</details>" if tail else ""
    style = "color:var(--jp-error-color1,#b00020);margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere"
    return f'<div role="alert" style="{style}">{html.escape(ellipsis(row.error, 2_000))}</div>{trace}'


def _clip(row: Any, results: Any, embed: bool) -> str:
    if row.status != "ok" or row.clip is None:
        return ""
    try:
        result = results.open(row)
        return str((result.show(embed=True) if embed else result)._repr_html_())
    except (WanlabError, OSError) as error:
        return f"<p>There is no clip to show: {html.escape(str(error))}</p>"
