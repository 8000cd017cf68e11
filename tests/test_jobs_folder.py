"""A job's folder: what its record says from submission to the end, kills, full disks, ends of the process."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.test_jobs import SPEC, WAIT, Gate
from tests.tiny import tiny_wan
from wanlab import runs
from wanlab.audio import Audio
from wanlab.jobs import _folder
from wanlab.watch import Cancelled

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"))[1]


@pytest.fixture(scope="module")
def model(definition: dict[str, Any]) -> Any:
    return wanlab.load(definition, device="cpu")


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_record_follows_the_job(model: Any, tmp_path: Path) -> None:
    gate = Gate()
    first = wanlab.submit(model, **SPEC, on_step=gate, folder=tmp_path / "a")
    second = wanlab.submit(model, **SPEC, folder=str(tmp_path / "b"))
    assert gate.reached.wait(WAIT)
    assert (first.folder, second.folder) == (tmp_path / "a", tmp_path / "b")
    assert runs.read_run(first.folder).status == "running"
    waiting = runs.read_run(second.folder)
    assert (waiting.status, waiting.pid, waiting.spec) == ("pending", os.getpid(), second.spec.to_dict())
    with pytest.raises(wanlab.WanlabError, match=r"is running\. Wait"):
        wanlab.open_result(first.folder)
    for job in (first, second):
        with pytest.raises(wanlab.WanlabError, match="holds a run that is"):
            wanlab.submit(model, **SPEC, folder=job.folder)
    gate.opened.set()
    results = [job.result(WAIT) for job in (first, second)]
    for job, result in zip((first, second), results, strict=True):
        assert files(job.folder) == ["latents.safetensors", "run.json", "video.mp4"]
        assert result.path == job.folder
        assert result.record == runs.read_run(job.folder)
        assert result.record.status == "ok"
        opened = wanlab.open_result(job.folder)
        assert torch.equal(opened.latents, result.latents)
        assert opened.run_id == result.run_id == waiting.id
    assert np.array_equal(results[0].frames, wanlab.generate(model, **SPEC).frames)
    assert first.progress.stages[-1].name == "save"
    with pytest.raises(wanlab.WanlabError, match="finished run"):
        wanlab.submit(model, **SPEC, folder=first.folder)


def test_a_folder_equals_one_that_save_wrote(model: Any, tmp_path: Path) -> None:
    job = wanlab.submit(model, **SPEC, folder=tmp_path / "job")
    saved = wanlab.generate(model, **SPEC).save(tmp_path / "saved")
    job.result(WAIT)
    assert (job.folder / "video.mp4").read_bytes() == (saved / "video.mp4").read_bytes()
    assert (job.folder / "latents.safetensors").read_bytes() == (saved / "latents.safetensors").read_bytes()
    ours, theirs = (json.loads((folder / "run.json").read_text()) for folder in (job.folder, saved))
    assert {k for k in ours if ours[k] != theirs[k]} <= {"timings", "started", "ended", "peak_bytes"}


def test_sound_and_picture_are_both_kept(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files that are encoded: neither takes the other's place."""
    sound, decode = Audio(np.full((1, 4000), 0.5, np.float32), 8000), model.decode
    monkeypatch.setattr(model, "decode", lambda *args, **named: replace(decode(*args, **named), audio=sound))
    job = wanlab.submit(model, **SPEC, folder=tmp_path / "a")
    result = job.result(WAIT)
    opened = wanlab.open_result(tmp_path / "a")
    assert opened.frames.shape == result.frames.shape
    assert np.array_equal(opened.audio.samples, sound.samples)
    assert files(tmp_path / "a") == ["audio.wav", "latents.safetensors", "run.json", "video.mp4"]


@pytest.mark.parametrize("words", ["a file called \udcff", "\ud800"])
def test_what_utf8_cannot_write_ends_the_job_all_the_same(model: Any, tmp_path: Path, words: str) -> None:
    """An error may name a file whose name is no text."""

    def fail(*_: Any) -> None:
        raise OSError(words)

    job = wanlab.submit(model, **SPEC, folder=tmp_path / "a", on_step=fail)
    with pytest.raises(OSError, match=re.escape(words)):
        job.result(WAIT)
    record = runs.read_run(tmp_path / "a")
    assert record.status == "failed"
    assert record.error.message == words.encode(errors="backslashreplace").decode()


