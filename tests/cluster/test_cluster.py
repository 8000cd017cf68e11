"""Sweeps on Dask's workers: the bits of a run here, every point once, whoever dies; and nobody else gets in."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import psutil
import pytest
import torch

import wanlab
from tests.cluster.points import spec_of
from tests.question import experiment
from wanlab import runs, stages, sweeps
from wanlab.cli import main
from wanlab.models import Model
from wanlab.sweeps import _cluster
from wanlab.sweeps._dispatch import Dispatch, Job
from wanlab.sweeps._models import Models
from wanlab.sweeps._split import Line, makespan, spread
from wanlab.sweeps._work import Options, Work
from wanlab.watch import Cancelled

ROOT = Path(__file__).resolve().parents[2]
MAGCACHE = {"method": "magcache", "mag_ratios": [1.0] * 6, "retention": 0.3, "max_skip": 1}
POISON = 6.625
"""The guidance scale at which a worker of `Poison` ends its process."""


def works(out: Path, grid: Any, model: Model, share: bool = True) -> Work:
    return Work(out, grid.specs, Options(share), Models([model], "cpu"))


def digests(results: runs.Results) -> dict[str, str]:
    assert [row.error for row in results if row.status != "ok"] == []
    return {row.id: hashlib.sha256((row.folder / "latents.safetensors").read_bytes()).hexdigest() for row in results}


def pids(results: runs.Results) -> dict[str, list[int]]:
    """Of every run, which processes began it."""
    return {
        row.id: [json.loads(p.read_text())["pid"] for p in sorted(row.folder.glob("attempt-*.json"))]
        for row in results
        if row.folder is not None
    }


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


# Who does what


def random_line(chance: random.Random, length: int) -> Line:
    paths = [chance.randrange(5, 20) for _ in range(length)]
    shared = [0, *(chance.randrange(0, min(pair) + 1) for pair in itertools.pairwise(paths))]
    return Line(tuple(map(str, range(length))), tuple(paths), tuple(shared))


def test_a_line_takes_what_is_forecast(tiny: Model) -> None:
    grid = wanlab.grid(spec_of(tiny, seed=1), cache=["none", MAGCACHE], guidance_scale=[3.0, 5.0], seed=[1, 2])
    line = Line.of(tiny, {spec.id: spec for spec in grid})
    expected = sweeps.forecast(tiny, grid.specs)
    assert sorted(line.keys) == sorted(spec.id for spec in grid)
    assert (line.cost(), sum(line.paths)) == (expected.shared, expected.alone)
    for start, stop in itertools.combinations(range(len(grid) + 1), 2):
        some = [spec for spec in grid if spec.id in line.keys[start:stop]]
        assert line.part(start, stop).cost() == line.cost(start, stop) == sweeps.forecast(tiny, some).shared


@pytest.mark.parametrize("seed", range(5))
def test_a_line_is_cut_best(seed: int) -> None:
    """Against all ways to cut it."""
    line = random_line(random.Random(seed), 8)
    for number in (2, 3, 4):
        parts = line.parts(number)
        assert len(parts) <= number
        assert [key for part in parts for key in part.keys] == list(line.keys)
        ways = []
        cut = itertools.chain.from_iterable(itertools.combinations(range(1, 8), n) for n in range(number))
        for cuts in cut:
            ends = list(zip((0, *cuts), (*cuts, 8), strict=True))
            costs = [line.cost(*pair) for pair in ends]
            ways.append((max(costs), sum(costs)))
        bound = int(min(ways)[0] * 1.1)
        assert max(part.cost() for part in parts) <= bound
        assert sum(part.cost() for part in parts) == min(total for longest, total in ways if longest <= bound)


def test_groups_stay_whole_unless_a_worker_would_wait() -> None:
    even = [Line((f"{i}a", f"{i}b"), (10, 10), (0, 8)) for i in range(4)]
    assert sorted(spread(even, 2), key=lambda line: line.keys) == even
    big = Line(tuple("abcdef"), (20,) * 6, (0, 2, 18, 18, 2, 18))
    found = spread([big], 2)
    assert [part.keys for part in found] == [tuple("abcd"), tuple("ef")]  # cut where little is shared
    assert makespan(found, 2) < makespan([big], 2)
    same = Line(("a", "b", "c"), (20,) * 3, (0, 20, 20))  # parting would make nobody sooner
    assert spread([same], 3) == [same]


# Running


def test_bits_are_those_of_a_run_here_and_groups_stay_together(client: Any, tiny: Model, tmp_path: Path) -> None:
    """Two groups on two workers, each on one; a model that only this process knows; then nothing is left to do."""
    grid = wanlab.grid(spec_of(tiny, seed=1), cache=["none", MAGCACHE], seed=[1, 2])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = sweeps.run_sweep(grid, tmp_path / "here", model=tiny, device="cpu")
    torch.set_num_threads(threads)
    there = sweeps.run_sweep(grid, tmp_path / "there", model=tiny, device="cpu", executor=client)
    assert digests(there) == digests(here)
    whose = defaultdict(set)
    for row in there:
        whose[row.spec.sampling.seed].update(pids(there)[row.id])
    assert [len(found) for found in whose.values()] == [1, 1]
    assert os.getpid() not in set.union(*whose.values())
    assert runs.read_working(tmp_path / "there") == []
    before = pids(there)
    again = sweeps.run_sweep(grid, tmp_path / "there", model=tiny, device="cpu", executor=client)
    assert pids(again) == before


def test_one_large_group_is_split_to_the_same_bits(client: Any, tiny: Model, tmp_path: Path) -> None:
    grid = wanlab.grid(spec_of(tiny, seed=1), guidance_scale=[2.0, 3.0, 4.0, 5.0])
    assert len({task.group for task in works(tmp_path, grid, tiny).tasks}) == 1
    there = sweeps.run_sweep(grid, tmp_path / "there", model=tiny, device="cpu", executor=client)
    assert len({pid for found in pids(there).values() for pid in found}) == 2
    text, conditions = stages.encode_text(tiny, grid[0]), stages.encode_conditions(tiny, grid[0])
    for row in there:
        alone = stages.denoise(tiny, tiny.canonical(row.spec), text, conditions)
        assert torch.equal(there.open(row).latents, alone.float())


def test_a_killed_worker_is_replaced_and_its_run_done_once_more(client: Any, tiny: Model, tmp_path: Path) -> None:
    grid = wanlab.grid(spec_of(tiny, seed=1, num_steps=60), seed=[1, 2])
    killed = []

    def kill() -> None:
        file = until(lambda: next(tmp_path.glob("*/attempt-001.json"), None))
        until(lambda: file.read_text())
        killed.append(json.loads(file.read_text())["pid"])
        until(lambda: (file.parent / "run.json").exists())
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    found = sweeps.run_sweep(grid, tmp_path, model=tiny, device="cpu", executor=client)
    thread.join()
    began = pids(found)
    assert found.counts() == {"ok": 2}
    assert sorted(map(len, began.values())) == [1, 2]
    assert next(p for p in began.values() if len(p) == 2)[0] == killed[0]
    assert all(killed[0] != p[-1] for p in began.values())


class Poison(distributed.WorkerPlugin):
    """Ends the process that decodes a run of one guidance scale, as a fault of a driver would."""

    name = "poison"

    def setup(self, worker: Any) -> None:
        from wanlab import stages

        decode = stages.decode

        def deadly(model: Any, spec: Any, *rest: Any) -> Any:
            if spec.guidance.guidance_scale == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(model, spec, *rest)

        stages.decode = deadly


@pytest.mark.kills
def test_a_run_that_ends_its_process_each_time_is_given_up_alone(tiny: Model, tmp_path: Path) -> None:
    """The others of its group end well, although their processes were killed with it."""
    grid = wanlab.grid(spec_of(tiny, seed=1), guidance_scale=[POISON, 3.0, 4.0])
    with sweeps.local_cluster(1, gpus=[], threads=1) as client:
        client.register_plugin(Poison())
        found = sweeps.run_sweep(grid, tmp_path, model=tiny, device="cpu", executor=client)
    poisoned = next(row for row in found if row.settings["guidance_scale"] == POISON)
    assert found.counts() == {"ok": 2, "crashed": 1}
    assert poisoned.status == "crashed"
    assert len(pids(found)[poisoned.id]) == runs.MAX_ATTEMPTS


def test_what_dask_gives_up_is_given_again_while_it_gets_on(near: Any, tmp_path: Path) -> None:
    """KilledWorker loses neither the job's other runs nor the other jobs; without progress the runs say why."""
    folders = [tmp_path / name for name in "abc"]
    spent, worker = tmp_path / "spent", SimpleNamespace(address="nowhere")

    def killing(name: str) -> None:
        with open(spent, "a") as file:
            file.write(name)
        folder = tmp_path / name
        if name == "c":
            finish(folder)
            return
        if name == "a" and runs.num_crashes(folder) < 2:  # as if a process died that had begun it
            left(folder)
        raise distributed.KilledWorker(name, worker, 3)

    def left(folder: Path) -> None:
        code = f"from wanlab import runs; runs.claim({str(folder)!r}, runs.RunRecord(id='x'))"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def finish(folder: Path) -> None:
        record = runs.claim(folder, runs.RunRecord(id="x"))
        runs.write_run(folder, record.with_(status="ok"), {})

    def open_runs(folder: Path) -> list[tuple[Path, runs.RunRecord]]:
        done = (folder / "run.json").is_file() and runs.read_run(folder).status == "ok"
        return [] if done else [(folder, runs.RunRecord(id="x"))]

    jobs = [Job(f.name, 3 - i, "", (killing, f.name), lambda f=f: open_runs(f)) for i, f in enumerate(folders)]
    Dispatch(near, tmp_path).run(jobs)
    assert [runs.read_run(folder).status for folder in folders] == ["failed", "failed", "ok"]
    assert runs.read_run(folders[1]).error.type == "KilledWorker"
    assert sorted(spent.read_text()) == list("aaabc")


