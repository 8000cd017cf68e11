"""Results as a data frame, as an answer of DuckDB and as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wanlab.errors import WanlabError, shorten
from wanlab.runs._row import Row

if TYPE_CHECKING:
    import pandas

    from wanlab.runs._results import Results

_SHOWN = 200  # rows of an HTML table
_MOST = 120  # characters of a cell
_COLOURS = {"ok": "#2e7d32", "running": "#1565c0", "pending": "#757575"}
_BAD = "#c62828"


def frame(results: Results) -> pandas.DataFrame:
    """One row a run, see `Results.to_frame`."""
    import pandas

    settings = results.names
    seconds = list(dict.fromkeys(stage for row in results if row.record for stage in row.record.timings))
    metrics = list(dict.fromkeys(name for row in results for name in row.metrics))
    table = [_line(row, settings, seconds, metrics) for row in results]
    columns = list(table[0]) if table else list(_line(Row("", "pending"), settings, seconds, metrics))
    made = pandas.DataFrame({name: [line[name] for line in table] for name in columns}, columns=columns)
    whole = ["attempt", "forwards", "skipped", "peak_bytes"]
    return made.astype({name: "Int64" for name in whole if name in columns})


def _line(row: Row, settings: list[str], seconds: list[str], metrics: list[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"id": row.id, "status": row.status, "attempt": row.attempt}
    timings, measured = row.record.timings if row.record else {}, row.metrics
    ends = {**row.costs(), "folder": None if row.folder is None else str(row.folder)}
    groups = (
        ("setting", {n: row.settings.get(n) for n in settings}),
        ("seconds", {f"{n}_seconds": timings.get(n) for n in seconds}),
        ("metric", {n: measured.get(n) for n in metrics}),
        ("run", ends),
    )
    for kind, values in groups:
        for name, value in values.items():
            line[f"{kind}.{name}" if name in line else name] = _cell(value)
    return line


def _cell(value: Any) -> Any:
    """A value that a column of a table can hold: lists and dicts as their JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list | tuple) else value


def ask(results: Results, query: str) -> pandas.DataFrame:
    """The answer to a query over `runs`, see `Results.sql`."""
    try:
        import duckdb
    except ImportError:
        raise WanlabError("sql() needs DuckDB, which is not installed", remedy='pip install "wanlab[frame]"') from None
    table = frame(results)
    for name, kind in table.dtypes.items():
        kinds = {type(value) for value in table[name] if value is not None} if kind == object else set()  # noqa: E721
        if len(kinds) > 1:  # a column of DuckDB has one type
            table[name] = [None if value is None else str(value) for value in table[name]]
    with duckdb.connect(":memory:") as connection:
        connection.register("runs", table)
        try:
            return connection.execute(query).df()
        except duckdb.Error as error:
            problem = f"DuckDB refuses {shorten(query)}: {error}"
            raise WanlabError(problem, choices=list(table.columns), remedy="Query the columns of runs") from None


def page(results: Results) -> str:
    """An HTML table: status, settings that differ, seconds, metrics; everything escaped."""
    settings = results.names
    metrics = list(dict.fromkeys(name for row in results for name in row.metrics))
    heads = ["", "status", *settings, "seconds", *metrics]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = "".join(
        f"<tr><td>{number}</td>{_status(row)}"
        + "".join(f"<td>{_shown(row.settings.get(name))}</td>" for name in settings)
        + f"<td>{_shown(row.seconds)}</td>"
        + "".join(f"<td>{_shown(row.metrics.get(name))}</td>" for name in metrics)
        + "</tr>"
        for number, row in enumerate(results[:_SHOWN])
    )
    more = f"<div>and {len(results) - _SHOWN} more</div>" if len(results) > _SHOWN else ""
    return f"<div><div>{html.escape(repr(results))}</div><table><tr>{head}</tr>{lines}</table>{more}</div>"


def _status(row: Row) -> str:
    words = row.status + (" (earlier numerics)" if row.stale else "")
    title = f' title="{html.escape(row.error[:2000])}"' if row.error else ""
    mark = f"border-left:4px solid {_COLOURS.get(row.status, _BAD)}"  # the text keeps the theme's colour
    return f'<td style="{mark};text-align:left"{title}>{html.escape(words)}</td>'


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping) and "method" in value:
        text = ", ".join(str(v) if n == "method" else f"{n} {_cell(v)}" for n, v in value.items())
    else:
        text = f"{value:.4g}" if isinstance(value, float) else str(_cell(value))
    return html.escape(text if len(text) <= _MOST else f"{text[:_MOST]}…")
