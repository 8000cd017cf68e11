"""Notebooks that fail, die, hang and flood: a named failure each, nothing is left over, and the rest goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from question import experiment
from test_experiment import broken

from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.runs import Row
from wanlab.sweeps import _engine, run_experiment

ROOT = Path(__file__).resolve().parent.parent

FAULTS = """
import os, signal, subprocess, time
kind = x
if kind == "raise":
    raise ValueError("no \\x1b[31mgood")
if kind == "memory":
    class OutOfMemoryError(RuntimeError): pass
    raise OutOfMemoryError("CUDA out of memory")
if kind == "exit":
    os._exit(3)
if kind == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "print":
    print("a" * 50_000_000)
if kind == "native":
    os.write(1, b"from C\\n")
if kind == "hang":
    child = subprocess.Popen(["sleep", "1000"])
    open("child.txt", "w").write(str(child.pid))
    while True:
        try:
            time.sleep(1000)
        except KeyboardInterrupt:
            print("not now")
"""
EXPECTED = {  # kind -> status, type, message
    "raise": ("failed", "ValueError", "no \x1b[31mgood"),
    "memory": ("oom", "OutOfMemoryError", "CUDA out of memory"),
    "exit": ("crashed", "KernelDied", "The kernel ended with status 3 in cell [3]."),
    "kill": ("crashed", "KernelDied", "The kernel was ended by SIGKILL in cell [3], maybe because memory ran out."),
    "print": ("failed", "TooMuchOutput", "More than 32 MB were printed."),
    "hang": ("failed", "CellTimeout", "A cell took more than 2 s."),
}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def wait_for(fact: Callable[[], object], seconds: float = 30.0) -> None:
    """Return once it is true."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def no_kernels(out: Path) -> bool:
    """Whether no process is left whose run lies in `out`."""
    return not [1 for environ in Path("/proc").glob("[0-9]*/environ") if str(out).encode() in _bytes(environ)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def statuses(row: Row) -> list[str]:
    node = nbformat.read(row.notebook, as_version=4)
    return [cell.metadata.papermill["status"] for cell in node.cells if "papermill" in cell.metadata]


def test_each_fault_has_its_name_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "GRACE", 0.5)
    out = tmp_path / "out"
    path = experiment(tmp_path / "faults", FAULTS, "print('end')", grid={"x": [*EXPECTED, "native"]})
    found = {row.settings["x"]: row for row in run_experiment(path, out, timeout=2)}
    for kind, (status, type_, message) in EXPECTED.items():
        row = found[kind]
        assert (row.status, row.record.error.type, row.record.error.message) == (status, type_, message)
        assert row.notebook.name == "failed.ipynb"
        assert row.notebook.stat().st_size < 5_000_000
        assert statuses(row) == ["completed"] * 3 + ["failed", "pending"]
        node = nbformat.read(row.notebook, as_version=4)
        assert "An Exception was encountered" in node.cells[0].source
        assert node.cells[5].outputs[-1].ename == type_
        assert {file.path for file in row.record.artifacts} == {"failed.ipynb", "log.txt"}
    assert "raise ValueError" in found["raise"].record.error.traceback_tail
    assert "\x1b[" not in found["raise"].record.error.traceback_tail.partition("no ")[0]
    assert len((found["print"].folder / "log.txt").read_bytes()) < 2_200_000
    assert found["native"].status == "ok"
    assert (found["native"].folder / "log.txt").read_text() == "from C\nend\n"
    assert is_gone(int((path / "child.txt").read_text()))
    assert no_kernels(out)
    assert not list(out.rglob(".part-*"))

    exit_ = found["exit"]
    again = run_experiment(path, out, points=[exit_.id], max_attempts=1).filter(id=exit_.id)[0]
    assert (again.status, again.attempt) == ("crashed", 1)


