"""Claims: of several processes exactly one does a run, whoever dies at whatever moment."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import wanlab
from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.runs import _claims, _process

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(wanlab.__file__).parent.parent)}
RECORD = runs.RunRecord(id="0123456789ab", spec={"model": "wan_tiny"})

WORK = """
import os, random, signal, sys
from pathlib import Path
from wanlab import runs

out, number, seed, deadly = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
calls = 0
def count(event, args):
    global calls
    if event in ("open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.scandir", "os.utime"):
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
sys.stdin.readline()
sys.addaudithook(count)
todo = list(range(number))
if seed % 2:
    random.Random(seed).shuffle(todo)
for index in todo:
    folder = out / f"run{index}"
    record = runs.claim(folder, runs.RunRecord(id=f"id{index}"), max_attempts=100)
    if record is None:
        continue
    with open(out / "executed", "a") as log:
        log.write(f"{index} {record.attempt}\\n")
    runs.write_run(folder, record.with_(status="ok"), {"a.bin": f"{index} by {os.getpid()}".encode()})
"""


def run_together(out: Path, number: int, seeds: Iterable[int], deadly: Callable[[], int] = int) -> list[int]:
    """Start a worker for each seed, let them begin at the same time; their exit codes, negative if killed."""
    given = [[sys.executable, "-c", WORK, *map(str, (out, number, seed, deadly()))] for seed in seeds]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [subprocess.Popen(words, env=ENVIRONMENT, **pipes) for words in given]
    for worker in workers:
        assert worker.stdout.readline() == b"ready\n"
    for worker in workers:
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
    return [worker.returncode for worker in workers]


def executed(out: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in (out / "executed").read_text().splitlines())


def assert_whole(folder: Path) -> None:
    """One ok record, whose files are as it says; nothing half-written."""
    record = runs.read_run(folder)
    assert record.status == "ok"
    for entry in record.artifacts:
        runs.artifact(folder, record, entry.path)
    assert not list(folder.glob(".part-*"))


def test_eight_processes_claim_a_hundred_runs(tmp_path: Path) -> None:
    assert run_together(tmp_path, 100, range(8)) == [0] * 8
    assert executed(tmp_path) == {str(i): 1 for i in range(100)}
    for index in range(100):
        assert_whole(tmp_path / f"run{index}")


def test_workers_that_are_killed_are_replaced(tmp_path: Path) -> None:
    """Two at a time, four times, killed at random system calls; then one comes through."""
    chance, kills = random.Random(6), 0
    for turn in range(4):
        codes = run_together(tmp_path, 12, (0, turn), lambda: chance.randrange(20, 150))
        kills += sum(code < 0 for code in codes)
    assert run_together(tmp_path, 12, [0]) == [0]
    assert kills >= 2, "the first two have more to do than they live for"
    counted = executed(tmp_path)
    assert set(counted) == {str(i) for i in range(12)}
    assert counted.total() <= 12 + kills
    for index in range(12):
        assert_whole(tmp_path / f"run{index}")


DYING = """
import itertools, json, os, signal, sys
from pathlib import Path
from wanlab import runs

RECORD = runs.RunRecord(id="x")
WATCHED = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.scandir", "os.utime"}

def work(folder, deadly):
    calls = 0
    def count(event, args):
        nonlocal calls
        if event in WATCHED:
            calls += 1
            if calls == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    record = runs.claim(folder, RECORD)
    if record is not None:
        os.close(os.open(folder / f"executed-{os.getpid()}", os.O_CREAT | os.O_WRONLY))
        runs.write_run(folder, record.with_(status="ok"), {"a.bin": b"%d" % os.getpid()})

def child(folder, deadly):
    pid = os.fork()
    if not pid:
        try:
            work(folder, deadly)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return pid

found = []
for deadly in itertools.count(1):
    folder = Path(sys.argv[1]) / str(deadly)
    died = os.waitstatus_to_exitcode(os.waitpid(child(folder, deadly), 0)[1])
    after = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [child(folder, 0), child(folder, 0)]]
    found.append({"died": died, "after": after, "executed": len(list(folder.glob("executed-*")))})
    if died == 0:
        break
