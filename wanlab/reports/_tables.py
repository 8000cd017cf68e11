"""A report's table as Markdown, as LaTeX and as plain HTML: the same cells, each time escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wanlab.inline import ellipsis
from wanlab.reports._columns import Column, Entry, words
from wanlab.reports._facts import Facts
from wanlab.reports._groups import Group, Mean

_CUT = 80  # characters of a cell
_NUM = Column("n", "n", meaning="number of runs", decimals=0)


@dataclass(frozen=True)
class Table:
    """Columns and cells as text; a cell may hold "±" and "∞"."""

    columns: list[Column]
    cells: list[list[str]]
    is_mean: bool = False


def of_runs(columns: Sequence[Column], entries: Sequence[Entry]) -> Table:
    """A row a run."""
    return Table(list(columns), [[c.text(e.values.get(c.name)) for c in columns] for e in entries])


def of_means(columns: Sequence[Column], found: Sequence[Group]) -> Table:
    """A row a group of repetitions: its settings, n, and mean ± sample standard deviation."""
    settings = [c for c in columns if any(c.name in group.settings for group in found)]
    numbers = [c for c in columns if any(c.name in group.means for group in found)]
    cells = [
        [
            *(c.text(group.settings.get(c.name)) for c in settings),
            str(len(group.entries)),
            *(mean_text(c, group.means.get(c.name), len(group.entries)) for c in numbers),
        ]
        for group in found
    ]
    return Table([*settings, _NUM, *numbers], cells, is_mean=True)


def mean_text(column: Column, mean: Mean | None, count: int) -> str:
    """Mean ± sd, one number where all are equal; says so where fewer numbers than runs are behind it, and where some
    were infinite."""
    if mean is None:
        return ""
    if mean.mean is None:
        return "∞"
    decimals = max(column.decimals or 0, 1) if mean.sd else column.decimals or 0
    spread = f" ± {mean.sd:.{decimals}f}" if mean.sd else ""
    asides = [f"{mean.num_equal} ∞"] if mean.num_equal else []
    if mean.count != count:
        asides.insert(0, f"n = {mean.count}")
    return f"{mean.mean:.{decimals}f}{spread}" + (f" ({', '.join(asides)})" if asides else "")


def markdown(table: Table, facts: Facts) -> str:
    """A pipe table, then what one needs to read it."""
    heads = [_markdown(c.head) for c in table.columns]
    cells = [[_markdown(ellipsis(cell, _CUT)) or "–" for cell in row] for row in table.cells]
    widths = [max(3, *(len(line[i]) for line in [heads, *cells])) for i in range(len(heads))]
    rules = [f"{'-' * (w - 1)}:" if c.is_number else "-" * w for c, w in zip(table.columns, widths, strict=True)]
    lines = [_padded(table, heads, widths), f"| {' | '.join(rules)} |", *(_padded(table, row, widths) for row in cells)]
    return "\n".join([*lines, "", *(f"- {line}" for line in _notes(table, facts, _markdown))]) + "\n"


def latex(table: Table, facts: Facts) -> str:
    r"""A `tabular` for booktabs; what one needs to read it is in comments above."""
    heads = " & ".join(_latex(c.head) for c in table.columns)
    lines = [" & ".join(_latex(ellipsis(cell, _CUT)) or "--" for cell in row) + r" \\" for row in table.cells]
    kinds = "".join("r" if c.is_number else "l" for c in table.columns)
    notes = [f"% {re.sub(r'[^ -~]', '?', line)}" for line in _notes(table, facts, _one_line)]
    body = [
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        rf"{heads} \\",
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*notes, *body]) + "\n"


def plain_html(table: Table) -> str:
    """The table without styles of its own, as notebooks show data frames."""
    heads = "".join(f"<th>{html.escape(c.head)}</th>" for c in table.columns)
    rows = ("".join(f"<td>{html.escape(ellipsis(cell, _CUT)) or '–'}</td>" for cell in row) for row in table.cells)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _notes(table: Table, facts: Facts, escape: Callable[[str], str]) -> list[str]:
    """Lines below a table: how the runs ended, means, the reference, what columns mean, base settings, machine."""
    lines = [facts.verdict]
    if table.is_mean:
        lines.append("Mean ± sample standard deviation of n runs that ended well; none where n is 1 or all are equal.")
    if facts.reference:
        lines.append(f"Reference: {_listed(facts.reference)}, other settings equal.")
    meanings = "; ".join(f"{c.title}: {c.meaning}" for c in table.columns if c.meaning and c.name != "status")
    lines += [meanings] if meanings else []
    if facts.base:
        lines.append(f"Base settings ({facts.base_is}): {_listed(facts.base)}.")
    if facts.environment:
        lines.append(f"Environment: {_listed(facts.environment)}.")
    for name, values in facts.environments.items():
        lines.append(f"{name} differs: " + "; ".join(f"{value} ({len(n)} runs)" for value, n in values.items()) + ".")
    return [escape(line) for line in lines]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {ellipsis(words(v), _CUT)}" for name, v in values.items() if v not in (None, "", [], {}))


def _padded(table: Table, row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(table.columns, row, widths, strict=True)
    return f"| {' | '.join(cell.rjust(w) if c.is_number else cell.ljust(w) for c, cell, w in cells)} |"


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def _markdown(text: str) -> str:
    """Text that Markdown and the HTML in it leave as it is."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "–": "--",
} | {c: f"\\{c}" for c in "&%$#_{}"}


def _latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(c, c) for c in _one_line(text))
