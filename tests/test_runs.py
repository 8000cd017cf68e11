"""Run folders: run.json last and whole, stale runs, the golden file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import wanlab
from wanlab import runs
from wanlab.errors import WanlabError

GOLDEN = Path(__file__).parent / "golden"


def record(**changes: object) -> runs.RunRecord:
    return runs.RunRecord(id="0123456789ab", status="ok", spec={"model": "wan_tiny"}, seeds=[7], **changes)


@pytest.mark.parametrize("version", [1, 2])
def test_golden_records_read_as_they_were(tmp_path: Path, version: int) -> None:
    golden = GOLDEN / f"run_v{version}.json"
    (tmp_path / "run.json").write_bytes(golden.read_bytes())
    found = runs.read_run(tmp_path)
    assert (found.schema_version, found.status, found.seeds, found.peak_bytes) == (2, "ok", (7,), 123456)
    assert found.artifacts[0].path == "video.mp4"
    assert found.spec["text"]["prompt"] == "a red circle „moves“ right\n"
    given = json.loads(golden.read_text())
    assert json.loads(found.model_dump_json(by_alias=True)) == {"params": {}, "process": "", **given, "schema": 2}


def test_written_run_reads_back_with_hashes(tmp_path: Path) -> None:
    source = tmp_path / "given.bin"
    source.write_bytes(b"copied")
    contents = {"latents.safetensors": b"bytes", "media/a.bin": source, "video.mp4": lambda p: p.write_text("made")}
    written = runs.write_run(tmp_path / "run", record(), contents)
    assert runs.read_run(tmp_path / "run") == written
    assert {a.path: a.bytes for a in written.artifacts} == {"latents.safetensors": 5, "media/a.bin": 6, "video.mp4": 4}
    assert runs.artifact(tmp_path / "run", written, "media/a.bin").read_bytes() == b"copied"
    left = [p for p in (tmp_path / "run").rglob("*") if p.name.startswith(".part-")]
    assert not left
    (tmp_path / "run" / "video.mp4").write_text("MADE")
    with pytest.raises(WanlabError, match=r"changed.*content"):
        runs.artifact(tmp_path / "run", written, "video.mp4")
    (tmp_path / "run" / "video.mp4").write_text("other length")
    with pytest.raises(WanlabError, match="changed"):
        runs.artifact(tmp_path / "run", written, "video.mp4")
    with pytest.raises(WanlabError, match="no file"):
        runs.artifact(tmp_path / "run", written, "../secret")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "media\\x"])
def test_artifacts_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(WanlabError):
        runs.write_run(tmp_path / "run", record(), {name: b"x"})
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from wanlab import runs
real, count = os.replace, 0
def replace(*names):
    global count
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    real(*names)
def die(path):
    if sys.argv[2] == "writing":
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_text("new b")
if sys.argv[2] != "writing":
    os.replace = replace
record = runs.RunRecord(id="new", status="ok")
runs.write_run(sys.argv[1], record, {"a.bin": lambda p: p.write_text("new a"), "b.bin": die})
"""


@pytest.mark.parametrize("moment", ["writing", "0", "1", "2"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "over an older run"])
def test_kill_between_artifacts_leaves_no_lie(tmp_path: Path, moment: str, again: bool) -> None:
    """After SIGKILL a folder is the older run, untouched, or has no run.json; never a record of other files."""
    folder = tmp_path / "run"
    if again:
        runs.write_run(folder, runs.RunRecord(id="old", status="ok"), {"a.bin": b"old a", "b.bin": b"old b!"})
    environment = {**os.environ, "PYTHONPATH": str(Path(wanlab.__file__).parent.parent)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], env=environment)
    assert killed.returncode == -signal.SIGKILL
    if again and moment == "writing":
        old = runs.read_run(folder)
        assert old.id == "old"
        assert runs.artifact(folder, old, "b.bin").read_bytes() == b"old b!"
    else:
        with pytest.raises(WanlabError, match="no run folder"):
            runs.read_run(folder)
    new = runs.write_run(folder, record(), {"a.bin": b"new a", "b.bin": b"new b"})
    assert runs.read_run(folder) == new
    assert not [p for p in folder.iterdir() if p.name.startswith(".part-")], "the next run sweeps what was left"


