"""How points read: values in words, short labels, tables of what differs."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wanlab.spec import GenerationSpec, MediaRef
from wanlab.sweeps._points import Settings

SHOWN = 50  # points of a table
_CELL, _LABEL = 80, 24  # characters of a value in a table and in a label
_NONE, _ABSENT = "–", object()


def words(value: Any) -> str:
    """A setting's value as a person writes it: `magcache threshold=0.1`, `1, 0.7, 0`, a medium by its file's name."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, MediaRef):
        return f"{value.name} {value.sha256[:6]}".strip()
    if isinstance(value, Mapping):
        if "sha256" in value:
            return f"{value.get('name', '')} {value['sha256'][:6]}".strip()
        return " ".join(words(v) if k == "method" else f"{k}={words(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(words(v) for v in value)
    return str(value)


def cells(specs: Sequence[GenerationSpec], settings: Sequence[Settings], names: Sequence[str]) -> list[dict[str, str]]:
    """A row a point, a column a name whose values differ; of one point all names."""
    rows = [{n: _value(spec, n, own, names) for n in names} for spec, own in zip(specs, settings, strict=True)]
    differ = [n for n in names if len(rows) == 1 or any(row[n] != rows[0][n] for row in rows)]
    return [{n: _NONE if row[n] is _ABSENT else words(row[n]) for n in differ} for row in rows]


def _value(spec: GenerationSpec, name: str, settings: Settings, names: Sequence[str]) -> Any:
    """What a point has for a setting, whether its axes set it or not.

    Of a method also the options that are not usual, but for those that have a column.
    """
    if (part := spec.methods().get(name)) is not None:
        return {"method": part.method, **{n: v for n, v in part.changed().items() if f"{name}.{n}" not in names}}
    flat = spec.flat()
    return flat[name] if name in flat else settings.get(name, _ABSENT)


def labels(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A short name of each row, its values; those that read the same are numbered."""
    short = [", ".join(f"{n}={cut(v, _LABEL)}" for n, v in row.items() if v != _NONE) or "base" for row in rows]
    several = {label for label, count in Counter(short).items() if count > 1}
    seen: Counter[str] = Counter()
    found = []
    for label in short:
        seen[label] += 1
        found.append(f"{label} #{seen[label]}" if label in several else label)
    return found


def cut(text: str, limit: int = _CELL) -> str:
    """One line of at most `limit` characters; a cut one ends in "…"."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def html_table(rows: Sequence[Mapping[str, str]], count: int) -> str:
    """HTML of the first 50 rows of `count`; values are escaped and cut, and whole in their tooltips."""
    if not rows or not rows[0]:
        return ""
    left = 'style="text-align:left"'
    head = "".join(f"<th {left}>{html.escape(name)}</th>" for name in ("", *rows[0]))
    body = ""
    for i, row in enumerate(rows[:SHOWN]):
        listed = "".join(f'<td {left} title="{html.escape(v)}">{html.escape(cut(v))}</td>' for v in row.values())
        body += f"<tr><td {left}>{i}</td>{listed}</tr>"
    more = f"<p>… and {count - SHOWN:,} more</p>" if count > SHOWN else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def text_table(rows: Sequence[Mapping[str, str]], limit: int = 20) -> list[str]:
    """The first rows as lines of text in columns."""
    if not rows or not rows[0]:
        return []
    listed = [list(rows[0]), *([cut(v, 40) for v in row.values()] for row in rows[:limit])]
    widths = [max(len(line[i]) for line in listed) for i in range(len(listed[0]))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in listed]
    return [*lines, f"... and {len(rows) - limit:,} more"] if len(rows) > limit else lines
