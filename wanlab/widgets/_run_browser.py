"""The runs of a folder as a table that fills while they are made: filter, sort, open, compare, load their settings."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import traitlets
from IPython.display import HTML, display

from wanlab import notebook, runs
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.sweeps._progress import SweepProgress
from wanlab.widgets._buttons import button
from wanlab.widgets._closing import close
from wanlab.widgets._code import spec_as_code
from wanlab.widgets._copy import CopyButton
from wanlab.widgets._message import Message, reason
from wanlab.widgets._pictures import Pictures
from wanlab.widgets._run_page import run_page
from wanlab.widgets._run_table import RunTable, line_of
from wanlab.widgets._style import STYLE, stand_in

if TYPE_CHECKING:
    from wanlab.result import Result
    from wanlab.widgets.panel import GeneratePanel

_LOOK_SECONDS = 1.0  # between looks at the files while somebody watches
_MOST_COMPARED = 6  # clips that are decoded and played at once


class RunBrowser(widgets.VBox):
    """Runs below a folder: `RunBrowser("runs")` shows those that are there and those that come.

    A click on a row shows the run below the table; ticked ones play side by side. "Load this spec" puts a run's
    settings into `.spec`, and into the form of `panel`. `.row` is the open run as `wanlab.results` has it, `.result`
    its clip, `.selected` the ticked rows. Only files are read, so it does not matter which process makes the runs;
    "Cancel" asks all of them to stop. Headless it shows itself as a plain table.
    """

    spec = traitlets.Any(None, allow_none=True, help="The spec that was loaded last; None before that.")

    def __init__(self, folder: str | Path, *, panel: GeneratePanel | None = None) -> None:
        self.folder = Path(folder)
        self._panel = panel
        self._results: Any = None
        self._rows: dict[str, Any] = {}
        self._looking = threading.Lock()
        self._views = 0
        self._watched = threading.Event()
        self._closed = threading.Event()
        self._follower: threading.Thread | None = None
        self._displays: dict[str, Any] = {}  # by cell
        self._build()
        self.refresh()

    def _build(self) -> None:
        self._head = widgets.HTML(f"{STYLE}<b>{html.escape(self.folder.name)}</b>")
        self._bar = widgets.FloatProgress(min=0, max=1, layout={"flex": "1 1 160px", "max_width": "320px"})
        self._text = widgets.HTML(layout={"flex": "1 1 300px"})
        self._text.add_class("wanlab-text")
        self._cancel = button("Cancel", "Every process that works here stops within a step", self.cancel, "stop")
        self._progress = widgets.Box(
            [self._bar, self._text, self._cancel], layout={"flex_flow": "row wrap", "align_items": "center"}
        )
        self._table = RunTable(self._act)
        self._pictures = Pictures(self._table.send_pictures)
        self._message = Message()
        self._load = button("Load this spec", "The settings of this run, as .spec", self._load_spec, "sign-in")
        self._copy = CopyButton(label="Copy as code", hint="The cell that makes this spec")
        hide = button("Close", "Show this run no longer", self._close_run, "times")
        self._opened = widgets.Box(
            [self._load, self._copy, hide],
            layout={"flex_flow": "row wrap", "align_items": "center", "display": "none"},
        )
        self._compared = widgets.VBox()
        self._inside = widgets.HTML()
        children = [self._head, self._progress, self._table, self._message, self._compared, self._opened, self._inside]
        super().__init__(children)
        self.add_class("wanlab-panel")

    # What the next cell reads

    @property
    def results(self) -> Any:
        """What `wanlab.results(folder)` returned at the last look."""
        return self._results

    @property
    def row(self) -> Any:
        """The row that is open; None where none is."""
        return self._rows.get(self._table.opened)

    @property
    def selected(self) -> list[Any]:
        """The ticked rows, in the order in which they were ticked."""
        return [self._rows[key] for key in self._table.ticked if key in self._rows]

    @property
    def result(self) -> Result | None:
        """The clip of the open run; None where none is open. Raises WanlabError for a run without one."""
        return None if self.row is None else self._results.open(self.row)

    # Looking at the files

    def refresh(self) -> None:
        """Read the folder again; from any thread."""
        with self._looking:
            try:
                self._results = runs.results(self.folder)
                progress = SweepProgress.of(self._results)
            except WanlabError as error:
                if self.folder.exists():
                    self._message.say(str(error), is_error=True)
                self._progress.layout.display = "none"
                return
            self._rows = {self._key(row): row for row in self._results}
            order = self._results.sweep.names if self._results.sweep is not None else ()
            self._table.show([line_of(row, key) for key, row in self._rows.items()], order)
            self._show_progress(progress)

    def _key(self, row: Any) -> str:
        return row.id if row.folder is None else row.folder.name

    def _show_progress(self, progress: SweepProgress) -> None:
        self._bar.value = progress.fraction
        self._text.value = f'<span class="wanlab-quiet" role="status">{html.escape(str(progress))}</span>'
        works = bool(progress.current) or bool(progress.by_status.get("running"))
        self._cancel.disabled = not works or runs.is_cancelled(self.folder)
        self._cancel.description = "Stopping ..." if works and runs.is_cancelled(self.folder) else "Cancel"
        self._cancel.layout.display = None if works else "none"
        shown = self._results.sweep is not None or works
        self._progress.layout.display = None if shown else "none"

    def _follow(self) -> None:
        """Look again and again while there is a view; ends with the widget."""
        while not self._closed.wait(_LOOK_SECONDS):
            self._watched.wait()
            if not self._closed.is_set():
                self._told(self.refresh)

    def close(self) -> None:
        """Stop looking and close the widget with all that is inside."""
        if self._closed.is_set():
            super().close()
            return
        self._closed.set()
        self._watched.set()
        close(*self.children)
        super().close()

    # What is clicked

    def _act(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if kind == "ready":
            self._come()
        elif kind == "gone":
            self._views = max(0, self._views - 1)
            if not self._views:
                self._watched.clear()
        elif kind == "pictures":
            asked = {key: self._rows[key].clip for key in message.get("ids", ()) if key in self._rows}
            self._pictures.ask({key: clip for key, clip in asked.items() if clip is not None})
        elif kind == "open":
            self._told(self.show_run, message.get("id"))
        elif kind == "compare":
            self._told(self._compare, list(message.get("ids", ())))

    def _come(self) -> None:
        """A view is there: it gets all lines, and the files are looked at from now on."""
        self._views += 1
        self._table.send_all()
        self._watched.set()
        if self._follower is None and not self._closed.is_set():
            self._follower = threading.Thread(target=self._follow, name="wanlab-runs", daemon=True)
            self._follower.start()

    def show_run(self, key: Any) -> None:
        """Show a run below the table; `key` is its id or its folder's name. Raises WanlabError for an unknown one."""
        name = next((k for k, row in self._rows.items() if key in (k, row.id)), None)
        if name is None:
            raise WanlabError(f"There is no run {key!r} in {self.folder}", choices=list(self._rows)[:12])
        self._table.opened = name
        row = self._rows[name]
        self._message.say("")
        self._copy.text = _code(row)
        self._load.disabled = not self._copy.text
        self._opened.layout.display = None
        self._show(run_page(row, self._results, embed=not self._displays))

    def _close_run(self) -> None:
        self._table.opened = ""
        self._opened.layout.display = "none"
        self._show("")

    def _load_spec(self) -> None:
        self._told(self._take_spec)

    def _take_spec(self) -> None:
        spec = None if self.row is None else self.row.spec
        if spec is None:
            raise WanlabError("This run has no spec", remedy="Open another run")
        self.spec = spec
        if self._panel is not None:
            self._panel.spec = spec
        where = ".spec" if self._panel is None else ".spec and in the panel"
        self._message.say(f"The settings are in {where}.")

    def cancel(self) -> None:
        """Ask every process that works for this folder to stop within a step."""
        self._told(runs.request_cancel, self.folder)
        self._cancel.disabled, self._cancel.description = True, "Stopping ..."

    def _compare(self, keys: list[str]) -> None:
        rows = [self._rows[key] for key in keys if key in self._rows]
        if not 2 <= len(rows) <= _MOST_COMPARED:
            raise WanlabError(f"{len(rows)} runs are ticked", remedy=f"Tick 2 to {_MOST_COMPARED} to compare them")
        self._message.say("Comparing ...")
        work = threading.Thread(target=self._told, args=(self._play, rows), name="wanlab-compare", daemon=True)
        work.start()

    def _play(self, rows: list[Any]) -> None:
        """Show the player of some runs; in a thread, since it decodes and encodes their clips."""
        from wanlab.widgets._compare import compare

        comparison = compare(*(self._results.open(row) for row in rows))
        table = widgets.HTML(comparison._table_html())
        table.add_class("wanlab-text")
        hide = button("Close the comparison", "Show the player no longer", self._close_comparison, "times")
        hide.layout.align_self = "flex-start"
        earlier, self._compared.children = self._compared.children, [comparison.player, table, hide]
        comparison.player.send_media()
        close(*earlier)
        self._message.say("")

    def _close_comparison(self) -> None:
        earlier, self._compared.children = self._compared.children, []
        close(*earlier)

    def _told(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Do something for a click or in a thread, where nobody would see an error: the message says it."""
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said
            self._message.say(reason(error), is_error=True)

    # Display

    def _show(self, page: str) -> None:
        """Show a page below the table, where the notebook keeps it; inside where this is part of a widget."""
        if not self._displays:
            self._inside.value = page if notebook.is_live() else ""
        for handle in self._displays.values():
            handle.update(HTML(page))

    def _ipython_display_(self) -> None:
        self.refresh()
        if not notebook.is_live():
            display(HTML(f"<p>{html.escape(repr(self))}</p>{_plain_table(self._results)}"))
            return
        display(HTML(stand_in(f"The runs of {self.folder} need their kernel to be browsed: run this cell.")))
        display(super()._repr_mimebundle_(), raw=True)
        self._displays[notebook.running_cell()[0]] = display(HTML(""), display_id=True)

    def __repr__(self) -> str:
        told = "no runs" if self._results is None else str(SweepProgress.of(self._results))
        return f"RunBrowser({str(self.folder)!r}, {told})"


def _code(row: Any) -> str:
    """The cell that makes a row's spec; nothing for one that has none, or none that this version reads."""
    try:
        spec: GenerationSpec | None = row.spec
    except WanlabError:
        return ""
    return "" if spec is None else spec_as_code(spec)


def _plain_table(results: Any) -> str:
    return "" if results is None else str(results._repr_html_())