def test_a_kernel_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "jupyter" / "kernels" / "broken"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-c", "print('no such module'); raise SystemExit(7)", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "b", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = experiment(tmp_path / "q", "print(x)")
    node = nbformat.read(path / "run.ipynb", as_version=4)
    node.metadata.kernelspec.name = "broken"
    nbformat.write(node, path / "run.ipynb")
    row = run_experiment(path, tmp_path / "out")[0]
    assert (row.status, row.record.error.type) == ("failed", "KernelDidNotStart")
    assert "pending" in statuses(row)
    assert "no such module" in (row.folder / "log.txt").read_text()


def test_one_bad_notebook_of_several(tmp_path: Path) -> None:
    """It is a failed run of its name; mended, it runs, and that failure is forgotten."""
    bad, good = broken(tmp_path / "bad", "two"), experiment(tmp_path / "good", "print(x)")
    first, second = run_experiment([bad, good], tmp_path / "out")
    assert [row.status for row in first] == ["failed"]
    assert "2 cells with the tag" in first[0].error
    assert [row.status for row in second] == ["ok"]
    experiment(bad, "print(x)")
    with pytest.raises(WanlabError, match="points belong to one"):
        run_experiment([bad, good], tmp_path / "out", points=[0])
    assert [found.counts() for found in run_experiment([bad, good], tmp_path / "out")] == [{"ok": 1}, {"ok": 1}]


def test_a_cancelled_sweep_ends_at_once_and_goes_on_later(tmp_path: Path) -> None:
    cell = "import os, time\nfirst = not os.path.exists('begun')\nopen('begun', 'w').close()\ntime.sleep(first * 1000)"
    path = experiment(tmp_path / "q", cell, grid={"x": [1, 2]})
    out = tmp_path / "out"
    cancelled: list[float] = []

    def cancel() -> None:
        wait_for((path / "begun").exists)
        cancelled.append(time.monotonic())
        runs.request_cancel(out)

    thread = threading.Thread(target=cancel)
    thread.start()
    found = run_experiment(path, out)
    thread.join()
    assert time.monotonic() - cancelled[0] < 3
    assert [row.status for row in found] == ["cancelled", "pending"]
    assert sorted(file.name for file in found[0].folder.iterdir()) == ["attempt-001.json", "log.txt", "run.json"]
    assert no_kernels(out)
    assert [row.status for row in run_experiment(path, out)] == ["ok", "ok"]


def sweep(path: Path, out: Path) -> subprocess.Popen[str]:
    """`wanlab sweep` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "wanlab.cli", "sweep", str(path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's child ignores it
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_ended_leaves_nothing_running(tmp_path: Path, how: signal.Signals) -> None:
    """The kernel ends too, the record says what happened, and the next call runs what is missing, each point once."""
    cell = (
        "import os, time\nopen('ran.txt', 'a').write(f'{x}\\n')\nfirst = not os.path.exists('pid.txt')\n"
        "if x == 2 and first:\n    open('part', 'w').write(str(os.getpid()))\n    os.rename('part', 'pid.txt')\n"
        "    time.sleep(1000)"
    )
    path, out = experiment(tmp_path / "q", cell, grid={"x": [1, 2, 3]}), tmp_path / "out"
    process = sweep(path, out)
    try:
        wait_for((path / "pid.txt").exists)
        process.send_signal(how)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    kernel = int((path / "pid.txt").read_text())
    wait_for(lambda: is_gone(kernel), 10)
    assert no_kernels(out)
    stopped = "cancelled" if how == signal.SIGINT else "crashed"
    found = runs.results(out)
    assert [row.status for row in found] == ["ok", stopped, "pending"]
    if how == signal.SIGINT:
        assert process.returncode == 130, errors
        assert "cancelled" in output
    again = sweep(path, out)
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    found = runs.results(out)
    assert [row.status for row in found] == ["ok"] * 3
    assert [row.attempt for row in found] == [1, 2, 1]
    assert (path / "ran.txt").read_text().split() == ["1", "2", "2", "3"]
    assert not list(out.rglob(".part-*"))
    assert os.environ.get("WANLAB_RUN") is None
