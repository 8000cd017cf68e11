"""The table of a RunBrowser: the kernel's end of what `table/*.js` shows.

Rows and pictures travel as custom messages, never as traits: a saved notebook holds none of them. Filtering, sorting,
pages and ticks are the browser's own business and need no kernel.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from wanlab.inline import ellipsis
from wanlab.spec import plain

_FOLDER = Path(__file__).parent / "table"
_SCRIPTS = ("table.js", "view.js")  # one module, joined in this order
_MOST_METRICS = 8  # columns
_MOST_SETTINGS = 12
_EXACT = 2**53  # a browser's numbers hold whole ones up to here
_ERROR = 200  # characters of an error that a row tells

Line = dict[str, Any]


class RunTable(anywidget.AnyWidget):
    """Shows lines (see `line_of`) and calls `act(message)` in the main thread for what is clicked.

    Messages: {"type": "ready"} and "gone" of a view, "open" with an id, "compare" with ids, "pictures" with the ids
    of lines in sight whose pictures a view lacks.
    """

    _esm = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    _css = (_FOLDER / "table.css").read_text("utf-8")
    key = traitlets.Unicode().tag(sync=True)
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    opened = traitlets.Unicode().tag(sync=True)

    def __init__(self, act: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(key=uuid.uuid4().hex)
        self._act = act
        self._lines: dict[str, Line] = {}
        self._columns: dict[str, list[str]] = {"settings": [], "metrics": []}
        self._sending = threading.Lock()
        self.on_msg(self._on_message)

    def show(self, lines: Sequence[Line], order: Sequence[str] = ()) -> None:
        """Show these lines; only what has changed is sent. `order`: settings that come first. From any thread."""
        with self._sending:
            new = {line["id"]: line for line in lines}
            columns = {"settings": varying(lines, order)[:_MOST_SETTINGS], "metrics": _metric_names(lines)}
            changed = [line for key, line in new.items() if self._lines.get(key) != line]
            if changed or list(new) != list(self._lines) or columns != self._columns:
                self._lines, self._columns = new, columns
                self._send_rows(changed, whole=False)

    def send_all(self) -> None:
        """Send every line, for a view that has just come."""
        with self._sending:
            self._send_rows(list(self._lines.values()), whole=True)

    def _send_rows(self, rows: list[Line], *, whole: bool) -> None:
        self.send({"type": "rows", "whole": whole, "rows": rows, "order": list(self._lines), **self._columns})

    def send_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Send small JPEGs by the id of their line. From any thread."""
        self.send({"type": "pictures", "ids": list(pictures)}, list(pictures.values()))

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict):
            self._act(content)


def line_of(row: Any, key: str) -> Line:
    """A row of `wanlab.results` as JSON for the page; `key` names it there."""
    return {
        "id": key,
        "name": row.folder.name if row.folder is not None else "",
        "status": row.status,
        "settings": {name: _exact(plain(value)) for name, value in row.settings.items()},
        "metrics": {name: _exact(value) for name, value in row.metrics.items() if _is_number(value)},
        "seconds": row.seconds,
        "error": ellipsis(" ".join(row.error.split()), _ERROR),
        "stale": bool(row.stale),
        "clip": row.status == "ok" and row.clip is not None,
    }


def varying(lines: Sequence[Line], order: Sequence[str] = ()) -> list[str]:
    """The settings that are not the same in all lines; those of `order` first, and all of these."""
    names = dict.fromkeys([*order, *(name for line in lines for name in line["settings"])])
    values = {name: {json.dumps(line["settings"].get(name), sort_keys=True) for line in lines} for name in names}
    return [name for name in names if name in order or len(values[name]) > 1]


def _metric_names(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line["metrics"]))[:_MOST_METRICS]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exact(value: Any) -> Any:
    """JSON that a browser reads as it is meant: whole numbers above 2**53 and what JSON lacks become text."""
    if isinstance(value, dict):
        return {str(name): _exact(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(part) for part in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
