"""The page: one file without a network. What matters is plain HTML; the script sorts, filters, plots and plays in step.

Texts from runs are escaped where they enter. The policy in the head lets nothing run or be loaded but the page's own
script, by its hash, and files: so even a text that slipped through could do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wanlab.errors import WanlabError
from wanlab.inline import ellipsis
from wanlab.reports import _cards, _pareto
from wanlab.reports._clips import Clip
from wanlab.reports._columns import STATUS, Column, Entry, is_number, words
from wanlab.reports._facts import Facts
from wanlab.reports._groups import Group, repeats
from wanlab.reports._tables import of_means

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("common.js", "table.js", "plot.js", "compare.js", "start.js")  # one script, joined in this order
_STYLES = ("page.css", "runs.css")
_CELL = 60  # characters


@dataclass(frozen=True)
class Links:
    """Addresses relative to the page."""

    page: Path

    def to(self, path: Path, *, is_folder: bool = False) -> str:
        """The percent-encoded address of a file or a folder. Raises WanlabError where it lies on another drive."""
        try:
            relative = os.path.relpath(os.path.abspath(path), self.page.parent)
        except ValueError as error:
            raise WanlabError(f"{path} lies on another drive than the page", remedy="Write the page there.") from error
        address = quote(Path(relative).as_posix(), safe="/")
        return f"{address}/" if is_folder else address


def page(
    facts: Facts,
    columns: Sequence[Column],
    entries: Sequence[Entry],
    clips: Sequence[Clip | None],
    means: Sequence[Group],
    place: Path,
) -> str:
    """The whole page, for a file at `place`; equal runs give an equal page."""
    script, style = ("\n".join((_FOLDER / n).read_text("utf-8") for n in names) for names in (_SCRIPTS, _STYLES))
    plot = _pareto.choose(columns, entries)
    cards = _cards.Cards(facts, columns, Links(place))
    title = html.escape(facts.title)
    parts = [
        f"<header><h1>{title}</h1><p class=verdict>{html.escape(facts.verdict)}</p>{_reference(facts)}</header>",
        _plot(plot, entries),
        _means(columns, means),
        _table(columns, entries),
        _section("clips", "Runs", f'<div class="cards">{"".join(map(cards.card, entries, clips))}</div>'),
        _environment(facts),
    ]
    data = _data(columns, entries, clips, plot)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script, style)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{style}</style></head>\n<body>\n{chr(10).join(filter(None, parts))}\n"
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body></html>\n'
    )


def _policy(script: str, style: str) -> str:
    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed(script)}; style-src {allowed(style)}; "
        "img-src 'self' file: data:; media-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )


def _data(columns: Sequence[Column], entries: Sequence[Entry], clips: Sequence[Clip | None], plot: Any) -> str:
    """What the script works with, as JSON that no HTML parser can end."""
    data = {
        "columns": [
            {
                "name": c.name,
                "title": c.title,
                "unit": c.unit,
                "better": c.better,
                "setting": c.is_setting or c.name == STATUS,
                "number": c.is_number,
            }
            for c in columns
        ],
        "rows": [
            {
                "label": e.label,
                "texts": [c.text(e.values.get(c.name)) for c in columns],
                "values": [_number(e.values.get(c.name)) if c.is_number else None for c in columns],
                "fps": 0 if clip is None else clip.fps,
                "frames": 0 if clip is None else clip.num_frames,
            }
            for e, clip in zip(entries, clips, strict=True)
        ],
        "plot": plot and {"x": plot.x.name, "y": plot.y.name, "colour": plot.colour.name if plot.colour else ""},
        "frame": [_pareto.WIDTH, _pareto.HEIGHT, _pareto.LEFT, _pareto.RIGHT, _pareto.TOP, _pareto.BOTTOM],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: Any) -> Any:
    """A number for JSON; infinity as the word that JavaScript's Number() reads."""
    if not is_number(value):
        return None
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _reference(facts: Facts) -> str:
    lines = []
    if facts.reference:
        named = ", ".join(f"{name} {words(value)}" for name, value in facts.reference.items())
        lines.append(
            f"PSNR and SSIM are to the run with <b>{html.escape(ellipsis(named, 200))}</b> and equal other settings, "
            "between decoded files, so the codec’s own error is in them; latent PSNR has none."
        )
    lines += [html.escape(ellipsis(note, 300)) for note in facts.notes]
    return "".join(f"<p class=note>{line}</p>" for line in lines)


