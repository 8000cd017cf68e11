"""`wanlab.results`: rows of a folder that somebody writes to, that is damaged, that no sweep planned."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import wanlab
from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec

BASE = GenerationSpec(model="wan_tiny", prompt="a <b>red</b> fox", width=48, height=32, num_frames=5, num_steps=4)
CACHES = {"none": "none", "magcache": {"method": "magcache", "threshold": 0.12}}
SPECS = {f"{name}-{seed}": BASE.with_(seed=seed, cache=cache) for name, cache in CACHES.items() for seed in (0, 1)}


def record(spec: GenerationSpec, psnr: float = 30.0, **changes: Any) -> runs.RunRecord:
    reused = 0 if spec.cache.method == "none" else 3
    ran = {"forwards": {"main": 6, "low": 2}, "cache": {"reused": reused} if reused else None}
    made = runs.RunRecord(
        id=runs.run_id(spec.id, "weights"),
        fingerprint="weights",
        status="ok",
        spec=spec.to_dict(),
        resolved={"ran": ran},
        metrics={"psnr": psnr},
        timings={"denoise": 1.5, "total": 2.0},
        peak_bytes=1000,
    )
    return made.with_(**changes)


def planned(out: Path) -> runs.SweepFile:
    """A sweep of the four specs: two are ok, one failed, one is to come."""
    points = [
        runs.Point(id=spec.id, settings={"cache": name.split("-")[0], "seed": spec.sampling.seed}, spec=spec.to_dict())
        for name, spec in SPECS.items()
    ]
    sweep = runs.SweepFile(names=["cache", "seed"], points=[p.model_dump() for p in points], base=BASE.to_dict())
    for number, (name, spec) in enumerate(SPECS.items()):
        if number < 2:
            runs.write_run(out / name, record(spec, 30.0 + number), {"video.mp4": b"x"})
        elif number == 2:
            runs.fail(out / name, record(spec, metrics={}, timings={}), RuntimeError("<i>no</i>"), "failed")
    return runs.write_sweep(out, sweep)


def test_rows_of_a_sweep(tmp_path: Path) -> None:
    planned(tmp_path)
    found = wanlab.results(tmp_path)
    assert [row.status for row in found] == ["ok", "ok", "failed", "pending"]
    assert [row.id for row in found] == [spec.id for spec in SPECS.values()]
    assert [row.spec for row in found] == list(SPECS.values())
    assert [dict(row.settings) for row in found][2] == {"cache": "magcache", "seed": 0}
    first, _, failed, pending = found
    assert (first.seconds, first.metrics, first.attempt) == (2.0, {"psnr": 30.0}, 1)
    assert first.clip == first.folder / "video.mp4"
    assert (failed.error, failed.seconds, failed.clip) == ("RuntimeError: <i>no</i>", None, None)
    assert (pending.folder, pending.record, pending.attempt, pending.notebook) == (None, None, 0, None)
    assert found.counts() == {"ok": 2, "pending": 1, "failed": 1}
    assert repr(found) == f"Results(4 runs: 2 ok, 1 pending, 1 failed · {tmp_path})"
    assert found.sweep.names == ("cache", "seed")
    assert [row.id for row in found[1:3]] == [row.id for row in list(found)[1:3]]


def test_settings_of_runs_that_no_sweep_planned(tmp_path: Path) -> None:
    for name, spec in SPECS.items():
        runs.write_run(tmp_path / name, record(spec), {})
    found = wanlab.results(tmp_path)
    assert found.sweep is None
    assert [row.folder.name for row in found] == sorted(SPECS)
    here, there = SPECS["magcache-0"].flat(), SPECS["none-0"].flat()
    options = {name for name in here if name not in there and here[name] is not None}
    assert set(found.names) == {"cache", "seed"} | options
    assert "cache.threshold" in options
    assert (found[0].settings["cache"], found[0].settings["cache.threshold"]) == ("magcache", 0.12)
    assert found[3].settings["cache.threshold"] is None


def test_names_of_settings_are_those_of_flat() -> None:
    for spec in SPECS.values():
        assert runs._read.flat(spec.to_dict()) == json.loads(json.dumps(spec.flat()))


def test_filter(tmp_path: Path) -> None:
    planned(tmp_path)
    found = wanlab.results(tmp_path)

    def names(**wanted: Any) -> list[int]:
        return [list(found).index(row) for row in found.filter(**wanted)]

    assert names(status="ok") == [0, 1]
    assert names(status=["ok", "failed"]) == [0, 1, 2]
    assert names(cache="magcache") == [2, 3]
    assert names(seed=1) == names(sampling__seed=1) == names(**{"sampling.seed": 1}) == [1, 3]
    assert names(seed=range(2)) == names(seed={0, 1}) == [0, 1, 2, 3]
    assert names(seed=True) == [], "1 is not true"
    assert names(cache__threshold=0.12) == [2, 3], "a setting that is no axis"
    assert names(num_steps=4, status="failed") == [2]
    assert names(psnr=31.0) == [1]
    assert names(id=found[2].id) == [2]
    assert [row.id for row in found.filter(lambda row: row.metrics.get("psnr", 0) > 30, status="ok")] == [found[1].id]
    assert list(found.filter(status="ok").filter(seed=0)) == [found[0]]
    assert len(found.filter(status="oom")) == 0
    assert found.filter(status="oom").filter(seed=3).counts() == {}
    with pytest.raises(WanlabError, match=r"Unknown setting or metric 'sede'.*seed"):
        found.filter(sede=1)


def test_frame(tmp_path: Path) -> None:
    planned(tmp_path)
    frame = wanlab.results(tmp_path).to_frame()
    columns = "id status attempt cache seed denoise_seconds total_seconds psnr forwards skipped peak_bytes folder"
    assert list(frame.columns) == columns.split()
    assert list(frame["forwards"].astype(object))[:3] == [8, 8, 8]
    assert frame["skipped"][2] == 3
    assert frame["psnr"].isna().tolist() == [False, False, True, True]
    empty = wanlab.results(tmp_path).filter(status="oom").to_frame()
    assert len(empty) == 0
    assert list(empty.columns) == "id status attempt cache seed forwards skipped peak_bytes folder".split()


def test_a_metric_called_like_a_setting_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    spec = SPECS["none-0"]
    point = runs.Point(id=spec.id, settings={"seed": 0, "cache": {"method": "magcache"}, "loras": ["a", "b"]})
    runs.write_sweep(tmp_path, runs.SweepFile(names=["seed", "cache", "loras"], points=[point.model_dump()]))
    runs.write_run(tmp_path / "a", record(spec, metrics={"seed": 5, "status": "x"}), {})
    found = wanlab.results(tmp_path)
    (line,) = found.to_frame().to_dict("records")
    assert (line["seed"], line["metric.seed"], line["metric.status"], line["status"]) == (0, 5, "x", "ok")
    assert (json.loads(line["cache"]), json.loads(line["loras"])) == ({"method": "magcache"}, ["a", "b"])
    assert len(found.filter(cache="magcache", loras=["a", "b"])) == 1


def test_html_escapes_all_it_shows(tmp_path: Path) -> None:
    out = tmp_path / "<script>"
    planned(out)
    runs.write_run(out / "x", record(BASE.with_(seed=9), metrics={"<u>": "<script>"}), {})
    page = wanlab.results(out)._repr_html_()
    assert "<script>" not in page
    assert "<u>" not in page
    assert "<i>" not in page
    assert page.count("<tr>") == 6
    assert "magcache" in page


def test_a_folder_in_any_state(tmp_path: Path) -> None:
    """What is torn, foreign, newer or not readable is a row that says why; what is no run is none."""
    planned(tmp_path)
    for name, text in {"torn": '{"schema": 2, "id"', "newer": '{"schema": 99}', "foreign": "[]", "empty": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "dir" / "run.json").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    runs.claim(tmp_path / "claimed", record(BASE.with_(seed=5)))
    (tmp_path / "claimed" / "run.json").unlink()
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "attempt-001.json").write_text("")
    os.utime(tmp_path / "dead" / "attempt-001.json", (0, 0))
    found = wanlab.results(tmp_path)
    by_name = {row.folder.name: row for row in found if row.folder}
    unreadable = found.filter(status="unreadable")
    assert {row.folder.name for row in unreadable} == {"torn", "newer", "foreign", "empty", "dir"}
    assert all(row.error for row in unreadable)
    assert "newer wanlab" in by_name["newer"].error
    assert by_name["claimed"].status == "running"
    assert by_name["dead"].status == "crashed"
    assert not {"notes", "link"} & set(by_name)
    assert len(found.to_frame()) == len(found) == 11
    assert found._repr_html_().count("unreadable") >= 5
    runs.release(tmp_path / "claimed")


@pytest.mark.parametrize("folder", ["", None, "absent", "a\0b"])
def test_no_folder(folder: Any) -> None:
    with pytest.raises(WanlabError):
        wanlab.results(folder)


def test_what_changes_is_read_again(tmp_path: Path) -> None:
    """A run that waits, runs, crashes and ends, as others see it."""
    spec = SPECS["none-0"]
    point = runs.Point(id=spec.id, settings={"seed": 0}, spec=spec.to_dict(), folder="mine")
    runs.write_sweep(tmp_path, runs.SweepFile(points=[point.model_dump()]))
    seen = [wanlab.results(tmp_path)]
    mine = runs.claim(tmp_path / "mine", record(spec, status="pending"))
    seen.append(seen[-1].refresh())
    dead = mine.with_(pid=2**31 - 1)
    (tmp_path / "mine" / "run.json").write_text(dead.model_dump_json(by_alias=True))
    seen.append(seen[-1].refresh())
    runs.write_run(tmp_path / "mine", mine.with_(status="ok"), {})
    seen.append(seen[-1].refresh())
    assert [[row.status for row in found] for found in seen] == [["pending"], ["running"], ["crashed"], ["ok"]]
    assert {row.id for found in seen for row in found} == {spec.id}
    assert seen[2][0].error == "Its process ended before it did"
    later = runs.SweepFile(points=[runs.Point(id="new", settings={"seed": 7}).model_dump()])
    runs.write_sweep(tmp_path, later)
    assert [row.status for row in seen[-1].refresh()] == ["ok", "pending"]
    other = record(spec, fingerprint="others", id=runs.run_id(spec.id, "others"))
    runs.write_run(tmp_path / "theirs", other, {})
    rows = seen[-1].refresh()
    assert [row.id for row in rows] == [spec.id, spec.id, "new"], "the same point with other weights is a row too"


def test_reading_while_somebody_writes(tmp_path: Path) -> None:
    """Every look finds whole rows, and never fewer that are ok than the look before."""
    planned = [runs.Point(id=f"id{n}", folder=f"run{n}").model_dump() for n in range(30)]
    runs.write_sweep(tmp_path, runs.SweepFile(points=planned))

    def work() -> None:
        for number in range(30):
            mine = runs.claim(tmp_path / f"run{number}", runs.RunRecord(id=f"id{number}"))
            runs.write_run(tmp_path / f"run{number}", mine.with_(status="ok"), {"video.mp4": b"x" * 1000})

    writer, seen = threading.Thread(target=work), [0]
    writer.start()
    while seen[-1] < 30 and (writer.is_alive() or len(seen) == 1):
        found = wanlab.results(tmp_path)
        assert {row.status for row in found} <= {"ok", "running", "pending"}
        assert [row.id for row in found] == [f"id{n}" for n in range(30)]
        assert all(row.clip is not None for row in found.filter(status="ok"))
        seen.append(found.counts().get("ok", 0))
    writer.join()
    assert seen == sorted(seen)
    assert wanlab.results(tmp_path).counts() == {"ok": 30}


def test_earlier_numerics_are_stale(tmp_path: Path) -> None:
    spec = SPECS["none-0"]
    runs.write_sweep(tmp_path, runs.SweepFile(points=[runs.Point(id=spec.id, spec=spec.to_dict()).model_dump()]))
    old = record(spec, numerics=1, id=runs.run_id(spec.id, "weights", 1))
    runs.write_run(tmp_path / "old", old, {})
    (row,) = wanlab.results(tmp_path)
    assert (row.id, row.stale) == (spec.id, True)
    runs.write_run(tmp_path / "new", record(spec), {})
    assert sorted(row.stale for row in wanlab.results(tmp_path)) == [False, True]


def test_runs_of_a_notebook(tmp_path: Path) -> None:
    point = runs.Point(id="abc", settings={"steps": 4})
    runs.write_sweep(tmp_path, runs.SweepFile(kind="notebook", names=["steps"], points=[point.model_dump()]))
    runs.write_run(
        tmp_path / "steps-4_abc",
        runs.RunRecord(id="abc", status="ok", params={"steps": 4, "seed": 1}, metrics={"psnr": 3}),
        {"notebook.ipynb": b"{}"},
    )
    (row,) = wanlab.results(tmp_path).filter(seed=1, psnr=3)
    assert (row.spec, row.notebook, dict(row.settings)) == (None, row.folder / "notebook.ipynb", {"steps": 4})


def test_open_gives_the_result(tmp_path: Path) -> None:
    model = wanlab.load("wan_tiny", device="cpu")
    made = wanlab.generate(model, prompt="a red circle", seed=7, num_steps=1, num_frames=1, width=32, height=32)
    made.keep(tmp_path)
    planned(tmp_path)
    found = wanlab.results(tmp_path)
    mine = next(row for row in found if row.record and row.record.id == made.run_id)
    for key in (mine, mine.id, mine.folder.name, list(found).index(mine)):
        assert found.open(key).spec == made.spec
    with pytest.raises(WanlabError, match=r"is failed: RuntimeError: <i>no"):
        found.open(2)
    with pytest.raises(WanlabError, match="There is no row 99"):
        found.open(99)
    with pytest.raises(WanlabError, match="Unknown run 'x'"):
        found.open("x")


def test_sql_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    planned(tmp_path)
    with pytest.raises(WanlabError, match=r'pip install "wanlab\[frame\]"'):
        wanlab.results(tmp_path).sql("select 1")


def test_sql(tmp_path: Path) -> None:
    planned(tmp_path)
    runs.write_run(tmp_path / "x", record(BASE.with_(seed=9), metrics={"psnr": "unknown", "ok": True}), {})
    found = wanlab.results(tmp_path)
    counted = found.sql("select status, count(*) as n from runs group by status order by status")
    assert counted.to_dict("list") == {"status": ["failed", "ok", "pending"], "n": [1, 3, 1]}
    best = found.sql("select seed, total_seconds from runs where cache = 'none' and status = 'ok' order by seed")
    assert best["seed"].tolist()[:2] == [0, 1]
    with pytest.raises(WanlabError, match="DuckDB refuses"):
        found.sql("select nonsense from runs")
    assert found.filter(status="oom").sql("select count(*) as n from runs")["n"].tolist() == [0]


def test_reading_is_cheap(tmp_path: Path) -> None:
    """500 runs: measured 0.4 s at first, 8 ms later; the limits leave room for a busy machine."""
    env, points = runs.environment(), []
    for seed in range(500):
        spec = BASE.with_(seed=seed)
        (tmp_path / f"r{seed}").mkdir()
        text = record(spec, env=env, seeds=[seed]).model_dump_json(by_alias=True)
        (tmp_path / f"r{seed}" / "run.json").write_text(text)
        points.append({"id": spec.id, "settings": {"seed": seed}, "spec": spec.to_dict()})
    runs.write_sweep(tmp_path, runs.SweepFile(names=["seed"], points=points))
    seconds = []
    for _ in range(6):
        start = time.process_time()
        assert wanlab.results(tmp_path).counts() == {"ok": 500}
        seconds.append(time.process_time() - start)
    assert seconds[0] < 1.0
    assert min(seconds[1:]) < 0.05


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full for files beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_in_the_middle(tmp_path: Path) -> None:
    """The third of five runs does not fit: it says so, the others are whole, and it is done once there is room."""

    def work() -> None:
        for number, size in enumerate((1000, 1000, 400_000, 1000, 1000)):
            spec = BASE.with_(seed=number)
            mine = runs.claim(tmp_path / str(number), record(spec, status="pending"))
            if mine is None:
                continue
            try:
                runs.write_run(tmp_path / str(number), mine.with_(status="ok"), {"video.mp4": b"x" * size})
            except WanlabError as error:
                runs.fail(tmp_path / str(number), mine, error)

    with files_of_at_most(100_000):
        work()
    found = wanlab.results(tmp_path)
    assert [row.status for row in found] == ["ok", "ok", "failed", "ok", "ok"]
    assert "Disk full" in found[2].error
    assert not list(tmp_path.rglob(".part-*"))
    before = [(tmp_path / str(n) / "run.json").read_bytes() for n in (0, 1, 3, 4)]
    for row in found.filter(status="ok"):
        assert runs.artifact(row.folder, row.record, "video.mp4").stat().st_size == 1000
    work()
    assert [(row.status, row.attempt) for row in wanlab.results(tmp_path)][2] == ("ok", 2)
    assert before == [(tmp_path / str(n) / "run.json").read_bytes() for n in (0, 1, 3, 4)]


def test_sweeps_into_one_folder_add_up(tmp_path: Path) -> None:
    def sweep(*ids: str, **fields: Any) -> runs.SweepFile:
        return runs.SweepFile(points=[runs.Point(id=i, settings={"seed": i}).model_dump() for i in ids], **fields)

    assert runs.read_sweep(tmp_path) is None
    runs.write_sweep(tmp_path, sweep("a", "b", names=["seed"], forwards={"alone": 4, "shared": 2}))
    runs.write_sweep(tmp_path, sweep("a", "b"))
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"], "nothing new, nothing written"
    located = runs.Point(id="a", settings={"seed": "a"}, folder="a_1")
    runs.write_sweep(tmp_path, runs.SweepFile(points=[located.model_dump()]))
    whole = runs.write_sweep(tmp_path, sweep("c", "a", names=["cache", "seed"], title="Caches"))
    assert [(p.id, p.folder) for p in whole.points] == [("a", "a_1"), ("b", ""), ("c", "")]
    assert (whole.names, whole.title, whole.forwards) == (("seed", "cache"), "Caches", {"alone": 4, "shared": 2})
    assert runs.read_sweep(tmp_path) == whole
    with pytest.raises(WanlabError, match="a sweep of specs"):
        runs.write_sweep(tmp_path, sweep("d", kind="notebook"))
    (tmp_path / "sweep-009.json").write_text('{"schema": 9}')
    with pytest.raises(WanlabError, match=r"schema 9.*Update wanlab"):
        runs.read_sweep(tmp_path)


def test_sweeps_at_the_same_moment_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process plans its points just before this one writes."""
    from wanlab.runs import _plan

    real, others = _plan.create, iter(range(3))

    def late(path: Path, text: str) -> bool:
        if (number := next(others, None)) is not None:
            real(path, runs.SweepFile(points=[{"id": f"other{number}"}]).model_dump_json(by_alias=True))
        return real(path, text)

    monkeypatch.setattr(_plan, "create", late)
    runs.write_sweep(tmp_path, runs.SweepFile(points=[{"id": "mine"}]))
    assert [point.id for point in runs.read_sweep(tmp_path).points] == ["other0", "other1", "other2", "mine"]


