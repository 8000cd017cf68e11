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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of the threads that its parent had

import torch

import wanlab
from wanlab import runs, sweeps
from wanlab.sweeps._group import Group

RUNS = 20
WATCHED = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.scandir", "os.utime"}
MASKS = ("1111111111", "1110101010", "1110110110", "1110101110", "1111010101")
"""Of a group's five points: what they compute; the first three steps are one."""


class Moments:
    """Counts what this process does, and asks to be killed at the `deadly`-th of it (0: never)."""

    def __init__(self, model: Any, deadly: int = 0, ask: Callable[[], None] | None = None) -> None:
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
        """A line for each run that a process begins, and for each forward: what, its process, which."""
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
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)

    def _run(self, deadly: int, pipe: int) -> None:
        moments = Moments(self.model, deadly, lambda: os.write(pipe, b"now\n") and None)
        self._count_forwards()
        begin = Group.run
        Group.run = lambda group, left: (
            [tell(self.log, f"run {os.getpid()} {run}") for run in left]
            and begin(  # type: ignore[method-assign]
                group, left
            )
        )
        decode = self.model.decode
        self.model.decode = lambda spec, *rest: decode(spec, *rest) if self.is_harmless(spec) else kill_me()
        found = wanlab.run_sweep(self.grid, self.out, model=self.model, **self.options)
        os.write(pipe, json.dumps({"counts": found.counts(), "moments": moments.count}).encode())

    def is_harmless(self, spec: Any) -> bool:
        return not self.poison or f"{spec.cache.bind().model_dump().get('mask')}" != self.poison

    def _count_forwards(self) -> None:
        for stack in self.model.stacks.values():
            stack[0].module.register_forward_hook(lambda *_: tell(self.log, f"forward {os.getpid()} 1"))

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

    def executed(self, what: str) -> list[tuple[int, str]]:
        """(process, which) of each run or forward that was begun."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [(int(pid), which) for kind, pid, which in lines if kind == what]


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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


def killed_until_done(driver: Driver, kills: int, whole: int, chance: random.Random) -> list[dict[str, Any]]:
    """One entry a life; `whole` is how many moments the undisturbed sweep has.

    As many deaths as asked, spread over the sweep: a life is as long as makes the last death come near the end.
    """
    each, lives = whole / RUNS, list[dict[str, Any]]()
    while True:
        died, left = sum(life["killed"] for life in lives), RUNS - len(ok(driver.out))
        share = min(0.45, left / max(1, kills - died))  # of a run in each life, so that runs and deaths end together
        longest = each * min(1 / (1 - share), 0.8 * left)
        deadly = chance.randint(1, max(1, int(longest))) if died < kills else 0
        before = ok(driver.out)
        pid, status, _ = driver.live(deadly, chance)
        in_hand = [run for run, pids in attempts(driver.out).items() if pids[-1] == pid and run not in ok(driver.out)]
        life = {"pid": pid, "moment": deadly, "killed": status == -signal.SIGKILL, "in_hand": in_hand}
        lives.append({**life, "ended": len(ok(driver.out) - before)})
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
    calm = Driver(model, grid, folder / "calm", options)
    _, status, told = calm.live()
    assert status == 0, "the undisturbed sweep failed"
    driver = Driver(model, grid, folder / "killed", options)
    started = time.perf_counter()
    lives = killed_until_done(driver, args.kills, told["moments"], random.Random(args.seed))
    seconds = time.perf_counter() - started
    deaths = [life for life in lives if life["killed"]]
    claimed, begun = attempts(driver.out), collections.Counter(run for _, run in driver.executed("run"))
    groups = {task: name for name, task in group_names(model, grid)}
    forwards = [len(d.executed("forward")) for d in (calm, driver)]
    return {
        "runs": len(grid),
        "groups": len(set(groups.values())),
        "kills": len(deaths),
        "restarts": len(lives) - 1,
        "executions": sum(map(len, claimed.values())),
        "executions_begun": begun.total(),
        "group_executions": len({(pid, groups[run]) for run, pids in claimed.items() for pid in pids}),
        "most_executions_of_a_run": max(map(len, claimed.values())),
        "in_hand_at_deaths": sum(len(life["in_hand"]) for life in deaths),
        "groups_in_hand_at_a_death": max(len({groups[run] for run in life["in_hand"]}) for life in deaths),
        "deaths_with_nothing_in_hand": sum(not life["in_hand"] for life in deaths),
        "forwards": forwards[1],
        "forwards_undisturbed": forwards[0],
        "forwards_wasted": forwards[1] - forwards[0],
        "ok": len(ok(driver.out)),
        "equal_bits": bits(driver.out) == bits(calm.out),
        "left_over": sorted(str(p.relative_to(driver.out)) for p in left_over(driver.out)),
        "seconds": round(seconds, 1),
    }


def left_over(out: Path) -> Iterable[Path]:
    """What should not be there when all is done."""
    return [*out.rglob(".part-*"), *out.glob("checkpoints*"), *out.glob("progress/*")]


def group_names(model: Any, grid: sweeps.Grid) -> list[tuple[str, str]]:
    """(group, run id) of each point."""
    return [(sweeps.group_key(model, spec), runs.run_id(spec.id, model.fingerprint)) for spec in grid]


def grids(base: Any) -> dict[str, sweeps.Grid]:
    """20 points that share nothing, and 20 in four groups of five."""
    masks = [{"method": "fixed", "mask": [letter == "1" for letter in mask]} for mask in MASKS]
    return {
        "single": wanlab.grid(base, seed=wanlab.seeds(RUNS)),
        "shared": wanlab.grid(base, seed=wanlab.seeds(RUNS // len(MASKS)), cache=masks),
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
    parser.add_argument("--only", choices=["single", "shared", "checkpoints"], help="one of the three sweeps")
    parser.add_argument("--folder", type=Path, help="where the sweeps go; by default a folder that is deleted")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="wanlab-survival-"))
    model, base = prepared(args.model)
    found = {}
    for name in ["single", "shared", "checkpoints"] if args.only is None else [args.only]:
        (folder / name).mkdir(parents=True)
        options = {"checkpoint_steps": 2} if name == "checkpoints" else {}
        grid = grids(base)["single" if name == "single" else "shared"]
        found[name] = survive(model, grid, folder / name, args, **options)
        print(name, json.dumps(found[name], indent=2), flush=True)
    if args.folder is None:
        shutil.rmtree(folder)
    env = {"model": args.model, "machine": platform.machine(), "torch": torch.__version__, "seed": args.seed}
    args.out.write_text(json.dumps({"env": env, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