def test_a_job_that_cannot_run_is_written_down(near: Any, tiny: Model, tmp_path: Path) -> None:
    """Here a worker that finds other weights: its run id is another one."""
    work = works(tmp_path, wanlab.grid(spec_of(tiny, seed=1), seed=[1, 2]), tiny)
    found = _cluster.jobs(work, 1)
    found[0].call[1]["runs"] = ["0" * 12]
    Dispatch(near, tmp_path).run(found)
    assert runs.results(tmp_path).counts() == {"failed": 1, "ok": 1}
    assert "other weights" in next(row.error for row in runs.results(tmp_path) if row.status == "failed")


def test_notebooks_run_in_kernels_of_the_workers(client: Any, tmp_path: Path) -> None:
    """One that fails is written down, and the others are not its matter."""
    cell = (
        "import os; from wanlab import log; log(parent=os.getppid(), y=10 // x, gpu=os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    path = experiment(tmp_path / "question", cell, grid={"x": [1, 0, 2]})
    found = sweeps.run_experiment(path, tmp_path / "out", executor=client)
    assert found.counts() == {"ok": 2, "failed": 1}
    assert {row.settings["x"]: row.metrics["y"] for row in found if row.status == "ok"} == {1: 10, 2: 5}
    workers = set(client.run(os.getpid).values())
    assert all(row.metrics["parent"] in workers and row.metrics["gpu"] == "" for row in found if row.status == "ok")
    assert {p for found in pids(found).values() for p in found} <= workers
    assert runs.read_working(tmp_path / "out") == []


@pytest.mark.kills
def test_the_command_takes_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment(tmp_path / "question", "from wanlab import log; log(y=x)", grid={"x": [1, 2]})
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--workers", "1", "--gpus", ""]) == 0
    assert os.getpid() not in {p for found in pids(runs.results(tmp_path / "out")).values() for p in found}
    assert main(["sweep", str(path), "--workers", "3", "--gpus", "0,1"]) != 0
    assert "3 workers for 2 GPUs" in capsys.readouterr().err


# Stopping


def test_the_cancel_file_stops_the_workers(client: Any, tiny: Model, tmp_path: Path) -> None:
    grid = wanlab.grid(spec_of(tiny, seed=1, num_steps=500), seed=range(4))

    def stop() -> None:
        until(lambda: any(w.step for w in runs.read_working(tmp_path)))
        runs.request_cancel(tmp_path)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Cancelled):
        sweeps.run_sweep(grid, tmp_path, model=tiny, device="cpu", executor=client)
    thread.join()
    counted = runs.results(tmp_path).counts()
    assert set(counted) == {"cancelled", "pending"}
    assert runs.read_working(tmp_path) == []
    assert not any(client.processing().values())


