"""`run_sweep`: what it runs, shares, skips and goes on with, and how it ends when something stops it."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import wanlab
from tests.sharing import Forwards, base_of, inputs
from tests.test_faults import file_size_limit
from tests.tiny import tiny_flux, tiny_wan
from wanlab import runs, sweeps, video
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.result import Result
from wanlab.runs import Results
from wanlab.sweeps._models import Models
from wanlab.sweeps._watching import Watching
from wanlab.watch import Cancelled

STEPS = 4


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"))[1]


@pytest.fixture(scope="module")
def model(definition: dict[str, Any]) -> Model:
    return wanlab.load(definition, device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return wanlab.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


@pytest.fixture(scope="module")
def base(model: Model) -> wanlab.GenerationSpec:
    return base_of(model, seed=3).with_(num_steps=STEPS, num_frames=1)


@pytest.fixture(scope="module")
def plans(base: Any) -> sweeps.Grid:
    """Points of one group: a common first step, then others of them are reused."""
    return wanlab.grid(base, cache=["none", *(fixed(mask) for mask in ("1101", "1011", "1010"))])


@pytest.fixture(scope="module")
def seeds(base: Any) -> sweeps.Grid:
    """Points that have no step in common."""
    return wanlab.grid(base, seed=wanlab.seeds(3))


@pytest.fixture(scope="module")
def alone(model: Model, plans: Any, seeds: Any) -> dict[str, Result]:
    """By the id of the spec, each point as `generate` makes it."""
    return {spec.id: wanlab.generate(model, spec) for spec in (*plans, *seeds)}


def fixed(mask: str) -> dict[str, Any]:
    return {"method": "fixed", "mask": [letter == "1" for letter in mask]}


def assert_alone(found: Results, alone: dict[str, Result]) -> None:
    """Every run ended well, to the bits and the forwards of a single one."""
    assert found.counts() == {"ok": len(found)}
    for row in found:
        result, expected = found.open(row), alone[row.id]
        assert torch.equal(result.latents, expected.latents)
        assert row.record.resolved["ran"]["forwards"] == expected.record.resolved["ran"]["forwards"]
        assert row.record.id == expected.record.id


def assert_free(model: Model) -> None:
    assert not model.attachments()
    assert not model.lock.owner
    assert model._check is None


@contextmanager
def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Act in the middle of step `number` of the sweep, from 0; the list gets every step that ends after that."""
    after: list[int] = []
    real, done = Watching.on_step, 0

    def told(self: Watching, step: int, *rest: Any) -> None:
        nonlocal done
        done += 1
        if done > number:
            after.append(step)
        if done == number + 1:
            act()
        real(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Watching, "on_step", told)
        yield after


@contextmanager
def nan_for(model: Model, monkeypatch: pytest.MonkeyPatch, *seeds: int) -> Iterator[None]:
    """The network's outputs are not numbers where the run's latents have one of these seeds' noise."""
    real = model.initial_noise

    def noise(spec: Any) -> Tensor:
        found = real(spec)
        return found * float("nan") if spec.sampling.seed in seeds else found

    with monkeypatch.context() as patch:
        patch.setattr(model, "initial_noise", noise)
        yield


def forwards(model: Model, run: Callable[[], Any]) -> int:
    with Forwards(model) as counted:
        run()
    return counted.count


# What is run


def test_shared_equals_one_by_one_equals_alone(model: Model, plans: Any, alone: Any, tmp_path: Path) -> None:
    with Forwards(model) as shared:
        found = wanlab.run_sweep(plans, tmp_path / "shared", model=model)
    with Forwards(model) as single:
        apart = wanlab.run_sweep(plans, tmp_path / "apart", model=model, share=False)
    assert_alone(found, alone)
    assert_alone(apart, alone)
    assert found.sweep.forwards == {"alone": single.count, "shared": shared.count}
    assert apart.sweep.forwards == {"alone": single.count, "shared": single.count}
    assert shared.count < single.count
    assert [row.id for row in found] == [spec.id for spec in plans]
    assert_free(model)


def test_what_is_ok_is_not_run_again(model: Model, seeds: Any, alone: Any, tmp_path: Path) -> None:
    some = wanlab.grid(seeds.base, seed=[1])
    wanlab.run_sweep(some, tmp_path, model=model)
    each = STEPS * 2
    assert forwards(model, lambda: wanlab.run_sweep(seeds, tmp_path, model=model)) == 2 * each
    assert forwards(model, lambda: wanlab.run_sweep(seeds, tmp_path, model=model)) == 0
    assert_alone(wanlab.results(tmp_path), alone)
    assert not (tmp_path / "checkpoints").exists()
    assert not list((tmp_path / "progress").iterdir())