def test_what_processes_do(tmp_path: Path) -> None:
    me = runs.Working(current="a fox", executed=30, planned=40, alone=100)
    runs.write_working(tmp_path, me)
    (found,) = runs.read_working(tmp_path)
    assert (found.pid, found.host, found.current) == (os.getpid(), socket.gethostname(), "a fox")
    assert found.share_saved == pytest.approx(0.6)
    assert runs.Working().share_saved == 0.0
    runs.write_working(tmp_path, me.with_(pid=2**31 - 1))
    runs.write_working(tmp_path, me.with_(host="else/where"))
    (tmp_path / "progress" / "torn.json").write_text("{")
    (tmp_path / "progress" / ".part-elsewhere-7.json").write_text("{")
    assert sorted(w.host for w in runs.read_working(tmp_path)) == sorted(["else/where", socket.gethostname()])
    assert len(wanlab.results(tmp_path)) == 0
    runs.end_working(tmp_path)
    assert [w.host for w in runs.read_working(tmp_path)] == ["else/where"]
    assert len(list((tmp_path / "progress").iterdir())) == 1


def test_the_wish_to_stop(tmp_path: Path) -> None:
    assert not runs.is_cancelled(tmp_path / "absent")
    runs.request_cancel(tmp_path)
    runs.request_cancel(tmp_path)
    assert runs.is_cancelled(tmp_path)
    runs.clear_cancel(tmp_path)
    runs.clear_cancel(tmp_path)
    assert not runs.is_cancelled(tmp_path)


def test_costs_of_a_foreign_record_are_numbers_or_nothing(tmp_path: Path) -> None:
    ran = {"forwards": {"transformer": "x"}, "cache": {"reused": {"b": 1}}}
    for name in ("a", "b"):
        runs.write_run(tmp_path / name, record(BASE, resolved={"ran": ran}, timings={"total": 1e308}), {})
    found = wanlab.results(tmp_path)
    assert found[0].costs() == {"forwards": None, "skipped": None, "peak_bytes": 1000}
    assert found.to_frame()["skipped"].isna().all()
    assert "2 of 2 runs ok" in str(wanlab.report(tmp_path)), "their mean is no number"
