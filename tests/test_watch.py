"""Progress by stage with the time left, on a clock of our own; what a call that blocks prints on its way."""

from __future__ import annotations

import itertools
import sys
import threading
from types import SimpleNamespace
from typing import Any

import IPython.display
import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab import notebook
from wanlab.watch import Cancelled, Lines, Watch, _lines, _watch

LATENTS = torch.zeros(1)


class Clock:
    """`time.monotonic` as the test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (_watch, _lines):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def __call__(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(_watch, "_took", {})
    return Clock(monkeypatch)


def generation(clock: Clock, watch: Watch, num_steps: int = 4) -> list[Any]:
    """A run of text 2 s, conditions 0 s, steps 9, 3, 3, 3 s, decode 4 parts of 2 s, post 1 s; progress on the way."""
    seen = []

    def look(seconds: float = 0.0) -> None:
        clock(seconds)
        seen.append(watch.progress)

    with watch:
        look()
        watch.expect("kind", num_steps)
        watch.enter("text")
        look(1)
        look(1)
        watch.enter("conditions")
        watch.enter("denoise", num_steps)
        for step in range(num_steps):
            look(1)
            clock(8 if step == 0 else 2)
            watch.on_step(step, 0.5, LATENTS, LATENTS)
            look()
        watch.enter("decode")
        for share in (0.0, 0.25, 0.5, 0.75):
            watch.part(share)
            look()
            look(2)
        watch.enter("post")
        look(1)
    look(5)
    return seen


def test_each_stage_has_its_time(clock: Clock) -> None:
    seen = generation(clock, Watch())
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert (seen[0].stage, seen[0].seconds, seen[0].fraction, str(seen[0])) == ("waiting", 0, 0, "waiting, 0.0 s")
    names = ("text", "conditions", "denoise", "decode", "post")
    assert seen[0].stages == tuple((name, None, False) for name in names)
    first_step = next(p for p in seen if p.step == 1)
    assert [tuple(s) for s in first_step.stages][:4] == [
        ("text", 2, True),
        ("conditions", 0, True),
        ("denoise", 9, False),
        ("decode", None, False),
    ]
    last = seen[-1]
    assert (last.stage, last.fraction, last.seconds, last.eta) == ("done", 1, 29, None)
    assert [tuple(s) for s in last.stages] == list(zip(names, (2, 0, 18, 8, 1), itertools.repeat(True)))
    assert str(last) == "done, 29.0 s"


def test_time_left_of_a_first_run(clock: Clock) -> None:
    """Unknown before a step; the slow first step counts only until there is a second; decode by its parts."""
    seen = generation(clock, Watch())
    assert [p.eta for p in seen if p.stage in ("waiting", "text")] == [None] * 3
    assert [p.eta for p in seen if p.stage == "denoise"] == [None, 27, 26, 6, 5, 3, 2, 0]
    decode = [p.eta for p in seen if p.stage == "decode"]
    assert decode == [None, None, 6, 4, 4, 2, pytest.approx(2), pytest.approx(0)]
    assert str(next(p for p in seen if p.step == 2)) == "denoise 2/4, 14.0 s, about 6 s left"


def test_time_left_from_the_last_run_of_this_kind(clock: Clock) -> None:
    """Decode and post are in the estimate from the start; another kind and another process know nothing."""
    generation(clock, Watch())
    seen = generation(clock, Watch(), num_steps=8)
    assert [p.eta for p in seen if p.stage == "text"] == [1 + 0 + 8 * 3 + 8 + 1, 0 + 8 * 3 + 8 + 1]
    assert next(p for p in seen if p.step == 2).eta == 6 * 3 + 8 + 1
    assert [p.eta for p in seen if p.stage == "decode"] == [9, 7, 7, 5, 5, 3, 3, 1]
    other = Watch()
    other.expect("another kind", 4)
    other.enter("text")
    assert other.progress.eta is None


def test_few_kinds_are_remembered(clock: Clock) -> None:
    for i in range(_watch._KEPT + 20):
        with Watch() as watch:
            watch.expect(i, 1)
            watch.enter("text")
    assert len(_watch._took) == _watch._KEPT
    assert 0 not in _watch._took


def test_the_clock_stops_with_a_failed_run(clock: Clock) -> None:
    watch = Watch()

    def fail() -> None:
        with watch:
            watch.enter("text")
            clock(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    clock(50)
    assert (watch.progress.stage, watch.progress.seconds, watch.progress.eta) == ("text", 3, None)
    assert watch.progress.stages[0] == ("text", 3, False)
    assert _watch._took == {}


def test_fraction_never_falls_and_every_stage_is_done(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A real run, looked at in all its checks."""
    model = wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")
    seen = []
    job = wanlab.submit(model, num_frames=5, on_step=lambda *_: seen.append(job.progress))
    job.result(60)
    seen.append(job.progress)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[:4] == pytest.approx([0.225, 0.45, 0.675, 0.9])
    assert fractions[-1] == 1
    assert all(stage.done and stage.seconds >= 0 for stage in seen[-1].stages)
    assert sum(stage.seconds for stage in seen[-1].stages) == pytest.approx(seen[-1].seconds)
    assert "\n" not in str(seen[0])
    assert len(str(seen[0])) < 80