def _plot(plot: _pareto.Plot | None, entries: Sequence[Entry]) -> str:
    if plot is None:
        return ""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 12 12"><circle class="point c{i}" cx="6" cy="6" r="4.5"/></svg>'
        f"{html.escape(ellipsis(text, 40) or '–')}</span>"
        for text, i in _pareto.palette(plot, entries).items()
    )
    name = html.escape(plot.colour.title) if plot.colour else ""
    return _section(
        "plot",
        "Trade-off",
        '<div id="plot-tools" class="tools"></div>'
        f'<figure>{_pareto.svg(plot, entries)}<figcaption id="keys"><span class="name">{name}</span>{keys}</figcaption>'
        "</figure><p class=note>The line joins runs that no other run beats in both. Points lead to their run.</p>",
    )


def _table(columns: Sequence[Column], entries: Sequence[Entry]) -> str:
    heads = "".join(_head(c) for c in columns)
    body = "".join(_line(columns, e) for e in entries)
    first = '<th class="tick"></th><th class="num" title="the run below">#</th>'
    return _section(
        "table",
        "Table",
        '<div id="table-tools" class="tools"></div><div class="scroll"><table id="runs">'
        f"<thead><tr>{first}{heads}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def _head(column: Column) -> str:
    unit = f" <small>{html.escape(column.unit)}</small>" if column.unit else ""
    title = html.escape(column.meaning or column.title, quote=True)
    return f'<th class="{"num" if column.is_number else "word"}" title="{title}">{_breakable(column.title)}{unit}</th>'


def _breakable(text: str) -> str:
    return html.escape(ellipsis(text, _CELL)).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _line(columns: Sequence[Column], entry: Entry) -> str:
    cells = "".join(_cell(c, entry) for c in columns)
    link = f'<a href="#run-{entry.number}">{entry.number}</a>'
    return f'<tr data-row="{entry.number - 1}"><td class="tick"></td><td class="num">{link}</td>{cells}</tr>'


def _cell(column: Column, entry: Entry) -> str:
    text = column.text(entry.values.get(column.name))
    if column.name == STATUS:
        return f"<td class=status>{_cards.badge(entry)}</td>"
    if not text:
        return _plain_cell(column, "")
    whole = f' title="{html.escape(ellipsis(text, 1000), quote=True)}"' if len(text) > _CELL else ""
    return f'<td class="{"num" if column.is_number else "word"}"{whole}>{html.escape(ellipsis(text, _CELL))}</td>'


def _means(columns: Sequence[Column], means: Sequence[Group]) -> str:
    """The table of means over seeds and prompts; "" where nothing was repeated."""
    if not means:
        return ""
    table = of_means(columns, means)
    heads = "".join(map(_head, table.columns))
    lines = "".join(f"<tr>{''.join(map(_plain_cell, table.columns, cells))}</tr>" for cells in table.cells)
    over = " and ".join(f"{name}s" for name in repeats(columns)) or "repetitions"
    return _section(
        "means",
        f"Means over {over}",
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
        "<p class=note>Mean ± sample standard deviation over n runs that ended well; no ± where one number is behind "
        "it or all are equal. Infinite distances (of equals) are counted apart.</p>",
    )


def _plain_cell(column: Column, text: str) -> str:
    kind = "num" if column.is_number else "word"
    if not text:
        return f'<td class="{kind} none">–</td>'
    return f'<td class="{kind}">{html.escape(ellipsis(text, _CELL))}</td>'


def _environment(facts: Facts) -> str:
    rows = [(name, words(value)) for name, value in facts.environment.items()]
    for name, values in facts.environments.items():
        told = "; ".join(f"{value} (runs {_numbers(numbers)})" for value, numbers in values.items())
        rows.append((f"{name}, differs", told))
    base = _cards.pairs([(name, words(v)) for name, v in facts.base.items() if v not in (None, "", [], {})])
    whole = f"<details><summary>Base settings: {html.escape(facts.base_is)}</summary>{base}</details>" if base else ""
    if not rows and not whole:
        return ""
    return _section("environment", "Environment", f"{_cards.pairs(rows)}{whole}")


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:12]))
    return shown if len(numbers) <= 12 else f"{shown}, … {len(numbers)} in all"
