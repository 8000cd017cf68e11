"""Does a sweep survive the death of its process, at any moment and as often as it likes?

    python experiments/sweep_survival/run.py --kills 50 --out experiments/sweep_survival/results.json

A process that has loaded the model forks one that runs a sweep of 20 points, kills it (SIGKILL) at a random moment, and
forks the next one, until the sweep has had all its deaths; the last one ends it. A moment is the n-th of what the
process does (a file that it opens, renames or deletes, a block of the network that runs), and up to 5 ms more. What was
executed is counted twice: by the claims that the runs leave, and by a file that the processes write themselves.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of the threads that its parent had

import torch

import wanlab
from wanlab import runs, stages, sweeps
from wanlab.sweeps._claimed import Task
from wanlab.sweeps._models import Models
from wanlab.sweeps._together import Together
from wanlab.sweeps._work import Options, Work

RUNS = 20
WATCHED = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.scandir", "os.utime"}
KINDS = ("single", "shared", "checkpoints", "poison", "crowd")
MASKS = ("1111111111", "1110101010", "1110110110", "1110101110", "1111010101")
"""Of a group's five points: what they compute; the first three steps are one."""
POISON = 4  # of that group: the first one to be decoded


class Moments:
    """Counts what this process does, and asks to be killed at the `deadly`-th of it (0: never)."""

    def __init__(self, model: Any, deadly: int = 0, ask: Callable[[], Any] | None = None) -> None:
        self.count, self.forwards = 0, 0
        self._deadly, self._ask = deadly, ask
        sys.addaudithook(lambda event, _: self._note() if event in WATCHED else None)
        for stack in model.stacks.values():
            for number, element in enumerate(stack):
                element.module.register_forward_hook(functools.partial(self._ran, number))

    def _ran(self, number: int, *_: Any) -> None:
        self.forwards += number == 0
        self._note()

    def _note(self) -> None:
        self.count += 1
        if self.count == self._deadly and self._ask is not None:
            self._ask()


def tell(path: Path, line: str) -> None:
    """Append a line to a file; what was told before a kill is there after it."""
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{line}\n".encode())
    os.close(file)