def test_a_record_that_cannot_be_written_ends_the_job_all_the_same(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("of the run")

    def refuse(*_: Any) -> None:
        raise RuntimeError("of the record")

    monkeypatch.setattr(runs._claims, "write_run", refuse)
    with pytest.raises(RuntimeError, match="of the run"):
        wanlab.submit(model, **SPEC, folder=tmp_path / "a", on_step=fail).result(WAIT)


def test_failed_cancelled_and_oom_say_so_and_may_be_tried_again(model: Any, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory, said the test")

    def broken(*_: Any) -> None:
        raise RuntimeError("from a callback")

    folder = tmp_path / "run"
    for attempt, (fn, status, error) in enumerate([(full, "oom", RuntimeError), (broken, "failed", RuntimeError)], 1):
        job = wanlab.submit(model, **SPEC, on_step=fn, folder=folder)
        with pytest.raises(error):
            job.result(WAIT)
        record = runs.read_run(folder)
        assert (record.status, record.attempt, job.status) == (status, attempt, "failed")
        assert record.error.type in ("OutOfMemoryError", "RuntimeError")
        assert fn.__name__ in record.error.traceback_tail
        assert record.error.message in record.error.traceback_tail
        with pytest.raises(wanlab.WanlabError, match=f"{status}.*again"):
            wanlab.open_result(folder)
    gate = Gate()
    running = wanlab.submit(model, **SPEC, on_step=gate, folder=folder)
    queued = wanlab.submit(model, **SPEC, folder=tmp_path / "queued")
    assert gate.reached.wait(WAIT)
    queued.cancel()
    assert runs.read_run(queued.folder).status == "cancelled"
    running.cancel()
    gate.opened.set()
    with pytest.raises(Cancelled):
        running.result(WAIT)
    record = runs.read_run(folder)
    assert (record.status, record.attempt, record.error.traceback_tail) == ("cancelled", 3, "")
    assert files(folder) == ["run.json"]
    assert wanlab.submit(model, **SPEC, folder=folder).result(WAIT).record.attempt == 4
    assert wanlab.open_result(folder).record.attempt == 4


def test_a_long_step_is_no_crash(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting and running jobs are beaten while a step takes its time; none is after its end."""
    monkeypatch.setattr(runs._heart, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(runs._heart, "_heart", None)
    gate = Gate()
    folders = [
        wanlab.submit(model, **SPEC, on_step=gate if name == "a" else None, folder=tmp_path / name).folder
        for name in "ab"
    ]
    assert gate.reached.wait(WAIT)
    before, deadline = [runs.read_run(f).heartbeat for f in folders], time.monotonic() + WAIT
    while any(runs.read_run(f).heartbeat == b for f, b in zip(folders, before, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.opened.set()
    deadline = time.monotonic() + WAIT
    while runs.read_run(folders[1]).status != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended = [(f / "run.json").read_bytes() for f in folders]
    again = threading.Event()
    real = _folder.JobFolder.beat
    monkeypatch.setattr(_folder.JobFolder, "beat", lambda self: (real(self), again.set()))
    assert again.wait(WAIT)
    assert [(f / "run.json").read_bytes() for f in folders] == ended


@pytest.mark.parametrize(
    ("folder", "words"), [("x.mp4", "name of a file"), ("", "no folder"), ("a\0b", "no folder"), (7, "no folder")]
)
def test_a_path_that_is_no_folder(model: Any, folder: Any, words: str) -> None:
    with pytest.raises(wanlab.WanlabError, match=words):
        wanlab.submit(model, **SPEC, folder=folder)


def test_a_place_that_cannot_be_written(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(wanlab.WanlabError, match="file"):
            wanlab.submit(model, **SPEC, folder=folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{")
    with pytest.raises(wanlab.WanlabError, match=r"run\.json"):
        wanlab.submit(model, **SPEC, folder=tmp_path / "other")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_went_away_before_the_start(model: Any, tmp_path: Path) -> None:
    """It is made again; if that cannot be, the job fails before it computes anything."""
    gate, steps = Gate(), Gate(at=99)
    first = wanlab.submit(model, **SPEC, on_step=gate)
    gone, blocked = (wanlab.submit(model, **SPEC, on_step=steps, folder=tmp_path / name / "run") for name in "ab")
    assert gate.reached.wait(WAIT)
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    (tmp_path / "b").write_text("a file where the folder was")
    gate.opened.set()
    first.result(WAIT)
    assert gone.result(WAIT).path == tmp_path / "a" / "run"
    with pytest.raises(wanlab.WanlabError, match="Cannot write"):
        blocked.result(WAIT)
    assert steps.steps == list(range(6))
    assert blocked.unsaved is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_the_end_fails_the_job_and_keeps_the_result(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fresh = wanlab.generate(model, **SPEC)
    gate, real = Gate(at=5), getattr(os, call)
    job = wanlab.submit(model, **SPEC, on_step=gate, folder=tmp_path / "run")
    assert gate.reached.wait(WAIT)

    def full(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "wanlab-cpu":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, full)
    gate.opened.set()
    with pytest.raises(wanlab.WanlabError, match="Disk full"):
        job.result(WAIT)
    monkeypatch.undo()
    assert job.status == "failed"
    assert [name for name in files(tmp_path / "run") if name != "run.json"] == []
    assert np.array_equal(job.unsaved.frames, fresh.frames)
    opened = wanlab.open_result(job.unsaved.save(tmp_path / "elsewhere"))
    assert torch.equal(opened.latents, fresh.latents)


def test_prompts_stay_out_of_the_record_if_the_spec_says_so(model: Any, tmp_path: Path) -> None:
    gate = Gate()
    job = wanlab.submit(model, **{**SPEC, "prompt": "topsecret", "strip_prompt": True}, on_step=gate, folder=tmp_path)
    assert gate.reached.wait(WAIT)
    assert "topsecret" not in (tmp_path / "run.json").read_text()
    gate.opened.set()
    assert job.result(WAIT).spec.text.prompt == "topsecret"
    assert not [p for p in tmp_path.iterdir() if b"topsecret" in p.read_bytes()]


PROCESS = """
import os, signal, sys, threading, wanlab
from wanlab.runs import read_run
model = wanlab.load(sys.argv[3], device="cpu")
spec = dict(prompt="a", num_steps=10_000, num_frames=33, width=128, height=128)
reached = threading.Event()
jobs = [wanlab.submit(model, **spec, on_step=lambda *_: reached.set(), folder=f"{sys.argv[1]}/{n}") for n in "ab"]
without = wanlab.submit(model, **spec)
assert reached.wait(60)
assert [read_run(job.folder).status for job in jobs] == ["running", "pending"]
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["kill", "exit"])
def test_ends_of_the_process(definition: dict[str, Any], model: Any, tmp_path: Path, way: str) -> None:
    """Killed in mid-run or ended by itself, the running and the waiting job read as crashed: nobody cancelled them."""
    path = tmp_path / "definition.json"
    path.write_text(json.dumps(definition))
    code = [sys.executable, "-c", PROCESS, tmp_path, way, path]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if way == "kill" else 0), done.stderr[-2000:]
    for name in "ab":
        record = runs.read_run(tmp_path / name)
        assert record.status == "crashed"
        assert (record.error is None) == (way == "kill")
        with pytest.raises(wanlab.WanlabError, match=r"is crashed.*Generate it again from its spec"):
            wanlab.open_result(tmp_path / name)
    again = wanlab.submit(model, **SPEC, folder=tmp_path / "a").result(WAIT)
    assert (again.record.status, again.record.attempt) == ("ok", 2)


def test_a_planned_run_is_not_crashed(tmp_path: Path) -> None:
    """A pending record that no process has in hand stays pending; one of a dead process, or without beats, does not."""
    for changes, status in (
        ({}, "pending"),
        ({"host": "elsewhere", "pid": 1, "heartbeat": runs.now()}, "pending"),
        ({"host": "elsewhere", "pid": 1, "heartbeat": "2020-01-01T00:00:00+00:00"}, "crashed"),
    ):
        runs.write_run(tmp_path, runs.RunRecord(id="x", **changes), {})
        assert runs.read_run(tmp_path).status == status
