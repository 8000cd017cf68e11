"""The panel that makes clips: a form, Generate, Cancel, a queue, progress, previews, history."""

from __future__ import annotations

import contextlib
import functools
import html
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import traitlets
from IPython.display import HTML, display

from wanlab import catalog, notebook, runs
from wanlab.errors import WanlabError
from wanlab.inline import ellipsis
from wanlab.spec import GenerationSpec
from wanlab.widgets._activity import Activity
from wanlab.widgets._arguments import beside_notebook, checked_model, checked_spec
from wanlab.widgets._buttons import button
from wanlab.widgets._history import Entry, History
from wanlab.widgets._message import Message, reason
from wanlab.widgets._settings import first_spec, keep_defaults
from wanlab.widgets._style import STYLE, stand_in
from wanlab.widgets.form import SpecForm
from wanlab.workspace import find_workspace

_TICK = 0.15  # seconds between updates of the progress
_LOOK = 0.2  # seconds between previews


class GeneratePanel(widgets.VBox):
    """A spec as a form, and what one does with it: `.spec` and `.result` are for the next cell.

    `GeneratePanel(model)` or `GeneratePanel("wan_tiny")`, which loads the model once the panel is shown, if its weights
    are on this machine. Changes (`prompt="..."`) or a spec fill the form; without either it shows the last settings of
    the model (`restore=False`: its defaults). `runs` is the folder that keeps the runs, by default runs/ beside the
    notebook. Jobs of all panels of a device run one after another in a thread, so the kernel stays free.

    Headless (papermill, scripts) the panel shows nothing, restores nothing, keeps no runs unless `runs` says where, and
    `.spec` is what it was given; `.generate()` is the button, and waits.
    """

    result = traitlets.Any(None, allow_none=True, help="The last result that ended well; None before the first.")

    def __init__(
        self,
        model: Any,
        spec: GenerationSpec | None = None,
        *,
        runs: str | Path | None = None,
        restore: bool | None = None,
        **changes: Any,
    ) -> None:
        self._workspace = find_workspace()
        self._model = None if isinstance(model, str) else checked_model(model)
        self._definition = catalog.find(model) if self._model is None else self._model.definition
        self._id: str = self._definition.id
        self._default = catalog.default_spec(self._definition, self._workspace)
        self._runs = Path(runs) if runs is not None else beside_notebook()
        self._jobs: list[Any] = []
        self._lock = threading.Lock()
        self._painting = threading.RLock()
        self._loading = threading.Lock()
        self._starting = False  # a press waits for the model
        self._ticker: threading.Thread | None = None
        self._loader: threading.Thread | None = None
        self._looked = 0.0
        self._latest: tuple[Any, float] | None = None
        self._displays: dict[str, Any] = {}  # by cell
        first, self._note = first_spec(
            self._definition, self._workspace, spec, restore=restore, bind=self._model is not None, changes=changes
        )
        self._build(first)
        self._message.say(self._note)
        self._check()

    def _build(self, spec: GenerationSpec) -> None:
        title = html.escape(self._definition.title or self._id)
        about = html.escape(self._definition.description)
        self._head = widgets.HTML(f'{STYLE}<b>{title}</b><div class="wanlab-quiet">{about}</div>')
        self._head.add_class("wanlab-text")
        self._form = SpecForm(spec, None if self._model is None else self._model.offers, self._default)
        self._generate = self._button("Generate", "Make a clip with these settings", self._press, "play", "primary")
        self._cancel = self._button("Cancel", "Stop the running clip within one step", self.cancel, "stop", "warning")
        self._dice = self._button("New seed", "Another random seed", self._new_seed, "random")
        self._defaults = self._button(
            "Defaults", "The model's defaults, yours over them; the prompt stays", self._reset, "undo"
        )
        self._keep = self._button(
            "Make default",
            "Start with these settings from now on, but for prompt, seed and media",
            self._keep_defaults,
            "bookmark",
        )
        self._message = Message()
        self._activity = Activity(cancel=lambda job: job.cancel())
        self._history = History(self._default, load=self._load_entry, show=self._show_entry)
        self._inside = widgets.HTML()
        buttons = widgets.Box(
            [self._generate, self._cancel, self._dice, self._defaults, self._keep], layout={"flex_flow": "row wrap"}
        )
        children = [self._head, self._form, buttons, self._message, self._activity, self._inside, self._history]
        super().__init__(children)
        self.add_class("wanlab-panel")
        self._cancel.disabled = True
        self._form.on_change(self._changed)

    def _button(self, text: str, tooltip: str, act: Callable[[], Any], *look: str) -> Any:
        return button(text, tooltip, functools.partial(self._told, act), *look)

    # The spec and the model

    @property
    def spec(self) -> GenerationSpec:
        """The spec that the form shows; untouched, the one it was given. Raises WanlabError for what is not legal."""
        return self._form.spec

    @spec.setter
    def spec(self, spec: GenerationSpec) -> None:
        self._form.spec = checked_spec(spec, self._definition)

    @property
    def model(self) -> Any:
        """The model, loaded on first use. Raises WanlabError where its weights are not on this machine."""
        with self._loading:
            if self._model is None:
                self._load()
            return self._model

    def _load(self) -> None:
        from wanlab.models import load

        model = load(self._id)
        self._form.narrow(model.offers)
        self._model = model
        self._check()

    def _load_in_background(self) -> None:
        """Load if the weights are here; nothing is fetched unasked."""
        if self._model is not None or self._loader is not None:
            return
        here = catalog.presence(self._definition, self._workspace)
        if not here.is_complete:
            how = catalog.remedy(self._definition, here)
            self._message.say(f"The weights of {self._id} are not on this machine: {how}.")
            return
        self._message.say(f"Loading {self._id} ...")
        self._loader = threading.Thread(target=self._try_to_load, name=f"wanlab-load-{self._id}", daemon=True)
        self._loader.start()

    def _try_to_load(self) -> None:
        try:
            self._told(lambda: self.model)
            if not self._message.is_error:
                self._message.say(self._note)
        finally:
            self._loader = None

    # What the buttons do

    def submit(self) -> Any:
        """Queue what the form says and return its Job. Raises WanlabError for settings that are not legal."""
        return self._submit(self.spec)

    def _submit(self, spec: GenerationSpec) -> Any:
        from wanlab.jobs import submit
        from wanlab.pipeline import checked

        model = self.model
        checked(model, spec)
        folder = None
        if self._runs is not None:
            folder, _ = runs.new_folder(self._runs, runs.folder_name(spec, runs.run_id(spec.id, model.fingerprint)))
        try:
            job = submit(model, spec, on_step=self._look_at_step, folder=folder)
        except BaseException:
            if folder is not None:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        with self._lock:
            self._jobs.append(job)
        job.on_end(self._ended)
        self._tick()
        self._start_ticker()
        return job

    def generate(self) -> Any:
        """Press the button and wait: the Result. Interrupting cancels. Raises what the generation raised."""
        result = self.submit().result()
        self.result = result  # the callback of the job's end may come a moment later
        return result

    def cancel(self) -> None:
        """Stop the clip that runs; the queue goes on with the next one."""
        with self._lock:
            job = next((j for j in self._jobs if not j.done()), None)
        if job is not None:
            job.cancel()

    def _press(self) -> None:
        self._message.say("")  # not after the start: a job that fails at once says so
        self._told(self._keep_and_submit)

    def _keep_and_submit(self) -> None:
        spec, is_live = self.spec, notebook.is_live()
        if is_live and (why := catalog.save_last(spec, self._workspace)):
            self._message.say(f"These settings will not come back after a restart: {why}", is_error=True)
        if self._model is not None or not is_live:
            self._submit(spec)
            return
        self._starting = self._generate.disabled = True
        if not self._message.is_error:
            self._message.say(f"Loading {self._id} ...")
        threading.Thread(target=self._load_and_submit, args=(spec,), name="wanlab-start", daemon=True).start()

    def _load_and_submit(self, spec: GenerationSpec) -> None:
        """For a press before the model is there: the kernel stays free while it is loaded."""

        def start() -> None:
            _ = self.model
            if not self._message.is_error:
                self._message.say("")
            self._submit(spec)

        try:
            self._told(start)
        finally:
            self._starting = False
            self._generate.disabled = bool(self._problem())

    def _reset(self) -> None:
        self._form.spec = self._default.with_(prompt=self._form.field("text.prompt").read())

    def _keep_defaults(self) -> None:
        said = keep_defaults(self._definition, self._workspace, self.spec)
        self._default = catalog.default_spec(self._definition, self._workspace)
        self._message.say(said)

    def _new_seed(self) -> None:
        self._form.field("sampling.seed").write(secrets.randbelow(2**31))

    def _load_entry(self, entry: Entry) -> None:
        self._told(self._fill, entry)

    def _fill(self, entry: Entry) -> None:
        self.spec = entry.spec
        if not self._message.is_error:
            self._message.say("Settings loaded.")

    def _show_entry(self, entry: Entry) -> None:
        from wanlab.result import open_result

        def show() -> None:
            self._show(open_result(entry.folder))
            self._history.fold()
            self._message.say("Shown below.")

        self._told(show)

    # What the panel says

    def _told(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Do something for a click or in a thread, where nobody would see an error: the panel says it."""
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said
            self._message.say(reason(error), is_error=True)

    def _changed(self) -> None:
        """What was said is of other settings."""
        self._message.say("")
        self._check()

    def _check(self) -> None:
        """Say what is wrong with the form, and let Generate be pressed only when nothing is."""
        problem = self._problem()
        self._generate.disabled = bool(problem) or self._starting
        if problem:
            self._message.say(problem, is_error=True)
        elif self._message.is_error:
            self._message.say("")

    def _problem(self) -> str:
        """What is wrong with the form; empty if nothing is."""
        try:
            spec = self._form.spec
            if self._model is not None:
                from wanlab.pipeline import checked

                checked(self._model, spec)
        except WanlabError as error:
            return str(error)
        return ""

    def _look_at_step(self, step: int, sigma: float, latents: Any, denoised: Any) -> None:
        """Keep a preview of the estimate, in the worker's thread; the ticker shows it."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        try:
            frames = self._model.preview(denoised)
        except Exception as error:  # noqa: BLE001 - hours of work do not end for a picture
            self._message.say(f"There is no preview: {reason(error)}", is_error=True)
            return
        if frames is not None:
            fps = next((j.spec.size.fps for j in self._jobs if not j.done()), None) or 16.0
            self._latest = frames, fps / max(1, self._model.geometry.frame_stride)

    def _start_ticker(self) -> None:
        with self._lock:
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick_until_idle, name="wanlab-panel", daemon=True)
                self._ticker.start()

    def _tick_until_idle(self) -> None:
        while True:
            time.sleep(_TICK)
            self._told(self._tick)
            with self._lock:
                if not self._jobs:
                    self._ticker = None
                    return

    def _tick(self) -> None:
        """Show how far the jobs are; one thread at a time, so that what is shown last is the latest."""
        with self._painting:
            with self._lock:
                self._jobs = [job for job in self._jobs if not job.done()]
                jobs = list(self._jobs)
            self._activity.show(jobs)
            self._cancel.disabled = not jobs
            self._generate.description = "Add to queue" if jobs else "Generate"
            self._generate.icon = "plus" if jobs else "play"
            view, self._latest = self._latest, None
            if view is not None and jobs:
                self._activity.look(*view)

    def _ended(self, job: Any) -> None:
        """A job is over, in whatever way; called in the thread that ended it."""
        self._told(self._tell_end, job)
        self._latest = None  # of this job, and the next one is another clip
        self._told(self._tick)
        self._told(self._refresh_history)

    def _tell_end(self, job: Any) -> None:
        if job.status == "done":
            self.result = job.result()
            self._show(self.result)
            if not self._message.is_error:
                self._message.say("")
        elif job.status == "cancelled":
            self._message.say(f"Cancelled: {ellipsis(job.spec.text.prompt, 60)} · seed {job.spec.sampling.seed}")
        else:
            self._message.say(reason(job.error), is_error=True)
            if job.unsaved is not None:  # the clip is made, and the disk refused it: hours of work, perhaps
                self.result = job.unsaved
                self._message.say(f"{reason(job.error)} The clip is panel.result: .save(path) keeps it.", is_error=True)
                self._show(job.unsaved)

    def _refresh_history(self) -> None:
        if self._runs is not None and self._displays:
            self._history.refresh(self._runs)

    # Display

    def _show(self, result: Any) -> None:
        """Show a result below the panel, where the notebook keeps it; inside where the panel is part of a widget."""
        if not self._displays:
            self._inside.value = result.show(embed=True)._repr_html_() if notebook.is_live() else ""
            return
        page = HTML(result._repr_html_())
        for handle in self._displays.values():
            handle.update(page)

    def _ipython_display_(self) -> None:
        if not notebook.is_live():
            display(HTML(f"<p>{html.escape(repr(self))}</p><p>{html.escape(repr(self.spec))}</p>"))
            return
        display(HTML(stand_in(f"The panel of {self._id} needs its kernel: run this cell.")))
        display(super()._repr_mimebundle_(), raw=True)
        earlier = HTML("") if self.result is None else HTML(self.result._repr_html_())
        self._displays[notebook.running_cell()[0]] = display(earlier, display_id=True)
        self._told(self._refresh_history)
        self._load_in_background()

    def __repr__(self) -> str:
        return f"GeneratePanel({self._id!r}, {len(self._jobs)} running or queued)"