class Driver:
    """Forks processes that run one sweep."""

    def __init__(self, model: Any, grid: sweeps.Grid, out: Path, options: dict[str, Any]) -> None:
        self.model, self.grid, self.out, self.options = model, grid, out, options
        self.log = out.with_name(f"{out.name}.executed")
        """A line for each forward, and for each run whose own steps, shared with nobody, are begun: what, by whom."""
        self.poison = ""

    def start(self, deadly: int = 0) -> tuple[int, int]:
        """Fork a process that runs the sweep and asks to be killed at a moment; its number, and a pipe that tells."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            return pid, reading
        try:
            os.close(reading)
            self._run(deadly, writing)
        except BaseException as error:  # noqa: BLE001 - whatever it was, this is a fork
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)

    def _run(self, deadly: int, pipe: int) -> None:
        moments = Moments(self.model, deadly, lambda: os.write(pipe, b"now\n"))
        self._tell_what_runs()
        found = wanlab.run_sweep(self.grid, self.out, model=self.model, **self.options)
        os.write(pipe, json.dumps({"counts": found.counts(), "moments": moments.count}).encode())

    def _tell_what_runs(self) -> None:
        mine, segment, decode = os.getpid(), Together._segment, stages.decode

        def told(together: Together, node: Any, interrupts: Any) -> Any:
            if len(node.variants) == 1:
                tell(self.log, f"own {mine} {node.variants[0].key}")
            return segment(together, node, interrupts)

        def deadly(model: Any, spec: Any, *rest: Any) -> Any:
            if spec.id == self.poison:
                os.kill(mine, signal.SIGKILL)
            return decode(model, spec, *rest)

        Together._segment, stages.decode = told, deadly  # type: ignore[method-assign]
        for stack in self.model.stacks.values():
            stack[0].module.register_forward_hook(lambda *_: tell(self.log, f"forward {mine} 1"))

    def live(self, deadly: int = 0, chance: random.Random | None = None) -> tuple[int, int, dict[str, Any]]:
        """Let one process live, until the moment at which it is to die: its number, its exit status, what it told."""
        pid, pipe = self.start(deadly)
        with open(pipe, "rb") as told:
            line = told.readline()
            if line == b"now\n":
                time.sleep((chance or random).uniform(0, 0.005))
                os.kill(pid, signal.SIGKILL)
                line = told.readline()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return pid, status, json.loads(line) if line else {}

    def tasks(self) -> list[Task]:
        """The sweep's runs, in order."""
        return Work(self.out, self.grid.specs, Options(), Models([self.model])).tasks

    def executed(self, what: str) -> list[tuple[int, str]]:
        """(process, which) of each "own" or "forward"."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [(int(pid), which) for kind, pid, which in lines if kind == what]


def answer(pipe: int) -> bytes:
    """The next line that a process tells."""
    with open(pipe, "rb") as told:
        return told.readline()


def attempts(out: Path) -> dict[str, list[int]]:
    """By run id, the processes that claimed it, in order."""
    found = {}
    for folder in sorted(path.parent for path in out.glob("*/attempt-001.json")):
        claims = sorted(folder.glob("attempt-*.json"))
        found[folder.name.rpartition("_")[2]] = [json.loads(path.read_text())["pid"] for path in claims]
    return found


def ok(out: Path) -> set[str]:
    """Run ids that ended well, as their files say."""
    records = [json.loads(path.read_text()) for path in out.glob("*/run.json")]
    return {record["id"] for record in records if record["status"] == "ok"}


def killed_until_done(driver: Driver, kills: int, whole: int, one: int, chance: random.Random) -> list[dict[str, Any]]:
    """One entry a life. `whole` and `one` are how many moments the undisturbed sweep has, and one run alone.

    As many deaths as asked, spread over the sweep: now and then a life is as long as a group takes, most are shorter
    than one run.
    """
    members = RUNS // len({task.group for task in driver.tasks()})
    long = whole / RUNS * max(2, members)
    short = one * (0.3 if driver.options.get("checkpoint_steps") else 0.8)  # from a checkpoint, less is left to do
    lives = list[dict[str, Any]]()
    while True:
        died, before = sum(life["killed"] for life in lives), ok(driver.out)
        left = RUNS - len(before)
        is_long = left > max(2, members) and chance.random() < left / max(1, kills - died) / (0.5 * members)
        deadly = chance.randint(1, int(long if is_long else short)) if died < kills else 0
        pid, status, _ = driver.live(deadly, chance)
        after = ok(driver.out)
        in_hand = [run for run, pids in attempts(driver.out).items() if pids[-1] == pid and run not in after]
        life = {"pid": pid, "moment": deadly, "killed": status == -signal.SIGKILL, "in_hand": in_hand}
        lives.append({**life, "ended": len(after - before)})
        if status == 0:
            return lives
        assert status == -signal.SIGKILL, f"a process ended with {status}"


def bits(out: Path) -> dict[str, str]:
    """By run id, the hash of its latents."""
    found = {}
    for path in out.glob("*/run.json"):
        record = runs.read_run(path.parent)
        for entry in record.artifacts:
            runs.artifact(path.parent, record, entry.path)  # complete, with the hash that the record says
        found[record.id] = next(entry.sha256 for entry in record.artifacts if entry.path == "latents.safetensors")
        assert wanlab.open_result(path.parent).latents is not None
    return found


def survive(model: Any, grid: sweeps.Grid, folder: Path, args: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """Run a sweep undisturbed and killed; what that took, and whether the results are the same."""
    options = {"max_attempts": 1000, **options}
    calm, killed = (Driver(model, grid, folder / name, options) for name in ("calm", "killed"))
    moments = [
        each.live()[2]["moments"] for each in (calm, Driver(model, wanlab.grid(grid[0]), folder / "one", options))
    ]
    started = time.perf_counter()
    lives = killed_until_done(killed, args.kills, *moments, random.Random(args.seed))
    seconds = time.perf_counter() - started
    deaths = [life for life in lives if life["killed"]]
    claims, groups = attempts(killed.out), {task.run: task.group for task in killed.tasks()}
    forwards = [len(each.executed("forward")) for each in (calm, killed)]
    own = collections.Counter(run for _, run in killed.executed("own"))
    return {
        "runs": len(grid),
        "groups": len(set(groups.values())),
        "kills": len(deaths),
        "restarts": len(lives) - 1,
        "claims": sum(map(len, claims.values())),
        "in_hand_at_deaths": sum(len(life["in_hand"]) for life in deaths),
        "group_executions": len({(pid, groups[run]) for run, pids in claims.items() for pid in pids}),
        "most_groups_in_hand_at_a_death": max(len({groups[run] for run in life["in_hand"]}) for life in deaths),
        "deaths_with_nothing_in_hand": sum(not life["in_hand"] for life in deaths),
        "own_parts_begun": own.total(),
        "forwards": forwards[1],
        "forwards_undisturbed": forwards[0],
        "forwards_wasted": forwards[1] - forwards[0],
        "ok": len(ok(killed.out)),
        "equal_bits": bits(killed.out) == bits(calm.out),
        "left_over": left_over(killed.out),
        "seconds": round(seconds, 1),
    }


def poisoned(model: Any, grid: sweeps.Grid, folder: Path) -> dict[str, Any]:
    """A group of which one run kills its process whenever it is decoded."""
    driver = Driver(model, grid, folder / "poisoned", {})
    driver.poison = grid[POISON].id
    deaths = 0
    while (status := driver.live()[1]) == -signal.SIGKILL:
        deaths += 1
    assert status == 0, f"a process ended with {status}"
    found = wanlab.results(driver.out)
    claims = attempts(driver.out)
    return {
        "runs": len(grid),
        "deaths": deaths,
        "status": {row.record.id: row.status for row in found},
        "claims": {run: len(pids) for run, pids in claims.items()},
        "poison": driver.tasks()[POISON].run,
        "left_over": left_over(driver.out),
    }


def crowded(model: Any, grid: sweeps.Grid, folder: Path, num_processes: int = 8) -> dict[str, Any]:
    """As many processes as that run one sweep at the same time."""
    driver = Driver(model, grid, folder / "crowded", {})
    started = time.perf_counter()
    processes = [driver.start() for _ in range(num_processes)]
    told = [json.loads(answer(pipe)) for _, pipe in processes]
    status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in processes]
    claims, groups = attempts(driver.out), {task.run: task.group for task in driver.tasks()}
    bits(driver.out)
    return {
        "runs": len(grid),
        "processes": num_processes,
        "status": status,
        "counts": [each["counts"] for each in told],
        "claims": sum(map(len, claims.values())),
        "groups": len(set(groups.values())),
        "group_executions": len({(pid, groups[run]) for run, pids in claims.items() for pid in pids}),
        "forwards": len(driver.executed("forward")),
        "planned": wanlab.results(driver.out).sweep.forwards["shared"],
        "processes_that_ran_some": len({pid for pids in claims.values() for pid in pids}),
        "left_over": left_over(driver.out),
        "seconds": round(time.perf_counter() - started, 1),
    }


def left_over(out: Path) -> list[str]:
    """What should not be there when all is done."""
    found = [*out.rglob(".part-*"), *out.glob("checkpoints*"), *out.glob("progress/*")]
    return sorted(str(path.relative_to(out)) for path in found)


def fixed(mask: str) -> dict[str, Any]:
    return {"method": "fixed", "mask": [letter == "1" for letter in mask]}


def grids(base: Any) -> dict[str, sweeps.Grid]:
    """20 points that share nothing, 20 in four groups of five, one such group, and 100 quick ones in pairs."""
    masks = [fixed(mask) for mask in MASKS]
    quick = base.with_(num_steps=3, num_frames=1)
    return {
        "single": wanlab.grid(base, seed=wanlab.seeds(RUNS)),
        "shared": wanlab.grid(base, seed=wanlab.seeds(RUNS // len(MASKS)), cache=masks),
        "poison": wanlab.grid(base, cache=masks),
        "crowd": wanlab.grid(quick, seed=wanlab.seeds(50), cache=["none", fixed("101")]),
    }


def prepared(name: str) -> tuple[Any, Any]:
    """The model, with all of its weights read, and the spec of a short run."""
    path = Path(name)
    model = wanlab.load(json.loads(path.read_text()) if path.suffix == ".json" else name, device="cpu")
    prompt = "a red circle moves right on a black background"
    base = model.spec(prompt=prompt, num_steps=len(MASKS[0]), width=32, height=32, num_frames=5, max_text_tokens=16)
    wanlab.generate(model, base)
    return model, base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan_tiny", help="a model's id, or the JSON of a definition")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--folder", type=Path, help="where the sweeps go; by default a folder that is deleted")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="wanlab-survival-"))
    model, base = prepared(args.model)
    all_of, found = grids(base), dict[str, Any]()
    for name in args.only:
        part = folder / name
        part.mkdir(parents=True)
        if name == "poison":
            found[name] = poisoned(model, all_of[name], part)
        elif name == "crowd":
            found[name] = crowded(model, all_of[name], part)
        elif name == "checkpoints":
            found[name] = survive(model, all_of["shared"], part, args, checkpoint_steps=2)
        else:
            found[name] = survive(model, all_of[name], part, args)
        print(name, json.dumps(found[name], indent=2), flush=True)
    if args.folder is None:
        shutil.rmtree(folder)
    env = {"model": args.model, "machine": platform.machine(), "torch": torch.__version__, "seed": args.seed}
    args.out.write_text(json.dumps({"env": env, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