print(json.dumps(found))
"""


def test_a_process_that_dies_between_any_two_system_calls(tmp_path: Path) -> None:
    """Killed before each call in turn that claiming and ending a run makes; then two others come at the same time."""
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 20
    for number, case in enumerate(found, 1):
        folder = tmp_path / str(number)
        assert case["after"] == [0, 0], done.stderr
        assert case["executed"] <= 2
        assert_whole(folder)
        assert runs.claim(folder, RECORD.with_(id="x")) is None
    assert found[-1] == {"died": 0, "after": [0, 0], "executed": 1}


def claimed_by(folder: Path, *, age: float = 0.0, **whose: Any) -> None:
    """A run that another process has in hand."""
    folder.mkdir(parents=True, exist_ok=True)
    them = {"host": socket.gethostname(), "pid": os.getpid(), "process": "", "time": runs.now(), **whose}
    number = 1 + len(list(folder.glob("attempt-*")))
    crashes = number - 1
    file = folder / f"attempt-{number:03}.json"
    file.write_text(_claims.Attempt(**them, crashes=crashes).model_dump_json())
    os.utime(file, (time.time() - age,) * 2)
    (folder / "run.json").unlink(missing_ok=True)
    del them["time"]
    record = RECORD.with_(status="running", attempt=number, heartbeat=None, **them)
    (folder / "run.json").write_text(record.model_dump_json(by_alias=True))


@pytest.fixture
def other() -> Any:
    """A living process, and what tells it from others."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid, f"{_process._scope()}/{_process._started(process.pid)}"
    process.communicate(b"\n")


def test_who_is_alive(tmp_path: Path, other: tuple[int, str]) -> None:
    pid, process = other
    here, elsewhere = {"pid": pid, "process": process}, {"host": "elsewhere", "pid": 1, "process": process}
    cases: list[tuple[dict[str, Any], bool]] = [
        ({**here, "age": 3600}, True),  # it may be stopped, and go on: what is there to see is certain
        ({**here, "process": process + "1"}, False),  # the pid is another process's by now
        ({**here, "process": f"0{process}", "age": 59}, True),  # another container, or before a restart
        ({**here, "process": f"0{process}", "age": 61}, False),
        ({**here, "process": "", "age": 59}, True),  # a system that does not tell
        ({**here, "process": "", "age": 61}, False),
        ({"pid": 2**31 - 1}, False),
        ({**elsewhere, "age": 59}, True),
        ({**elsewhere, "age": 61}, False),
    ]
    for number, (whose, is_alive) in enumerate(cases):
        folder = tmp_path / str(number)
        claimed_by(folder, **whose)
        taken = runs.claim(folder, RECORD)
        assert (taken is None) == is_alive, whose
        if taken is not None:
            assert (taken.attempt, taken.pid, runs.read_run(folder)) == (2, os.getpid(), taken)


def test_a_child_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    known = f"{_process._scope()}/{_process._started(process.pid)}"
    assert process.stdout.read() == b""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    os.kill(process.pid, 0)  # it still has its number
    claimed_by(tmp_path, pid=process.pid, process=known)
    assert runs.claim(tmp_path, RECORD).attempt == 2
    process.wait()


def test_crashes_count_and_other_ends_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number, status in enumerate(("failed", "oom", "cancelled", "failed"), 1):
        record = runs.claim(folder, RECORD, max_attempts=1)
        assert record.attempt == number
        runs.fail(folder, record, RuntimeError("no"), status)
        assert runs.read_run(folder).status == status
    for _ in range(2):  # let go of without an end: as if the process had died
        assert runs.claim(folder, RECORD).status == "running"
        runs.release(folder)
    with pytest.raises(runs.GaveUp, match=r"run crashed 2 times\. Give max_attempts=3"):
        runs.claim(folder, RECORD, max_attempts=2)
    last = runs.claim(folder, RECORD, max_attempts=3)
    runs.write_run(folder, last.with_(status="ok"), {})
    assert runs.claim(folder, RECORD) is None


