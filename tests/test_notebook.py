"""Where the notebook is: told by servers and VS Code, unknown elsewhere, not inherited by kernels of kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

from wanlab import notebook


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JPY_SESSION_NAME", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)


def kernel(monkeypatch: pytest.MonkeyPatch, told: Path | str | None = None, **names: Any) -> SimpleNamespace:
    """A shell of a kernel that a server started for the notebook `told`."""
    shell = SimpleNamespace(kernel=object(), user_ns=names, get_parent=dict)
    monkeypatch.setattr(notebook, "shell", lambda: shell)
    if told is not None:
        monkeypatch.setenv("JPY_SESSION_NAME", str(told))
    return shell


def test_outside_a_kernel_nobody_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "x.ipynb"))
    assert notebook.notebook_file() is None
    assert notebook.link(tmp_path / "a.mp4") is None
    assert not notebook.is_live()
    assert notebook.running_cell() == ("", "")


def test_a_server_and_vs_code_say_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel(monkeypatch)
    assert notebook.notebook_file() is None
    assert not notebook.is_live()
    kernel(monkeypatch, tmp_path / "x.ipynb")
    assert notebook.notebook_file() == tmp_path / "x.ipynb"
    assert notebook.is_live()
    kernel(monkeypatch, "x.ipynb")
    assert notebook.notebook_file() is None, "a name without a folder is no place"
    kernel(monkeypatch, __vsc_ipynb_file__=str(tmp_path / "y.ipynb"))
    assert notebook.notebook_file() == tmp_path / "y.ipynb"


def test_a_name_that_the_starting_process_has_too_is_inherited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """papermill in a cell of a.ipynb starts kernels that are not a.ipynb's."""
    starters: list[subprocess.Popen[bytes]] = []
    wait = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    try:
        for told in (None, tmp_path / "a.ipynb", tmp_path / "b.ipynb"):
            environment = os.environ | ({} if told is None else {"JPY_SESSION_NAME": str(told)})
            starter = subprocess.Popen(wait, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            starters.append(starter)
            assert starter.stdout is not None
            starter.stdout.readline()
        kernel(monkeypatch, tmp_path / "a.ipynb")
        found = []
        for starter in starters:
            monkeypatch.setenv("JPY_PARENT_PID", str(starter.pid))
            found.append(notebook.notebook_file())
        assert found == [tmp_path / "a.ipynb", None, tmp_path / "a.ipynb"]
    finally:
        for starter in starters:
            starter.communicate()


def test_a_kernel_of_nbclient_knows_no_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "outer.ipynb"))
    monkeypatch.setenv("PYTHONPATH", str(Path(notebook.__file__).parents[1]))
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    code = """
import os
from wanlab import notebook
assert notebook.shell() is not None and os.environ["JPY_SESSION_NAME"]
assert notebook.running_cell()[1]
notebook.notebook_file(), notebook.is_live()
"""
    inner = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    starter = "import sys, nbformat; from nbclient import NotebookClient\n"
    starter += "n = nbformat.read(sys.stdin, as_version=4); NotebookClient(n, timeout=60).execute()\n"
    starter += "print(n.cells[0].outputs[0]['data']['text/plain'])"
    ran = subprocess.run(
        [sys.executable, "-c", starter], input=nbformat.writes(inner), capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == "(None, False)", ran.stderr[-2000:]


def test_links_go_down_from_the_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel(monkeypatch, tmp_path / "lab" / "x.ipynb")
    inside = tmp_path / "lab"
    assert notebook.link(inside / "runs" / "a b" / 'é"<.mp4') == "runs/a%20b/%C3%A9%22%3C.mp4"
    assert notebook.link(inside / "runs" / ".." / "a.mp4") == "a.mp4"
    for path in (tmp_path / "a.mp4", inside / ".hidden" / "a.mp4", inside / ".a.mp4", inside / ".." / "a.mp4"):
        assert notebook.link(path) is None
    monkeypatch.chdir(tmp_path)
    assert notebook.link("lab/a.mp4") == "a.mp4"


def test_links_go_through_linked_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server follows runs -> a large disk; a notebook that was opened through a link has its files beside it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "home").symlink_to(tmp_path / "lab")
    kernel(monkeypatch, tmp_path / "home" / "x.ipynb")
    assert notebook.link(tmp_path / "home" / "runs" / "a.mp4") == "runs/a.mp4"
    assert notebook.link(tmp_path / "lab" / "a.mp4") == "a.mp4"
    assert notebook.link(tmp_path / "disk" / "a.mp4") is None


def test_cells_are_named_by_the_frontend_or_by_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = kernel(monkeypatch)
    shell.get_parent = lambda: {"header": {"msg_id": "m1"}, "metadata": {"cellId": "c"}}
    assert notebook.running_cell() == ("c", "m1")
    shell.get_parent = lambda: {"header": {"msg_id": "m2"}, "metadata": {}}
    assert notebook.running_cell() == ("m2", "m2")