def test_a_new_run_removes_what_only_the_older_one_named(tmp_path: Path) -> None:
    """The user's own files stay, and so does everything while the new record is not there."""
    folder = tmp_path / "run"
    runs.write_run(folder, record(), {"video.mp4": b"old", "latents.safetensors": b"old", "media/a.png": b"old"})
    (folder / "notes.txt").write_text("mine")
    new = runs.write_run(folder, record(), {"image.png": b"new", "latents.safetensors": b"new"})
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["image.png", "latents.safetensors", "notes.txt", "run.json"]
    assert runs.read_run(folder) == new

    (tmp_path / "private").write_text("mine")
    for named in ("../private", "run.json", "notes.txt/x"):
        foreign = new.with_(artifacts=[{"path": named, "sha256": "0" * 64, "bytes": 1}])
        (folder / "run.json").write_text(foreign.model_dump_json(by_alias=True))
        assert runs.write_run(folder, record(), {"image.png": b"new"}).artifacts == new.artifacts[:1]
    assert (tmp_path / "private").read_text() == (folder / "notes.txt").read_text() == "mine"
    (folder / "run.json").write_text("{")
    runs.write_run(folder, record(), {"image.png": b"new"})


def test_after_the_older_record_is_gone_only_renames_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full from any moment on leaves the older run or completes the new one."""
    runs.write_run(tmp_path, record(), {"a.bin": b"old"})
    real = os.fsync
    for allowed in range(4):
        calls = iter([real] * allowed)

        def fsync(handle: int, calls: Iterator[Any] = calls) -> None:
            try:
                next(calls)(handle)
            except StopIteration:
                raise OSError(errno.ENOSPC, "No space left on device") from None

        before = runs.read_run(tmp_path)
        monkeypatch.setattr(os, "fsync", fsync)
        with contextlib.suppress(WanlabError):
            runs.write_run(tmp_path, record(attempt=2 + allowed), {"a.bin": b"new %d" % allowed})
        monkeypatch.undo()
        after = runs.read_run(tmp_path)
        assert after.attempt == before.attempt if allowed < 2 else after.attempt == 2 + allowed
        assert runs.artifact(tmp_path, after, "a.bin").exists()


def test_error_while_writing_keeps_the_older_run(tmp_path: Path) -> None:
    old = runs.write_run(tmp_path, record(), {"a.bin": b"old"})

    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.write_run(tmp_path, record(), {"a.bin": b"new", "b.bin": fail})
    assert runs.read_run(tmp_path) == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "run.json"]


def test_running_record_is_alive_until_its_process_or_heart_stops(tmp_path: Path) -> None:
    alive = runs.begin_run(tmp_path, runs.RunRecord(id="x"))
    assert runs.read_run(tmp_path).status == "running"
    assert runs.read_run(tmp_path).pid == os.getpid()
    assert runs.beat(tmp_path, alive).heartbeat >= alive.heartbeat

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    late = (datetime.now(UTC) - timedelta(seconds=61)).isoformat()
    naive = datetime.now(UTC).replace(tzinfo=None).isoformat()
    beats = [{"heartbeat": text} for text in (late, naive, "", "yesterday", "9" * 5000, "0001-01-01T00:00:00+23:59")]
    born = {"process": alive.process + "0"}  # its pid is another process's by now
    for changes in ({"pid": dead.pid}, born, {"heartbeat": late, "host": "elsewhere"}, *beats):
        (tmp_path / "run.json").write_text(alive.with_(**changes).model_dump_json(by_alias=True))
        assert runs.read_run(tmp_path).status == "crashed", changes
    (tmp_path / "run.json").write_text(alive.with_(pid=dead.pid, host="elsewhere").model_dump_json(by_alias=True))
    assert runs.read_run(tmp_path).status == "running", "a pid of another host says nothing"
    ended = alive.with_(status="ok", heartbeat=late)
    (tmp_path / "run.json").write_text(ended.model_dump_json(by_alias=True))
    assert runs.read_run(tmp_path).status == "ok"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"run\.json"),
        ("{", "valid JSON"),
        ("[]", "schema"),
        ('{"id": "x"}', "schema"),
        ('{"schema": 99}', "newer"),
        ('{"schema": true}', "schema"),
        ('{"schema": 1, "statsu": "ok"}', "status"),
        ('{"schema": 1, "peak_bytes": NaN}', "NaN"),
        ('{"schema": 1, "status": "fine"}', "status"),
        ('{"schema": 1, "status": "running", "pid": 0}', "pid"),
        ('{"schema": 1, "status": "running", "pid": 4294967296}', "pid"),
        ('{"schema": 1, "status": "running", "heartbeat": 7}', "heartbeat"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(WanlabError, match=match):
        runs.read_run(tmp_path)
    with pytest.raises(WanlabError, match="no run folder"):
        runs.read_run(tmp_path / "absent")


def test_migrations_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the next schema will be read: pure functions, one a version."""
    monkeypatch.setattr(runs._record, "SCHEMA", 3)
    rename = {1: lambda d: {**d, "id": d["id"] + "-2"}, 2: lambda d: {**d, "id": d["id"] + "-3"}}
    monkeypatch.setattr(runs._record, "MIGRATIONS", rename)
    (tmp_path / "run.json").write_text('{"schema": 1, "id": "x"}')
    found = runs.read_run(tmp_path)
    assert (found.id, found.schema_version) == ("x-2-3", 3)


