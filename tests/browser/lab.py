"""A notebook in a real JupyterLab, as a test sees it.

    def test_a_panel(lab: Lab) -> None:
        lab.new("import wanlab", "panel = wanlab.widgets.GeneratePanel('wan_tiny'); panel")
        lab.run_all()
        lab.output(1).get_by_role("button", name="Generate").click()

Times are seconds. What the kernel runs is awaited; what a click starts is awaited with `lab.until(...)` or with
playwright's own `expect`. Cells and their outputs are counted from 0 over all cells of the notebook, texts included.
"""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page

    from tests.browser.server import Server

WIDTHS = (1300, 800)
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

# jupyterlab_widgets 3.0.17 throws this, once, in every notebook that is opened without a kernel.
_THROWN_WITHOUT_KERNEL = ("null (reading 'kernel')", "@jupyter-widgets/jupyterlab-manager")

_PANEL = "const panel = [...jupyterapp.shell.widgets('main')].find(w => w.context?.path === window.wanlabPath);"
_PRELUDE = f"""
    window.wanlabPanel = () => {{ {_PANEL} return panel; }};
    window.wanlabDo = (name, args) => {{
        window.wanlabDone = null;
        jupyterapp.commands.execute(name, args).then(
            () => {{ window.wanlabDone = {{}}; }}, error => {{ window.wanlabDone = {{ error: String(error) }}; }});
    }};
"""