def test_a_claim_that_nobody_began_is_no_crash(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        (tmp_path / f"attempt-{number:03}.json").write_text("")
        os.utime(tmp_path / f"attempt-{number:03}.json", (0, 0))
    (tmp_path / "attempt-005.json").write_text(
        _claims.Attempt(host="elsewhere", pid=1, time="", crashes=0).model_dump_json()
    )
    assert runs.claim(tmp_path, RECORD) is None, "it was made a moment ago"
    os.utime(tmp_path / "attempt-005.json", (0, 0))
    assert runs.claim(tmp_path, RECORD, max_attempts=1).attempt == 6


def test_ok_is_never_replaced_by_a_slower_claimant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former owner writes ok and ends between the look at the folder and the claim."""
    claimed_by(tmp_path, pid=2**31 - 1)
    ok, real = RECORD.with_(status="ok", attempt=1), _claims._crashes

    def late(*arguments: Any) -> Any:
        found = real(*arguments)
        (tmp_path / "run.json").write_text(ok.model_dump_json(by_alias=True))
        return found

    monkeypatch.setattr(_claims, "_crashes", late)
    assert runs.claim(tmp_path, RECORD) is None
    monkeypatch.undo()
    assert runs.read_run(tmp_path) == ok
    assert runs.claim(tmp_path, RECORD) is None


@pytest.mark.parametrize("moment", ["_crashes", "create", "begin_run"])
def test_of_two_at_the_same_moment_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The other one, of another machine, does a whole run just before one of our steps."""
    real: Callable[..., Any] = getattr(_claims, moment)

    def late(*arguments: Any) -> Any:
        claimed_by(tmp_path, host="elsewhere", pid=1)
        runs.begin_run(tmp_path, RECORD.with_(status="running"))
        theirs = RECORD.with_(status="ok", attempt=len(list(tmp_path.glob("attempt-*"))))
        (tmp_path / "run.json").write_text(theirs.model_dump_json(by_alias=True))
        return real(*arguments)

    monkeypatch.setattr(_claims, moment, late)
    if moment == "begin_run":  # a machine that slept for over a minute just there
        record = runs.claim(tmp_path, RECORD)
        with pytest.raises(WanlabError, match="taken over by another process"):
            runs.write_run(tmp_path, record.with_(status="ok"), {"a.bin": b"x"})
        assert not (tmp_path / "a.bin").exists()
    else:
        assert runs.claim(tmp_path, RECORD) is None
        assert runs.read_run(tmp_path).status == "ok"


def test_who_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    mine = runs.claim(tmp_path, RECORD)
    claimed_by(tmp_path, host="elsewhere", pid=1)
    theirs = runs.read_run(tmp_path)
    with pytest.raises(WanlabError, match="taken over"):
        runs.write_run(tmp_path, mine.with_(status="ok"), {"a.bin": b"late"})
    runs.fail(tmp_path, mine, RuntimeError("late"))
    assert runs.read_run(tmp_path) == theirs
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attempt-001.json", "attempt-002.json", "run.json"]


def test_threads_of_one_process(tmp_path: Path) -> None:
    found, gate = [], threading.Barrier(8)

    def work() -> None:
        gate.wait()
        found.append(runs.claim(tmp_path, RECORD))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([record for record in found if record is not None]) == 1


def test_a_claim_is_beaten_until_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs._heart, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(runs._heart, "_heart", None)
    record = runs.claim(tmp_path, RECORD)
    file, deadline = tmp_path / "attempt-001.json", time.monotonic() + 30
    os.utime(file, (0, 0))
    while time.time() - file.stat().st_mtime > 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    old = record.with_(host="elsewhere", heartbeat="2020-01-01T00:00:00+00:00")
    (tmp_path / "run.json").write_text(old.model_dump_json(by_alias=True))
    assert runs.read_run(tmp_path).status == "running", "the claim shows that it lives"
    runs.write_run(tmp_path, record.with_(status="failed"), {})
    assert tmp_path not in runs._held._held


def test_what_other_numerics_made_is_done_again_where_asked(tmp_path: Path) -> None:
    runs.write_run(tmp_path, RECORD.with_(status="ok", numerics=1), {"a.bin": b"old"})
    assert runs.claim(tmp_path, RECORD) is None
    assert runs.claim(tmp_path, RECORD.with_(numerics=1), stale="rerun") is None
    record = runs.claim(tmp_path, RECORD, stale="rerun")
    runs.write_run(tmp_path, record.with_(status="ok"), {"a.bin": b"new"})
    assert runs.claim(tmp_path, RECORD, stale="rerun") is None


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    record = runs.claim(tmp_path, RECORD)
    assert json.loads((tmp_path / "attempt-001.json").read_text())["pid"] == os.getpid()
    runs.release(tmp_path)
    assert runs.claim(tmp_path, RECORD).attempt == record.attempt + 1


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "_started", lambda pid: None)
    monkeypatch.setattr(_process, "_scope", lambda: "")
    monkeypatch.setattr(_process, "this_process", lambda: "")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claimed_by(tmp_path / "dead", pid=dead.pid)
    claimed_by(tmp_path / "alive", pid=os.getppid())
    claimed_by(tmp_path / "late", pid=os.getppid(), age=61)
    found = [runs.claim(tmp_path / name, RECORD) is not None for name in ("dead", "alive", "late")]
    assert found == [True, False, True]


def test_a_claim_that_cannot_begin_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise WanlabError("Disk full")

    monkeypatch.setattr(_claims, "begin_run", full)
    with pytest.raises(WanlabError, match="Disk full"):
        runs.claim(tmp_path, RECORD)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert runs.claim(tmp_path, RECORD).attempt == 1
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    with pytest.raises(WanlabError, match="valid JSON"):
        runs.claim(tmp_path / "torn", RECORD)


def test_a_jobs_folder(tmp_path: Path) -> None:
    """Jobs make no claims; what they have in hand is theirs, and what they left is taken over."""
    runs.begin_run(tmp_path, RECORD.with_(attempt=4))
    assert runs.claim(tmp_path, RECORD) is None
    dead = RECORD.with_(status="running", attempt=4, host=socket.gethostname(), pid=2**31 - 1, heartbeat=runs.now())
    (tmp_path / "run.json").write_text(dead.model_dump_json(by_alias=True))
    assert runs.claim(tmp_path, RECORD).attempt == 5