def test_text_and_conditions_are_encoded_once(
    model: Model, plans: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = {"encode_text": 0, "encode_conditions": 0}
    for name in counted:
        real = getattr(model, name)

        def count(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            counted[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(model, name, count)
    grid = plans.seeds(2) + wanlab.grid(plans.base, guidance_scale=[1.0, 3.0])
    assert len(grid) == 10
    assert wanlab.run_sweep(grid, tmp_path, model=model).counts() == {"ok": 10}
    assert counted["encode_text"] <= 2, "with the negative prompt and without"
    assert counted["encode_conditions"] == 1


def test_seconds_are_those_of_its_own_path(model: Model, plans: Any, tmp_path: Path) -> None:
    for row in wanlab.run_sweep(plans, tmp_path, model=model):
        took = row.record.timings
        parts = ("text", "conditions", "denoise", "decode", "post")
        assert took["total"] == pytest.approx(sum(took[name] for name in parts))
        assert 0 < took["shared"] < took["denoise"]
        ran = row.record.resolved["ran"]
        assert ran["shared"]["prefix_steps"] >= 1
        assert set(ran["shared"]["with"]) < {spec_run(model, spec) for spec in plans}
    single = wanlab.run_sweep(plans, tmp_path / "apart", model=model, share=False)
    assert {row.record.timings["shared"] for row in single} == {0.0}


def spec_run(model: Model, spec: Any) -> str:
    return runs.run_id(spec.id, model.fingerprint)


def test_two_models_in_one_grid(model: Model, flux: Model, base: Any, alone: Any, tmp_path: Path) -> None:
    other = base_of(flux).with_(num_steps=2)
    mixed = wanlab.grid(base, seed=[0]) + wanlab.grid(other) + wanlab.grid(base, seed=[1])
    found = wanlab.run_sweep(mixed, tmp_path, model=[flux, model])
    assert found.counts() == {"ok": 3}
    assert torch.equal(found.open(1).latents, wanlab.generate(flux, other).latents)
    assert torch.equal(found.open(2).latents, alone[mixed[2].id].latents)
    order = sorted(found, key=lambda row: row.record.ended)
    assert [row.spec.model for row in order] == [model.id, model.id, flux.id], "each model comes once"


def test_models_are_loaded_where_none_is_given(tmp_path: Path) -> None:
    grid = wanlab.grid("wan_tiny", num_steps=[1], width=[16], height=[16], num_frames=[1], seed=[0, 1])
    found = wanlab.run_sweep(grid, tmp_path, device="cpu")
    assert found.counts() == {"ok": 2}
    expected = wanlab.generate(wanlab.load("wan_tiny", device="cpu"), grid[1])
    assert torch.equal(found.open(1).latents, expected.latents)


# What is refused, before anything is written


def test_a_point_that_its_model_cannot_follow(model: Model, base: Any, tmp_path: Path) -> None:
    grid = wanlab.grid(base, num_frames=[1, 6])
    with pytest.raises(WanlabError, match="6"):
        wanlab.run_sweep(grid, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_a_model_with_something_attached(model: Model, seeds: Any, tmp_path: Path) -> None:
    site = next(iter(model.stacks.values()))[1].site
    with (
        site.wrap(lambda call, *args, **kw: call(*args, **kw), layer="edit"),
        pytest.raises(WanlabError, match="attached"),
    ):
        wanlab.run_sweep(seeds, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"grid": [1, 2]}, "no grid"), ({"model": "wan_tiny"}, "not a loaded model")],
    ids=["grid", "model"],
)
def test_what_is_no_grid_and_no_model(seeds: Any, tmp_path: Path, wrong: dict[str, Any], match: str) -> None:
    given = {"grid": seeds, "out": tmp_path / "out", **wrong}
    with pytest.raises(WanlabError, match=match):
        wanlab.run_sweep(**given)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(model: Model, seeds: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WanlabError, match="Cannot write"):
        wanlab.run_sweep(seeds, tmp_path / "file", model=model)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("{")
    with pytest.raises(WanlabError, match=r"sweep\.json"):
        wanlab.run_sweep(seeds, tmp_path / "broken", model=model)


# One of them fails


def test_a_failed_point_is_alone_and_is_run_again(
    model: Model, seeds: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with nan_for(model, monkeypatch, 1):
        found = wanlab.run_sweep(seeds, tmp_path, model=model)
    assert [row.status for row in found] == ["ok", "failed", "ok"]
    assert "step 0 of 4" in found[1].error
    assert_free(model)
    assert forwards(model, lambda: wanlab.run_sweep(seeds, tmp_path, model=model)) == 2 * STEPS
    assert_alone(wanlab.results(tmp_path), alone)


def test_a_point_of_a_group_that_fails_leaves_the_others(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The network's second call in step 2 goes wrong for whoever computes there: "none", "1011", "1010"."""
    real = model.velocity

    def poisoned(latents: Tensor, ctx: Any, branch: Any) -> Tensor:
        velocity = real(latents, ctx, branch)
        reuses = any("cache" in name for name in model.attachments()) and ctx.step == 2
        return velocity * float("nan") if reuses else velocity

    with monkeypatch.context() as patch:
        patch.setattr(model, "velocity", poisoned)
        found = wanlab.run_sweep(plans, tmp_path, model=model, checkpoint_steps=1)
    counts = found.counts()
    assert counts["failed"] + counts["ok"] == 4
    assert counts["ok"] >= 1
    assert "step 2 of 4" in found.filter(status="failed")[0].error
    assert_free(model)
    assert not (tmp_path / "checkpoints").exists()
    assert_alone(wanlab.run_sweep(plans, tmp_path, model=model), alone)


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_a_stage_that_fails(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str
) -> None:
    """Encoding ends all that need it, decoding one."""
    calls: list[int] = []
    name = "encode_text" if part == "encode" else "decode"
    real = getattr(model, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no such word")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, name, failing)
        found = wanlab.run_sweep(plans, tmp_path, model=model)
    counts = {"failed": 4} if part == "encode" else {"ok": 3, "failed": 1}
    assert found.counts() == counts
    failed = found.filter(status="failed")[0]
    assert failed.error == "RuntimeError: no such word"
    assert "failing" in failed.record.error.traceback_tail
    assert_free(model)
    assert_alone(wanlab.run_sweep(plans, tmp_path, model=model), alone)


def test_a_damaged_record_stops_no_other(
    model: Model, seeds: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder = tmp_path / runs.folder_name(seeds[1], spec_run(model, seeds[1]))
    folder.mkdir()
    (folder / "run.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        found = wanlab.run_sweep(seeds, tmp_path, model=model)
    assert [row.status for row in found] == ["ok", "unreadable", "ok"]
    assert str(folder) in caplog.text


def test_a_full_disk_fails_what_it_hits(model: Model, seeds: Any, alone: Any, tmp_path: Path) -> None:
    """A limit for one file, which the latents do not fit into, and the records do."""
    first = wanlab.run_sweep(wanlab.grid(seeds.base, seed=[0]), tmp_path, model=model)
    size = max(entry.bytes for entry in first[0].record.artifacts)
    largest_record = max(p.stat().st_size for p in tmp_path.rglob("*.json"))
    assert largest_record < 65536
    big = seeds.base.with_(width=128, height=128, num_frames=9)
    more = wanlab.grid(big, seed=[5, 6])
    with file_size_limit(max(largest_record, size) + 8192):
        found = wanlab.run_sweep(more, tmp_path, model=model)
    assert found.counts() == {"ok": 1, "failed": 2}
    assert "Disk full" in found.filter(status="failed")[0].error
    assert_alone(found.filter(status="ok"), alone)
    assert not list(tmp_path.rglob(".part-*"))
    assert wanlab.run_sweep(more, tmp_path, model=model).counts() == {"ok": 3}


# Attempts


def crash(folder: Path, record: runs.RunRecord, times: int) -> None:
    """As if processes that are dead now had begun the run."""
    for _ in range(times):
        pid = os.fork()
        if not pid:
            runs.claim(folder, record, max_attempts=99)
            os._exit(0)
        os.waitpid(pid, 0)


def crashed(model: Model, out: Path, spec: Any, times: int) -> Path:
    work = sweeps._work.Work(out, [spec], sweeps._work.Options(), Models([model]))
    crash(work.tasks[0].folder, work.tasks[0].record(model.fingerprint), times)
    return work.tasks[0].folder


def test_after_three_crashes_it_is_given_up(
    model: Model, seeds: Any, alone: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder = crashed(model, tmp_path, seeds[1], 3)
    found = wanlab.run_sweep(seeds, tmp_path, model=model)
    assert [row.status for row in found] == ["ok", "crashed", "ok"]
    assert f"{folder} crashed 3 times" in caplog.text
    assert_alone(wanlab.run_sweep(seeds, tmp_path, model=model, max_attempts=4), alone)


def test_the_last_try_is_alone(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    together: list[int] = []
    real = sweeps._group.Group.run
    monkeypatch.setattr(sweeps._group.Group, "run", lambda self, left: together.append(len(left)) or real(self, left))
    crashed(model, tmp_path, plans[1], 2)
    crashed(model, tmp_path, plans[2], 2)
    crashed(model, tmp_path, plans[3], 1)
    assert_alone(wanlab.run_sweep(plans, tmp_path, model=model), alone)
    assert together == [2, 1, 1]
    together.clear()
    for times in (1, 2):
        wanlab.run_sweep(plans, tmp_path / str(times), model=model, max_attempts=times)
    assert together == [4, 4], "a first try shares, also where there is no other"


# Other numerics


def test_what_other_numerics_made(model: Model, seeds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hidden = seeds.base.with_(strip_prompt=True)
    grid = wanlab.grid(hidden, seed=[0, 1])
    wanlab.run_sweep(grid, tmp_path, model=model)
    monkeypatch.setattr(runs._record, "NUMERICS", runs.NUMERICS + 1)
    monkeypatch.setattr(runs, "NUMERICS", runs.NUMERICS + 1)
    real = runs.RunRecord.model_fields["numerics"].default
    assert real == runs.NUMERICS - 1
    assert forwards(model, lambda: wanlab.run_sweep(grid, tmp_path, model=model)) == 0
    assert {row.stale for row in wanlab.results(tmp_path)} == {True}
    again = forwards(model, lambda: wanlab.run_sweep(grid, tmp_path, model=model, stale="rerun"))
    assert again == 2 * 2 * STEPS


# Going on


def test_checkpoints_are_gone_on_from(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = forwards(model, lambda: wanlab.run_sweep(plans, tmp_path / "whole", model=model))
    for number in range(1, 9):
        out = tmp_path / str(number)
        with Forwards(model) as first, at_step(monkeypatch, number, stop), pytest.raises(Cancelled):
            wanlab.run_sweep(plans, out, model=model, checkpoint_steps=1)
        assert list((out / "checkpoints").iterdir())
        second = forwards(model, lambda out=out: wanlab.run_sweep(plans, out, model=model, checkpoint_steps=1))
        assert first.count + second <= whole + 2, "one step, of two forwards, is lost at most"
        assert_alone(wanlab.results(out), alone)
        assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("has_links", [True, False])
def test_a_last_try_goes_on_too(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_links: bool
) -> None:
    """Alone, from the step that the whole group had taken; the others too."""
    with at_step(monkeypatch, 1, stop), pytest.raises(Cancelled):
        wanlab.run_sweep(plans, tmp_path, model=model, checkpoint_steps=1)
    for spec in (plans[0], plans[2]):
        crashed(model, tmp_path, spec, 2)
    computed = [4, 3, 3, 2]  # steps of each plan; of the first one's there is a checkpoint

    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    def go_on() -> None:
        with monkeypatch.context() as patch:
            if not has_links:
                patch.setattr(sweeps._checkpoint.os, "link", refuse)
            assert_alone(wanlab.run_sweep(plans, tmp_path, model=model), alone)

    assert forwards(model, go_on) == 2 * (sum(computed) - 4)
    assert not (tmp_path / "checkpoints").exists()


def stop() -> None:
    raise Cancelled("now")


# Stopped


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", ["file", "signal"])
def test_stopped_at_every_step(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    total = 0
    for number in range(99):
        out = tmp_path / str(number)

        def act(out: Path = out) -> None:
            if how == "file":
                runs.request_cancel(out)
            else:
                os.kill(os.getpid(), signal.SIGINT)

        with at_step(monkeypatch, number, act) as after:
            ended = "done"
            try:
                wanlab.run_sweep(plans, out, model=model)
            except Cancelled:
                ended = "file"
            except KeyboardInterrupt:
                ended = "signal"
        if not after:
            break
        total += 1
        assert ended == how
        assert len(after) == 1, "the step in which it was asked is the last one"
        assert_free(model)
        found = wanlab.results(out)
        assert set(found.counts()) <= {"ok", "cancelled"}
        assert found.counts()["cancelled"] >= 1
        assert not list((out / "progress").iterdir())
        if number % 4 == 0:
            assert_alone(wanlab.run_sweep(plans, out, model=model), alone)
    assert total >= 8
    assert_alone(wanlab.run_sweep(plans, tmp_path / "0", model=model), alone)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_at_any_moment(
    model: Model, plans: Any, alone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While it claims, encodes, saves and notes: nothing stays in hand, what ended well stays so."""
    moments: list[tuple[Any, str]] = [
        (runs, "claim"),
        (runs, "write_run"),
        (sweeps._work, "adopt"),
        (model, "encode_text"),
        (model, "decode"),
        (video, "write_image"),
        (runs, "end_working"),
    ]
    for owner, name in moments:
        for number in (1, 2):
            out = tmp_path / f"{name}-{number}"
            calls: list[int] = []
            real = getattr(owner, name)

            def act(*args: Any, real: Any = real, calls: Any = calls, number: int = number, **kwargs: Any) -> Any:
                calls.append(1)
                if len(calls) == number:
                    signal.raise_signal(signal.SIGINT)
                return real(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, act)
                if name in ("encode_text", "adopt", "end_working") and number == 2:
                    continue
                with pytest.raises(KeyboardInterrupt):
                    wanlab.run_sweep(plans, out, model=model)
            assert_free(model)
            assert set(wanlab.results(out).counts()) <= {"ok", "cancelled", "pending"}, name
            assert_alone(wanlab.run_sweep(plans, out, model=model), alone)


def test_progress_shows_while_it_runs(
    model: Model, plans: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[runs.Working] = []
    monkeypatch.setattr(sweeps._watching, "_TELL_SECONDS", 0.0)
    real = Watching.on_step

    def look(self: Watching, *args: Any) -> None:
        real(self, *args)
        seen.extend(runs.read_working(tmp_path))

    monkeypatch.setattr(Watching, "on_step", look)
    found = wanlab.run_sweep(plans, tmp_path, model=model)
    assert [working.executed for working in seen] == sorted(working.executed for working in seen)
    last = seen[-1]
    assert (last.pid, last.num_steps) == (os.getpid(), STEPS)
    assert {"alone": last.alone, "shared": last.planned} == found.sweep.forwards
    assert 0 < last.executed <= last.planned < last.alone
    assert runs.read_working(tmp_path) == []
    assert not list((tmp_path / "progress").iterdir())


def test_two_threads_share_the_points(model: Model, seeds: Any, alone: Any, tmp_path: Path) -> None:
    with Forwards(model) as counted:
        threads = [threading.Thread(target=wanlab.run_sweep, args=(seeds, tmp_path), kwargs={"model": model})]
        for thread in threads:
            thread.start()
        found = wanlab.run_sweep(seeds, tmp_path, model=model)
        for thread in threads:
            thread.join()
    assert_alone(found, alone)
    assert counted.count == 3 * 2 * STEPS
    assert all(len(json.loads((row.folder / "run.json").read_text())["artifacts"]) for row in found)


# What is refused, and what is in the way


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"checkpoint_steps": 0}, "checkpoint_steps is 0"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"stale": "redo"}, "stale is 'redo'"),
        ({"out": " "}, "is no folder"),
        ({"executor": "dask"}, "executor is 'dask'"),
        ({"model": "wan_tiny"}, "'wan_tiny' is not a loaded model"),
    ],
)
def test_settings_that_no_run_could_follow(
    plans: sweeps.Grid, model: Model, tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    """They are told before anything is written."""
    with pytest.raises(WanlabError, match=told):
        wanlab.run_sweep(plans, **{"out": tmp_path / "out", "model": model, **wrong})
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_way_of_a_run_does_not_stop_the_others(
    base: Any, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in the folder's place, and another run's result in the folder: told once, and waited for by nobody."""
    points = wanlab.grid(base.with_(num_steps=1), seed=[1, 2, 3])
    file, foreign, _ = wanlab.run_sweep(points, tmp_path, model=model)
    record = foreign.folder / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"id": "another"}))
    file.folder.rename(tmp_path / "elsewhere")
    (tmp_path / file.folder.name).write_text("a file")
    (tmp_path / "elsewhere" / "run.json").unlink()
    found = wanlab.run_sweep(points + wanlab.grid(base.with_(num_steps=1), seed=[4]), tmp_path, model=model)
    assert found.filter(seed=4)[0].status == "ok"
    assert "holds the run another" in caplog.text
    assert f"{file.folder.name}: File exists" in caplog.text


def test_first_steps_that_differ_begin_with_one_tensor(base: Any, model: Model) -> None:
    specs = {str(scale): base.with_(guidance_scale=scale) for scale in (2.0, 3.0, 4.0)}
    together = sweeps.denoise_together(model, specs, *inputs(model, base))
    assert len({id(node.state.latents) for node in together._pending}) == 1 < len(together._pending)
