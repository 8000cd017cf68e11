"""Sweeps whose processes die at any moment, come in crowds, or find the disk full: every run ends well exactly once.

What runs is `experiments/sweep_survival/run.py` with a tiny model; what it left is looked at here again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab import runs
from wanlab.errors import WanlabError

pytestmark = pytest.mark.kills
SEED = 6


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"))[1]


@pytest.fixture
def survival(definition: dict[str, Any], tmp_path: Path, repository: Path) -> Any:
    """Runs one part of the experiment; returns what it reports, and the folder of its sweeps."""
    (tmp_path / "model.json").write_text(json.dumps(definition))
    script = repository / "experiments" / "sweep_survival" / "run.py"

    def run(name: str, kills: int = 0) -> tuple[dict[str, Any], Path]:
        out = tmp_path / "results.json"
        words = ["--model", str(tmp_path / "model.json"), "--kills", str(kills), "--seed", str(SEED), "--only", name]
        done = subprocess.run(
            [sys.executable, str(script), *words, "--folder", str(tmp_path / "runs"), "--out", str(out)],
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(out.read_text())[name]
        print(f"moments of seed {SEED}: {found}")
        return found, tmp_path / "runs" / name

    return run


def executed(out: Path) -> Counter[str]:
    """By folder, how many claims its run has: one an execution."""
    return Counter({path.parent.name: len(list(path.parent.glob("attempt-*.json"))) for path in out.glob("*/run.json")})


def assert_each_once(out: Path, number: int) -> dict[str, torch.Tensor]:
    """Every planned id has one run, which is ok and whole; its latents by id."""
    found = wanlab.results(out)
    assert found.counts() == {"ok": number}
    assert len({row.id for row in found}) == len({row.folder for row in found}) == number
    assert not list(out.rglob(".part-*"))
    assert not (out / "checkpoints").exists()
    assert not list((out / "progress").iterdir())
    latents = {}
    for row in found:
        assert {entry.path for entry in row.record.artifacts} >= {"latents.safetensors"}
        for entry in row.record.artifacts:
            runs.artifact(row.folder, row.record, entry.path)
        latents[row.id] = found.open(row).latents
    return latents


def assert_like_undisturbed(out: Path, number: int) -> None:
    killed, calm = (assert_each_once(out / name, number) for name in ("killed", "calm"))
    assert killed.keys() == calm.keys()
    assert all(torch.equal(killed[each], calm[each]) for each in calm)


def test_killed_at_fifty_moments(survival: Any) -> None:
    """Of 20 runs that share nothing each kill costs one execution at most."""
    found, out = survival("single", kills=50)
    assert_like_undisturbed(out, 20)
    counted = executed(out / "killed")
    assert found["kills"] == 50
    assert counted.total() == found["claims"] <= 20 + 50
    assert found["forwards"] <= found["forwards_undisturbed"] * (20 + 50) / 20
    assert executed(out / "calm").total() == 20
    assert found["deaths_with_nothing_in_hand"] < 40, "most of them hit a run"


@pytest.mark.parametrize("kind", ["shared", "checkpoints"])
def test_killed_in_groups(survival: Any, kind: str) -> None:
    """Four groups of five, each claimed as a whole: a kill costs one more execution of one group, so of those of its
    runs that have not ended, and of a run's own steps, which it shares with nobody, one."""
    found, out = survival(kind, kills=25)
    assert_like_undisturbed(out, 20)
    assert found["kills"] >= 20
    assert found["most_groups_in_hand_at_a_death"] == 1
    assert found["group_executions"] <= 4 + found["kills"]
    assert executed(out / "killed").total() == found["claims"] == 20 + found["in_hand_at_deaths"]
    assert 20 <= found["own_parts_begun"] <= 20 + found["kills"]
    whole = found["forwards_undisturbed"]
    assert whole <= found["forwards"] <= whole + found["kills"] * whole / 4


def test_eight_processes_on_a_hundred_runs(survival: Any) -> None:
    """50 pairs; no pair is torn apart, and what is shared is shared."""
    found, out = survival("crowd")
    assert found["status"] == [0] * 8
    assert found["counts"] == [{"ok": 100}] * 8
    assert_each_once(out / "crowded", 100)
    assert set(executed(out / "crowded").values()) == {1}
    assert found["group_executions"] == found["groups"] == 50
    assert found["forwards"] == found["planned"]
    assert found["processes_that_ran_some"] >= 2


def test_a_run_that_kills_its_process(survival: Any) -> None:
    """It is tried three times; those that it takes along end well."""
    found, _ = survival("poison")
    poison = found["poison"]
    assert found["deaths"] == 3
    assert found["status"] == {run: "crashed" if run == poison else "ok" for run in found["status"]}
    assert found["claims"][poison] == 3
    assert max(found["claims"].values()) == 3
    assert found["left_over"] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB; the limit of a file's size stands in for it in tests/test_run_sweep.py."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills(definition: dict[str, Any], small_disk: Path) -> None:
    """With 0 to 108 kB left after the first two runs, which the others need about 25 kB each of."""
    model = wanlab.load(definition, device="cpu")
    base = model.spec(prompt="a cat", num_steps=2, width=32, height=32, num_frames=5, max_text_tokens=8)
    grid, ballast, seen = wanlab.grid(base, seed=wanlab.seeds(6)), small_disk / "ballast", Counter[str]()
    for spare in range(0, 120_000, 12_000):
        out = small_disk / "out"
        first = wanlab.run_sweep(wanlab.grid(base, seed=[0, 1]), out, model=model)
        assert first.counts() == {"ok": 2}
        before = {path: path.read_bytes() for row in first for path in row.folder.iterdir()}
        disk = os.statvfs(small_disk)
        ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - spare))
        with suppress(WanlabError):  # not even the plan could be written
            wanlab.run_sweep(grid, out, model=model)
        found = wanlab.results(out)
        counts = found.counts()
        assert counts["ok"] >= 2
        assert set(counts) <= {"ok", "failed", "pending"}, counts
        assert all("Disk full" in row.error for row in found.filter(status="failed"))
        assert {path: path.read_bytes() for path in before} == before
        assert all(found.open(row).latents is not None for row in found.filter(status="ok"))
        ballast.unlink()
        assert_each_once(wanlab.run_sweep(grid, out, model=model).folder, 6)
        shutil.rmtree(out)
        seen.update(counts.keys())
    assert seen["failed"] >= 3