def test_headless_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    generation(clock, Watch(lines=Lines()), num_steps=8)
    assert capsys.readouterr().err.splitlines() == [
        "denoise 1/8, 11.0 s, about 63 s left",
        "denoise 5/8, 23.0 s, about 9 s left",
        "decode, 34.0 s, about 6 s left",
        "done, 41.0 s",
    ]
    with Watch(lines=Lines()) as watch:
        watch.enter("text")
        clock(9.9)
        watch.check()
    assert capsys.readouterr() == ("", "")


def test_live_one_line_that_changes(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shown: list[tuple[str, str, str]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        def update(data: dict[str, str], *, raw: bool) -> None:
            shown.append(("update", data["text/plain"], threading.current_thread().name))

        shown.append(("display", data["text/plain"], threading.current_thread().name))
        return SimpleNamespace(update=update)

    monkeypatch.setattr(notebook, "is_live", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    with Watch(lines=Lines()) as watch:
        watch.expect("kind", 100)
        watch.enter("denoise")
        for step in range(100):
            clock(0.125)
            watch.on_step(step, 0.5, LATENTS, LATENTS)
    assert [kind for kind, *_ in shown] == ["display"] + ["update"] * (len(shown) - 1)
    assert shown[0][1].startswith("denoise 16/100, 2.0 s")
    assert shown[-1][1].startswith("done, 12.5 s")
    assert len(shown) <= 4 * 11 + 2
    assert {thread for *_, thread in shown} == {"MainThread"}
    assert capsys.readouterr() == ("", "")


def test_other_threads_say_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=lambda: generation(clock, Watch(lines=Lines())))
    thread.start()
    thread.join(60)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("live", [False, True])
def test_what_goes_wrong_in_printing_ends_the_printing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    calls = []

    def broken(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(notebook, "is_live", lambda: live)
    monkeypatch.setattr(IPython.display, "display", broken)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=broken, flush=broken))
    seen = generation(clock, Watch(lines=Lines()))
    assert seen[-1].fraction == 1
    assert calls == [1]


def test_a_job_that_is_waited_for_tells_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(_lines, "_LINE_SECONDS", 0.0)
    model = wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")
    opened = threading.Event()
    job = wanlab.submit(model, num_frames=5, num_steps=2, on_step=lambda *_: opened.wait(60))
    threading.Timer(0.7, opened.set).start()
    job.result(60)
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("denoise 1/2") for line in told)
    assert told[-1].startswith("done")
    wanlab.generate(model, num_frames=5, num_steps=1)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].split()[0] for line in (told[0], told[-1])] == ["text", "done"]


def test_cancelled_says_where(clock: Clock) -> None:
    watch = Watch()
    watch.expect("kind", 7)
    watch.enter("text")
    watch.cancel()
    assert watch.cancelled
    with pytest.raises(Cancelled, match="Cancelled in text, step 0 of 7"):
        watch.part(0.5)
