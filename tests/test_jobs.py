"""Jobs: one worker a device, first in first out, cancelled within a step, awaitable; a model runs one at a time."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab import jobs
from wanlab.watch import Cancelled

SPEC = {"prompt": "a red fox", "num_steps": 6, "width": 32, "height": 32, "num_frames": 5, "seed": 1}
WAIT = 60  # seconds, only ever used up by a failure


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The definition's file, for other processes too."""
    folder, definition = tiny_wan(tmp_path_factory.mktemp("wan"))
    path = folder.parent / "wan_random_1.json"
    path.write_text(json.dumps(definition))
    return path


@pytest.fixture(scope="module")
def model(definition: Path) -> Any:
    return wanlab.load(definition, device="cpu")


class Gate:
    """An `on_step` that stops the run after a step until it is opened."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.reached, self.opened = threading.Event(), threading.Event()
        self.steps: list[int] = []

    def __call__(self, step: int, *_: Any) -> None:
        self.steps.append(step)
        if step == self.at:
            self.reached.set()
            assert self.opened.wait(WAIT)


def test_a_job_gives_what_generate_gives(model: Any) -> None:
    direct = wanlab.generate(model, **SPEC)
    job = wanlab.submit(model, **SPEC)
    assert np.array_equal(job.result(WAIT).frames, direct.frames)
    assert job.status == "done"
    assert job.done()
    assert job.progress.fraction == 1
    assert "done" in repr(job)
    assert len(repr(job)) < 100


def test_a_wrong_spec_raises_in_the_cell_that_submits(model: Any) -> None:
    with pytest.raises(wanlab.WanlabError, match="width"):
        wanlab.submit(model, **{**SPEC, "width": 33})
    with pytest.raises(wanlab.WanlabError, match="num_steps"):
        wanlab.submit(model, num_stepz=3)
    with pytest.raises(wanlab.WanlabError, match="mask"):
        wanlab.submit(model, **SPEC, cache={"method": "fixed", "mask": [True]})
    with pytest.raises(wanlab.WanlabError, match="does not exist yet"):
        wanlab.submit(model, **SPEC, on_oom="retry")


@pytest.mark.parametrize("at", [0, 3])
def test_cancel_ends_within_one_step_and_leaves_no_trace(model: Any, at: int) -> None:
    fresh = wanlab.generate(model, **SPEC)
    gate = Gate(at)
    job = wanlab.submit(model, **SPEC, on_step=gate)
    assert gate.reached.wait(WAIT)
    assert (job.status, job.progress.stage, job.progress.step, job.progress.num_steps) == (
        "running",
        "denoise",
        at + 1,
        6,
    )
    job.cancel()
    gate.opened.set()
    with pytest.raises(Cancelled):
        job.result(WAIT)
    assert gate.steps == list(range(at + 1))
    assert job.status == "cancelled"
    assert np.array_equal(wanlab.generate(model, **SPEC).frames, fresh.frames)


def test_jobs_run_in_order_and_a_queued_one_can_be_cancelled(model: Any) -> None:
    gate, order = Gate(), []
    queued = [wanlab.submit(model, **SPEC, on_step=gate)]
    queued += [wanlab.submit(model, **SPEC, on_step=lambda step, *_, i=i: order.append(i)) for i in (1, 2, 3)]
    assert gate.reached.wait(WAIT)
    assert [job.status for job in queued] == ["running", "queued", "queued", "queued"]
    queued[2].cancel()
    assert queued[2].status == "cancelled"
    gate.opened.set()
    with pytest.raises(Cancelled):
        queued[2].result(WAIT)
    for i in (0, 1, 3):
        queued[i].result(WAIT)
    assert order == [1] * 6 + [3] * 6


def test_places_in_the_queue(model: Any) -> None:
    gate = Gate()
    queued = [wanlab.submit(model, **SPEC, on_step=gate if i == 0 else None) for i in range(4)]
    assert gate.reached.wait(WAIT)
    assert [job.ahead for job in queued] == [0, 1, 2, 3]
    assert jobs.pending() == jobs.pending("cpu") == jobs.pending(torch.device("cpu")) == queued
    assert jobs.pending("cuda") == []
    queued[1].cancel()
    assert [job.ahead for job in queued] == [0, 0, 1, 2]
    assert jobs.pending() == [queued[0], *queued[2:]]
    gate.opened.set()
    queued[3].result(WAIT)
    assert jobs.pending() == []
    assert [job.ahead for job in queued] == [0, 0, 0, 0]


def test_on_end_is_called_once_whatever_the_end(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """In the thread that ends the job; what it raises is logged, and the other calls and jobs go on."""
    ends: list[tuple[str, str, str]] = []
    told = threading.Event()

    def note(name: str) -> Any:
        def call(job: Any) -> None:
            ends.append((name, job.status, threading.current_thread().name))
            assert job.done()
            if name == "last":
                told.set()

        return call

    def fail(job: Any) -> None:
        raise {"failed": RuntimeError, "cancelled": Cancelled}[job.status]("from an end")

    def broken(*_: Any) -> None:
        raise RuntimeError("from a callback")

    gate = Gate()
    good, bad, gone, last = (
        wanlab.submit(model, **SPEC, on_step=gate),
        wanlab.submit(model, **SPEC, on_step=broken),
        wanlab.submit(model, **SPEC),
        wanlab.submit(model, **SPEC),
    )
    assert gate.reached.wait(WAIT)
    for name, job in (("good", good), ("bad", bad), ("gone", gone), ("last", last)):
        if name in ("bad", "gone"):
            job.on_end(fail)
        job.on_end(note(name))
    gone.on_end(lambda job: job.cancel())
    gone.cancel()
    assert ends == [("gone", "cancelled", "MainThread")]
    gate.opened.set()
    assert told.wait(WAIT)
    assert ends[1:] == [(n, s, "wanlab-cpu") for n, s in (("good", "done"), ("bad", "failed"), ("last", "done"))]
    good.on_end(note("again"))
    assert ends[-1] == ("again", "done", "MainThread")
    assert len(ends) == 5
    assert len([r for r in caplog.records if r.name == "wanlab.jobs._job"]) == 2
    assert "from an end" in caplog.text


def test_a_failing_job_raises_its_error_and_the_next_one_runs(model: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("from a callback")

    failed, good = wanlab.submit(model, **SPEC, on_step=fail), wanlab.submit(model, **SPEC)
    with pytest.raises(RuntimeError, match="from a callback"):
        failed.result(WAIT)
    assert failed.status == "failed"
    assert good.result(WAIT).frames.shape == (5, 32, 32, 3)


def test_await_in_asyncio(model: Any) -> None:
    async def main() -> tuple[Any, int]:
        ticks = 0
        job = wanlab.submit(model, **SPEC)

        async def tick() -> None:
            nonlocal ticks
            while not job.done():
                ticks += 1
                await asyncio.sleep(0.002)

        result, _ = await asyncio.gather(job, tick())
        return result, ticks

    result, ticks = asyncio.run(main())
    assert result.frames.shape == (5, 32, 32, 3)
    assert ticks > 1  # the loop went on while the job ran


def test_cancelling_an_awaiting_task_cancels_the_job(model: Any) -> None:
    gate = Gate()

    async def main() -> Any:
        job = wanlab.submit(model, **SPEC, on_step=gate)

        async def wait() -> Any:
            return await job

        task = asyncio.create_task(wait())
        await asyncio.to_thread(gate.reached.wait, WAIT)
        task.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Cancelled):
            await job
        return job

    assert asyncio.run(main()).status == "cancelled"


def test_interrupting_result_cancels_waits_and_raises(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    job = wanlab.submit(model, **SPEC, on_step=gate)
    assert gate.reached.wait(WAIT)

    def interrupt(timeout: float | None = None) -> Any:
        gate.opened.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(job._future, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.result()
    assert job.done()
    assert job.status == "cancelled"
    assert gate.steps == [0]


def test_result_times_out_and_the_job_goes_on(model: Any) -> None:
    gate = Gate()
    job = wanlab.submit(model, **SPEC, on_step=gate)
    assert gate.reached.wait(WAIT)
    with pytest.raises(TimeoutError):
        job.result(0.01)
    gate.opened.set()
    assert job.result(WAIT).frames.shape == (5, 32, 32, 3)


def test_a_second_generate_waits_says_for_what_and_can_be_interrupted(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = Gate()
    job = wanlab.submit(model, **SPEC, on_step=gate)
    assert gate.reached.wait(WAIT)
    finished = threading.Event()
    results: list[Any] = []

    def second() -> None:
        results.append(wanlab.generate(model, **SPEC))
        finished.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not finished.wait(0.3)
    gate.opened.set()
    assert finished.wait(WAIT)
    thread.join(WAIT)
    assert np.array_equal(results[0].frames, job.result(WAIT).frames)
    assert "a red fox" in capsys.readouterr().err


def test_denoise_by_hand_waits_too(model: Any) -> None:
    spec = model.spec(**SPEC)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    gate, results = Gate(), []
    job = wanlab.submit(model, spec, on_step=gate)
    assert gate.reached.wait(WAIT)
    thread = threading.Thread(target=lambda: results.append(wanlab.denoise(model, spec, text, conditions)))
    thread.start()
    thread.join(0.2)
    assert results == []
    gate.opened.set()
    thread.join(WAIT)
    assert torch.equal(results[0], job.result(WAIT).latents)


def test_a_forked_process_has_workers_of_its_own(definition: Path) -> None:
    code = f"""