class Lab:
    """One page of JupyterLab, in the light theme at first, that shows one notebook of the server at a time.

    `errors` collects what the page threw and what it logged as an error, texts only; `page` is playwright's page.
    """

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        self.path = ""
        server.forget_theme()
        page.add_init_script(_PRELUDE)
        page.on("pageerror", lambda error: self._note_thrown(error.stack or str(error)))
        page.on("console", self._note)

    def _note_thrown(self, error: str) -> None:
        if not all(word in error for word in _THROWN_WITHOUT_KERNEL):
            self.errors.append(f"thrown: {error}")

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"logged: {message.text} ({message.location.get('url', '')})")

    # -- notebooks ---------------------------------------------------------------------------------------------------

    def new(self, *sources: str, name: str = "") -> Path:
        """Open a new notebook with these code cells and a kernel of its own; returns its file."""
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        file = self.server.root / (name or f"test-{secrets.token_hex(4)}.ipynb")
        nbformat.write(notebook, file)
        self.open(file)
        return file

    def open(self, notebook: Path, kernel: bool = True) -> None:
        """Open a notebook in a fresh workspace, with a kernel that is idle, or with none at all.

        A notebook from outside the server's folder is copied there first. An open notebook is left behind with its
        kernel: call `close` before, if it is not needed any more.
        """
        if not notebook.is_relative_to(self.server.root):
            notebook = Path(shutil.copy(notebook, self.server.root))
        self.path = notebook.relative_to(self.server.root).as_posix()
        workspace = f"{self.server.url}/lab/workspaces/{secrets.token_hex(4)}"
        address = f"/tree/{quote(self.path)}" if kernel else ""
        self.page.goto(f"{workspace}{address}?token={self.server.token}")
        self.until("() => window.jupyterapp?.restored.then(() => true)", 60)
        self.page.evaluate("path => { window.wanlabPath = path; }", self.path)
        if not kernel:
            self._open_without_kernel()
        self.until("() => window.wanlabPanel()?.context.isReady", 60)
        self.until("() => window.wanlabPanel().content.model?.cells.length > 0")
        self.page.evaluate("() => { if (jupyterapp.shell.leftCollapsed === false) jupyterapp.shell.collapseLeft(); }")
        if kernel:
            self.wait_idle(60)

    def _open_without_kernel(self) -> None:
        """A notebook always starts its kernel, so the factory of notebooks is told that they have none."""
        self.page.evaluate(
            """() => { const factory = jupyterapp.docRegistry.getWidgetFactory('Notebook');
                       Object.defineProperty(factory, 'preferKernel', { value: false }); }"""
        )
        self.command("docmanager:open", path=self.path, factory="Notebook")

    def command(self, name: str, timeout: float = 60, **arguments: Any) -> None:
        """Run one of Lab's commands to its end; raises AssertionError for one that fails."""
        self.page.evaluate("([name, args]) => window.wanlabDo(name, args)", [name, arguments])
        self.until("() => window.wanlabDone", timeout)
        failed = self.page.evaluate("() => window.wanlabDone.error")
        assert not failed, f"{name}: {failed}"

    def save(self) -> Path:
        """Save the notebook and return its file."""
        self._activate()
        self.command("docmanager:save")
        return self.file

    @property
    def file(self) -> Path:
        """The open notebook's file."""
        return self.server.root / self.path

    def close(self) -> None:
        """Shut down the notebook's kernel, if it has one; the page still shows the notebook."""
        for session in self.server.api("sessions"):
            if session["path"] == self.path:
                self.server.api(f"sessions/{session['id']}", "DELETE")

    def has_kernel(self) -> bool:
        """Whether a kernel belongs to the notebook."""
        return any(session["path"] == self.path for session in self.server.api("sessions"))

    def is_trusted(self) -> bool:
        """Whether Lab runs what the saved outputs of all code cells contain."""
        return bool(
            self.page.evaluate(
                """() => [...window.wanlabPanel().content.model.cells]
                             .every(cell => cell.type !== 'code' || cell.trusted)"""
            )
        )

    # -- running -----------------------------------------------------------------------------------------------------

    def run_all(self, timeout: float = 120) -> None:
        """Run all cells and wait for the last to end. A failing cell ends the run: see `assert_no_errors`."""
        self._activate()
        self.command("notebook:run-all-cells", timeout)

    def run(self, source: str, timeout: float = 60, wait: bool = True) -> int:
        """Append a code cell, run it, and return its index; `wait=False` returns while it runs."""
        self._activate()
        index = self.page.evaluate(
            """source => { const notebook = window.wanlabPanel().content, model = notebook.model.sharedModel;
                           model.insertCell(model.cells.length, { cell_type: 'code', source });
                           return model.cells.length - 1; }""",
            source,
        )
        self.run_cell(index, timeout, wait)
        return int(index)

    def run_cell(self, index: int, timeout: float = 60, wait: bool = True) -> None:
        """Run one cell; `wait=False` returns while it runs."""
        self._activate()
        self.page.evaluate("i => { window.wanlabPanel().content.activeCellIndex = i; }", index)
        if wait:
            self.command("notebook:run-cell", timeout)
        else:
            self.page.evaluate("() => window.wanlabDo('notebook:run-cell')")

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until the kernel has nothing to do."""
        self.until("() => window.wanlabPanel().sessionContext.session?.kernel?.status === 'idle'", timeout)

    def _activate(self) -> None:
        """Commands act on the notebook that is in front."""
        self.page.evaluate("() => jupyterapp.shell.activateById(window.wanlabPanel().id)")
        self.until("() => jupyterapp.shell.currentWidget === window.wanlabPanel()")

    def until(self, claim: str, timeout: float = 20, argument: Any = None) -> Any:
        """Wait until a JavaScript function returns something true, and return it as JSON would.

        `claim` is "() => ..." or "argument => ...". Raises playwright's TimeoutError.
        """
        return self.page.wait_for_function(claim, arg=argument, timeout=timeout * 1000).json_value()

    # -- what is shown -----------------------------------------------------------------------------------------------

    @property
    def panel(self) -> Locator:
        """The notebook with its toolbar."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def cell(self, index: int) -> Locator:
        """A cell, its source and its output."""
        return self.panel.locator(".jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        """A code cell's outputs; what the source says is not in it."""
        return self.cell(index).locator(".jp-OutputArea-output")

    @property
    def output_areas(self) -> Locator:
        """All outputs of all code cells."""
        return self.panel.locator(".jp-OutputArea-output")

    @property
    def shown(self) -> Locator:
        """All outputs and texts that can be seen."""
        return self.panel.locator(".jp-OutputArea-output:visible, .jp-MarkdownOutput:visible")

    def index(self, text: str) -> int:
        """The first cell whose source contains this text."""
        sources = [cell["source"] for cell in self.cells()]
        return next(i for i, source in enumerate(sources) if text in source)

    def cells(self) -> list[dict[str, Any]]:
        """The notebook's cells as nbformat writes them, as they are now and unsaved."""
        found = self.page.evaluate("() => JSON.stringify(window.wanlabPanel().content.model.toJSON().cells)")
        cells: list[dict[str, Any]] = json.loads(found)
        for cell in cells:
            cell["source"] = "".join(cell["source"])
        return cells

    def text(self, index: int) -> str:
        """What a cell's outputs show as text."""
        return "\n".join(self.output(index).all_inner_texts())

    def assert_no_errors(self) -> None:
        """No cell ended with an exception, `assert_widgets_shown`, nothing was thrown or logged as an error."""
        failed = [o for cell in self.cells() for o in cell.get("outputs", []) if o["output_type"] == "error"]
        assert not failed, "\n".join(["\n".join(o["traceback"]) for o in failed])
        self.assert_widgets_shown()
        assert not self.errors, "\n".join(self.errors)

    def assert_widgets_shown(self) -> None:
        """No output says that a widget is missing, within ten seconds.

        Lab says "Loading widget..." for ever where a notebook with a widget has no kernel, and "Error displaying
        widget" where a new kernel does not know it. What is hidden says nothing.
        """
        from playwright.sync_api import expect

        for told in ("Loading widget...", "Error displaying widget"):
            expect(self.output_areas.get_by_text(told).filter(visible=True)).to_have_count(0, timeout=10_000)

    # -- looks -------------------------------------------------------------------------------------------------------

    def theme(self, name: str) -> None:
        """Switch to "light" or "dark"."""
        theme = THEMES[name]
        self.command("apputils:change-theme", theme=theme)
        self.until("theme => document.body.dataset.jpThemeName === theme", argument=theme)
        self._settle()

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window this many pixels."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.until("width => Math.abs(document.body.getBoundingClientRect().width - width) < 1", argument=width)
        self._settle()

    def _settle(self) -> None:
        """Two frames: the first lays out, the second answers what observers changed."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def freeze(self, seconds: float) -> None:
        """Pause all players and show the picture at this time, so that screenshots of them are alike."""
        for video in self.videos().all():
            seek(video, seconds)

    # -- videos ------------------------------------------------------------------------------------------------------

    def videos(self) -> Locator:
        """All players in the notebook's outputs that can be seen."""
        return self.output_areas.locator("video:visible")

    def wait_videos(self, count: int = 1, timeout: float = 20) -> list[dict[str, Any]]:
        """Wait until at least this many players can be seen and all can play through; returns what they are.

        Each is a dict: readyState, duration and currentTime in seconds, paused, width and height of the film, src.
        """
        self.until(
            """count => { const found = [...document.querySelectorAll('.jp-OutputArea-output video')]
                              .filter(video => video.checkVisibility({ visibilityProperty: true }));
                          return found.length >= count && found.every(video => video.readyState === 4); }""",
            timeout,
            count,
        )
        found: list[dict[str, Any]] = self.videos().evaluate_all(
            """all => all.map(v => ({ readyState: v.readyState, duration: v.duration, currentTime: v.currentTime,
                                      paused: v.paused, width: v.videoWidth, height: v.videoHeight,
                                      src: v.currentSrc.slice(0, 120) }))"""
        )
        return found


def seek(video: Locator, seconds: float) -> float:
    """Pause a player, seek, wait for the picture, and return where it is."""
    return float(
        video.evaluate(
            """(video, seconds) => new Promise(done => {
                   video.pause();
                   video.addEventListener('seeked', () => done(video.currentTime), { once: true });
                   video.currentTime = seconds; })""",
            seconds,
        )
    )


def frame_numbers(videos: Locator, fps: float) -> list[int]:
    """Which frame each player is at, all read at the same moment."""
    read = "(all, fps) => all.map(video => Math.floor(video.currentTime * fps + 1e-3))"
    return [int(number) for number in videos.evaluate_all(read, fps)]


def plays(video: Locator) -> bool:
    """Start a player and tell whether its time changes within five seconds."""
    return bool(
        video.evaluate(
            """async video => {
                   await video.play();
                   const from = video.currentTime;
                   return await new Promise(done => {
                       const end = setTimeout(() => done(false), 5000);
                       const look = () => video.currentTime !== from
                           ? (clearTimeout(end), done(true)) : requestAnimationFrame(look);
                       look(); }); }"""
        )
    )