def test_ids_depend_on_spec_weights_and_numerics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = runs.run_id("aaa", "bbb")
    assert first == "3b7b045fe68e", "ids on disk would no longer be found"
    assert len({first, runs.run_id("aab", "bbb"), runs.run_id("aaa", "bbc"), runs.run_id("aaab", "bb")}) == 4
    monkeypatch.setattr(runs._record, "NUMERICS", runs.NUMERICS + 1)
    assert runs.run_id("aaa", "bbb") != first


def test_environment_names_versions_and_commit() -> None:
    found = runs.environment()
    assert found["wanlab"] == wanlab.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "diffusers", "transformers", "platform"} <= set(found)
    assert len(found.get("commit", "0" * 40)) == 40
    json.dumps(found, allow_nan=False)
    assert socket.gethostname() not in json.dumps(found)


def test_fail_says_why_and_keeps_what_is_given(tmp_path: Path) -> None:
    begun = runs.begin_run(tmp_path, runs.RunRecord(id="x"))
    ended = runs.fail(tmp_path, begun, MemoryError("a file called \udcff"), "oom", {"media/a.png": b"given"})
    assert runs.read_run(tmp_path) == ended
    assert (ended.status, ended.error.type, ended.error.message) == ("oom", "MemoryError", "a file called \\udcff")
    assert "MemoryError" in ended.error.traceback_tail
    assert runs.artifact(tmp_path, ended, "media/a.png").read_bytes() == b"given"
    cancelled = runs.fail(tmp_path, begun, KeyboardInterrupt("enough"), "cancelled")
    assert cancelled.error.traceback_tail == ""


def test_fail_does_not_hide_the_error_where_the_disk_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file where the folder was")
    runs.fail(tmp_path / "run", runs.RunRecord(id="x"), RuntimeError("of the run"))
    assert "could not be told that its run was failed" in caplog.text


def test_a_forked_process_has_nothing_in_hand(tmp_path: Path) -> None:
    code = """
import os, sys
from wanlab import runs
mine = runs.claim(sys.argv[1], runs.RunRecord(id="x"))
if os.fork() == 0:
    os._exit(0 if runs.claim(sys.argv[1], mine) is None and runs.claim(sys.argv[2], mine).pid == os.getpid() else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
runs.write_run(sys.argv[1], mine.with_(status="ok"), {})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(wanlab.__file__).parent.parent)}
    folders = [str(tmp_path / name) for name in "ab"]
    subprocess.run([sys.executable, "-c", code, *folders], env=environment, check=True)
    assert [runs.read_run(folder).status for folder in folders] == ["ok", "crashed"]