import os, threading, wanlab
model = wanlab.load({str(definition)!r}, device="cpu")
spec = dict(prompt="a", num_steps=2, num_frames=5, width=32, height=32)
wanlab.submit(model, **spec).result(60)
reached, opened = threading.Event(), threading.Event()
other = wanlab.load({str(definition)!r}, device="cpu")
theirs = wanlab.submit(other, **spec, on_step=lambda *_: reached.set() or opened.wait(60))
assert reached.wait(60)
if os.fork() == 0:
    try:
        try:
            theirs.result(1)
        except wanlab.WanlabError as error:
            assert "process that submitted it" in str(error)
            assert wanlab.submit(model, **spec).result(60).frames.shape == (5, 32, 32, 3)
            os._exit(7)
    finally:
        os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
opened.set()
print(theirs.result(60))
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_job_that_waits_for_the_model_can_be_cancelled(model: Any) -> None:
    with model.lock.hold("a test"):
        job = wanlab.submit(model, **SPEC)
        deadline = time.monotonic() + WAIT
        while job.status == "queued" and time.monotonic() < deadline:
            time.sleep(0.005)
        assert job.status == "running"
        job.cancel()
        with pytest.raises(Cancelled):
            job.result(WAIT)


def test_a_finished_job_keeps_neither_model_nor_locals(model: Any) -> None:
    class Big:
        pass

    def fail(*_: Any) -> None:
        big = Big()
        seen.append(weakref.ref(big))
        raise RuntimeError("full")

    seen: list[Any] = []
    job = wanlab.submit(model, **SPEC, on_step=fail)
    with pytest.raises(RuntimeError):
        job.result(WAIT)
    gc.collect()
    assert seen[0]() is None
    assert job._model is None
