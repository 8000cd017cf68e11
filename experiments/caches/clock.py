"""Seconds of one clip with and without each cache, nothing else at work: one point a method, the plain run beside it.

    python experiments/caches/clock.py --out experiments/caches/results/cpu.json     # one core, 5 minutes
    python experiments/caches/clock.py --out clock.json --all --repeats 5            # a GPU

A round makes the plain clip, then one of each point; each is compared with its round's plain clip.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compact import dumps
from run import PLAIN, Bench, every_point, prompts, warm

import wanlab
from wanlab import runs
from wanlab.files import atomic_write

TOOK = ("seconds", "cpu_seconds")


def middle(plan: Iterator[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """The plain run and the middle one of each method's points."""
    groups: dict[str, list[tuple[str, str, Any]]] = {}
    for item in plan:
        groups.setdefault(item[0], []).append(item)
    return [group[len(group) // 2] for group in groups.values()]


def machine(model: Any) -> str:
    """The device in words."""
    if model.device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'a CPU'}, {torch.get_num_threads()} thread"


def clocked(bench: Bench, plan: list[tuple[str, str, Any]], repeats: int) -> dict[str, Any]:
    """ "method/point" -> {"ideal_speedup", "seconds", "cpu_seconds"}, the last two a value for each round."""
    rows: dict[str, Any] = {}
    prompt = prompts(1)[0]
    for number in range(repeats):
        for method, point, cache in plan:
            clip = bench.clip(prompt, 0, cache)
            ideal = (clip["cache"] or {}).get("ideal_speedup", 1.0)
            row = rows.setdefault(f"{method}/{point}", {"ideal_speedup": round(ideal, 4)} | {name: [] for name in TOOK})
            for name in TOOK:
                row[name].append(round(clip[name], 4))
        print(f"round {number + 1} of {repeats}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="every point instead of each method's middle one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--constants", type=Path, default=Path(__file__).parent / "calibration")
    args = parser.parse_args()
    model = wanlab.load("wan_tiny", dtype="float32")
    bench = Bench(model, args.steps)
    points = every_point(args.steps, args.constants)
    plan = list(points) if args.all else middle(points)
    assert plan[0][0] == PLAIN
    warm(bench, plan if model.device.type == "cuda" else plan[:1])
    found = {
        "device": machine(model),
        "dtype": str(model.dtype),
        "env": runs.environment(),
        "num_steps": args.steps,
        "prompt": prompts(1)[0],
        "rows": clocked(bench, plan, args.repeats),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out, dumps(found))


if __name__ == "__main__":
    main()
