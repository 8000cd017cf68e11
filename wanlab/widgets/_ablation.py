"""The panel that makes grids: what to vary, what it will take, Run, and the runs as they come."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import traitlets
from IPython.display import HTML, display

from wanlab import notebook, runs
from wanlab.errors import WanlabError, shorten
from wanlab.spec import GenerationSpec
from wanlab.sweeps import Grid, Zip, grid, zip_
from wanlab.sweeps._progress import SweepProgress, duration
from wanlab.sweeps._settings import flat_name
from wanlab.watch import Cancelled
from wanlab.widgets._arguments import beside_notebook
from wanlab.widgets._axes import Axis, choices, first_values
from wanlab.widgets._buttons import button
from wanlab.widgets._closing import close
from wanlab.widgets._code import base_lines, call
from wanlab.widgets._copy import CopyButton
from wanlab.widgets._message import Message, reason
from wanlab.widgets._run_browser import RunBrowser
from wanlab.widgets._style import STYLE, stand_in

_MANY = 1_000  # points from which the cost is not predicted at every change
Runner = Callable[..., Any]


class AblationPanel(widgets.VBox):
    """Vary settings of a model: `AblationPanel(model, cache=["none", "magcache"], seed=range(4))`, or none at first.

    Of a loaded model, a spec or a GeneratePanel, whose settings are the base as they stand. Axes are named as in
    `wanlab.grid`, `zip_(...)` too. `.grid`, `.spec` (the base) and `.results` are for the next cell; untouched they are
    what was given. Runs go to `out`, by default runs/ablation beside the notebook, in a thread, so the kernel stays
    free; a second Run makes only what is missing there. Headless it shows nothing; `.run()` is the button, and waits.
    """

    results = traitlets.Any(None, allow_none=True, help="What the last run returned; None before the first.")

    def __init__(
        self, base: Any, /, *zips: Zip, out: str | Path | None = None, runner: Runner | None = None, **axes: Any
    ) -> None:
        self._given, self._model, self._panel = _taken(base)
        self._runner = runner or _run_sweep
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._coster: threading.Thread | None = None
        self._wanted: tuple[Grid, str] | None = None  # whose cost is not told yet
        self._error: BaseException | None = None
        self._browser: RunBrowser | None = None
        self._displays: dict[str, Any] = {}  # by cell
        self._quiet = True
        self._axes: list[Axis] = []
        self._choices = choices(self.spec, None if self._model is None else self._model.offers)
        self._build(Path(out) if out is not None else _usual_out())
        for values in zips:
            for i, (name, column) in enumerate(values.axes.items()):
                self._add(name, column, zipped=i > 0)
        for name, column in axes.items():
            self._add(name, column)
        self._quiet = False
        self._changed()
        if self._panel is not None:
            self._panel._form.on_change(self._changed)

    def _build(self, out: Path) -> None:
        self._head = widgets.HTML()
        self._head.add_class("wanlab-text")
        self._what = widgets.Dropdown(options=list(self._choices), description="vary", layout={"width": "280px"})
        self._what.tooltip = "The setting to vary"
        more = button("Add", "Vary this setting too", self._press_add, "plus")
        self._rows = widgets.VBox()
        self._cost = widgets.HTML()
        self._cost.add_class("wanlab-text")
        self._out = widgets.Text(str(out), description="folder", continuous_update=False, layout={"width": "420px"})
        self._out.tooltip = "Where the runs go; what is there already is not made again"
        self._run = button("Run", "Make what is missing", self._press_run, "play", "primary")
        self._stop = button("Cancel", "Stop within a step; what is made stays", self.cancel, "stop")
        self._stop.disabled = True
        self._copy = CopyButton(label="Copy as code", hint="The cell that makes the same grid and runs it")
        self._message = Message()
        self._code = widgets.Textarea(disabled=True, layout={"width": "100%", "height": "150px"})
        self._code.tooltip = "The cell that makes the same grid and runs it"
        fold = widgets.Accordion([self._code], titles=["code"], selected_index=None)
        self._place = widgets.VBox()
        wrapped = {"flex_flow": "row wrap", "align_items": "center"}
        children = [
            self._head,
            self._rows,
            widgets.Box([self._what, more], layout=wrapped),
            self._cost,
            widgets.Box([self._run, self._stop, self._copy, self._out], layout=wrapped),
            self._message,
            fold,
            self._place,
        ]
        super().__init__(children)
        self.add_class("wanlab-panel")
        self._out.observe(lambda _: self._changed(), "value")

    # What the next cell reads

    @property
    def spec(self) -> GenerationSpec:
        """The base, as it was given; of a GeneratePanel what its form says now."""
        if self._panel is not None:
            found: GenerationSpec = self._panel.spec
            return found
        return self._given

    @property
    def grid(self) -> Grid:
        """The grid that the panel shows. Raises WanlabError for values that cannot be read and for illegal points."""
        zips, axes = self._columns()
        return grid(self.spec, *(zip_(**z) for z in zips), **axes)

    @property
    def out(self) -> Path:
        """The folder of the runs."""
        return Path(self._out.value)

    @property
    def code(self) -> str:
        """The cell that makes the same grid and runs it. Raises as `grid`."""
        zips, axes = self._columns()
        made = call("wanlab.grid", axes, ["base", *(call("wanlab.zip_", z) for z in zips)])
        run = call("wanlab.run_sweep", {}, ["grid", f"out={self.out.as_posix()!r}", "model=model"])
        return "\n".join(["import wanlab", "", *base_lines(self.spec, "base"), f"grid = {made}", f"results = {run}"])

    def _columns(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Axes that go together, and those that go alone, by keyword."""
        groups: list[dict[str, Any]] = []
        for axis in self._axes:
            name = axis.choice.name.replace(".", "__")
            if axis.is_zipped and groups:
                groups[-1][name] = axis.read()
            else:
                groups.append({name: axis.read()})
        alone = {name: values for group in groups if len(group) == 1 for name, values in group.items()}
        return [group for group in groups if len(group) > 1], alone

    # What is clicked

    def _press_add(self) -> None:
        if self._what.value is not None:
            self._told(self._add, self._what.value)

    def _add(self, name: str, values: Any = None, zipped: bool = False) -> None:
        """One more axis; `values` None starts with the base's own."""
        name = flat_name(name)
        if name not in self._choices:
            raise WanlabError(f"There is no setting {name!r} to vary", choices=self._choices)
        if any(axis.choice.name == name for axis in self._axes):
            raise WanlabError(f"{name} is varied already", remedy="Add values to its line")
        choice = self._choices[name]
        values = first_values(self.spec, choice) if values is None else values
        listed = [values] if isinstance(values, str | dict) or not hasattr(values, "__iter__") else values
        self._axes.append(Axis(choice, listed, self._changed, self._remove, zipped))
        self._show_axes()

    def _remove(self, axis: Axis) -> None:
        self._axes.remove(axis)
        self._show_axes()
        close(axis)

    def _show_axes(self) -> None:
        self._rows.children = self._axes
        for i, axis in enumerate(self._axes):
            axis.allow_zip(i > 0)
        self._changed()

    def _changed(self) -> None:
        """Show what the inputs say: the size, the cost, the code, or what is wrong."""
        if self._quiet:
            return
        try:
            base, made = self.spec, self.grid
            self._head.value = _title(base)
            self._code.value = self._copy.text = self.code
            self._tell_cost(made)
        except Exception as error:  # noqa: BLE001 - a panel says what is wrong, it does not raise
            self._message.say(reason(error), is_error=True)
            self._cost.value = self._copy.text = self._code.value = ""
            self._run.disabled = True
            return
        self._run.disabled = self._works
        if self._message.is_error:
            self._message.say("")

    def _tell_cost(self, made: Grid) -> None:
        """Show the size at once, and the predicted cost as soon as a thread has found it."""
        size = f"<b>{len(made)} {'run' if len(made) == 1 else 'runs'}</b>"
        if len(made) > _MANY:
            self._cost.value = f"{size}; the cost of so many is told by <code>panel.grid.preview()</code>"
            return
        self._cost.value = f'{size} <span class="wanlab-quiet">· ...</span>'
        with self._lock:
            self._wanted = made, size
            if self._coster is None:
                self._coster = threading.Thread(target=self._find_costs, name="wanlab-cost", daemon=True)
                self._coster.start()

    def _find_costs(self) -> None:
        """Predict the cost of the latest grid, until there is no later one."""
        while True:
            with self._lock:
                if self._wanted is None:
                    self._coster = None
                    return
                (made, size), self._wanted = self._wanted, None
            try:
                told, kind = cost_in_words(made.preview(model=self._model, out=self.out)), "wanlab-quiet"
            except Exception as error:  # noqa: BLE001 - a prediction that fails takes nothing from the panel
                told, kind = reason(error), "wanlab-error"
            if self._wanted is None and self._cost.value:
                self._cost.value = f'{size} <span class="{kind}">· {html.escape(told)}</span>'

    @property
    def _works(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _press_run(self) -> None:
        self._told(self._start)

    def _start(self) -> threading.Thread:
        made, out = self.grid, self.out
        with self._lock:
            if self._works:
                raise WanlabError("A sweep of this panel runs already", remedy="Wait for it, or cancel it")
            self._thread = threading.Thread(target=self._work, args=(made, out), name="wanlab-sweep", daemon=True)
        self._run.disabled, self._stop.disabled, self._stop.description = True, False, "Cancel"
        self._message.say("")
        self._browse(out)
        self._thread.start()
        return self._thread

    def _work(self, made: Grid, out: Path) -> None:
        try:
            try:
                self.results = self._runner(made, out, model=self._model)
            except Cancelled:
                self.results = runs.results(out)
            word = "Stopped" if runs.is_cancelled(out) else "Done"
            self._message.say(f"{word}: {SweepProgress.of(self.results)}")
        except BaseException as error:  # noqa: BLE001 - in a thread, where nobody else would hear of it
            self._error = error
            self._message.say(reason(error), is_error=True)
        finally:
            self._run.disabled, self._stop.disabled, self._stop.description = False, True, "Cancel"
            if self._browser is not None:
                self._told(self._browser.refresh)

    def run(self) -> Any:
        """Press Run and wait: what `run_sweep` returned. Interrupting cancels. Raises what the sweep raised."""
        self._error = None
        thread = self._start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except KeyboardInterrupt:
            self.cancel()
            thread.join()
            raise
        if self._error is not None:
            raise self._error
        return self.results

    def cancel(self) -> None:
        """Ask the sweep to stop within a step; what is made stays."""
        if self._works:
            self._told(runs.request_cancel, self.out)
            self._stop.disabled, self._stop.description = True, "Stopping ..."

    def _browse(self, out: Path) -> None:
        """Show the runs of the folder below."""
        if self._browser is not None and self._browser.folder == out:
            return
        earlier, self._browser = self._browser, RunBrowser(out, panel=self._panel)
        self._browser._displays = self._displays
        self._place.children = [self._browser]
        if earlier is not None:
            earlier.close()

    def close(self) -> None:
        """Close it with all that is inside; a sweep that runs goes on."""
        close(*self.children)
        super().close()

    def _told(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Do something for a click, where nobody would see an error: the panel says it."""
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said
            self._message.say(reason(error), is_error=True)

    # Display

    def _ipython_display_(self) -> None:
        if not notebook.is_live():
            display(HTML(f"<p>{html.escape(repr(self))}</p>"))
            return
        if runs.read_sweep(self.out) is not None:
            self._browse(self.out)
        display(HTML(stand_in("The ablation panel needs its kernel: run this cell.")))
        display(super()._repr_mimebundle_(), raw=True)
        self._displays[notebook.running_cell()[0]] = display(HTML(""), display_id=True)

    def __repr__(self) -> str:
        varied = ", ".join(axis.choice.name for axis in self._axes) or "nothing"
        return f"AblationPanel({self._given.model!r}, varies {varied})"


def _taken(base: Any) -> tuple[GenerationSpec, Any, Any]:
    """The spec, the model (None where there is none yet) and the GeneratePanel of what a panel is made of."""
    from wanlab.widgets.panel import GeneratePanel

    if isinstance(base, GenerationSpec):
        return base, None, None
    if isinstance(base, GeneratePanel):
        return base.spec, base._model, base
    if isinstance(base, str):
        return grid(base).base, None, None
    if hasattr(base, "offers") and hasattr(base, "spec"):
        return base.spec(), base, None
    raise WanlabError(
        f"{shorten(base)} cannot be varied", remedy="Give a loaded model, its id, a spec or a GeneratePanel"
    )


def _usual_out() -> Path:
    beside = beside_notebook()
    return Path("runs/ablation") if beside is None or beside.parent == Path.cwd() else beside / "ablation"


def cost_in_words(preview: Any) -> str:
    """Forwards, seconds of denoising and bytes of a grid's preview, on one line."""
    saved = f" instead of {preview.alone:,} ({preview.share_saved:.0%} saved by sharing)" if preview.share_saved else ""
    facts = [f"{preview.shared:,} forwards{saved}"]
    if num_unknown := len(preview.unknown):
        facts.append(f"perhaps fewer, as {num_unknown} caches decide while they run")
    known = preview.seconds is not None
    facts.append(f"about {duration(preview.seconds)}" if known else f"time {preview.seconds_words.partition('.')[0]}")
    num_bytes = preview.latents_bytes + (preview.clips.value or 0)
    return " · ".join([*facts, f"{num_bytes / 1e6:,.1f} MB on disk"])


def _title(base: GenerationSpec) -> str:
    prompt = html.escape(base.text.prompt) or "<i>no prompt</i>"
    return f'{STYLE}<b>Ablation of {html.escape(base.model)}</b><div class="wanlab-quiet">{prompt}</div>'


def _run_sweep(made: Grid, out: Path, model: Any) -> Any:
    from wanlab.sweeps import run_sweep

    return run_sweep(made, out=out, model=model)