SCRIPT = """
import sys
import wanlab
from wanlab import sweeps
def main():
    grid = wanlab.Grid.from_dict(__import__("json").load(open(sys.argv[1])))
    with sweeps.local_cluster(1, gpus=[], threads=1) as client:
        wanlab.run_sweep(grid, sys.argv[2], executor=client, device="cpu")
if __name__ == "__main__":
    main()
"""


@pytest.mark.kills
def test_ctrl_c_in_a_terminal_stops_all_and_leaves_nobody(tmp_path: Path) -> None:
    """The signal goes to all processes of the terminal; the one that began the sweep ends the others."""
    model = wanlab.load("wan_tiny", device="cpu")
    grid = wanlab.grid(model.spec(prompt="a red circle", num_frames=5, num_steps=900), seed=[1, 2])
    (tmp_path / "grid.json").write_text(json.dumps(grid.to_dict()))
    (tmp_path / "script.py").write_text(SCRIPT)
    out = tmp_path / "out"
    words = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "grid.json"), str(out)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, start_new_session=True, text=True)
    try:
        until(lambda: process.poll() is not None or any(w.step for w in runs.read_working(out)))
        below = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "distributed" not in errors.partition("Traceback")[0]
    assert runs.results(out).counts() == {"cancelled": 1, "pending": 1}
    psutil.wait_procs(below, timeout=10)
    assert not [p for p in below if p.is_running()]
