"""How much sooner is a sweep done on several workers?

    python experiments/sweep_scaling/run.py --workers 1 2 --out experiments/sweep_scaling/results/cpu.json
    python experiments/sweep_scaling/run.py --workers 1 2 --gpus 0 1 --out experiments/sweep_scaling/results/gpu.json

A grid of independent points (seeds of one spec) through `run_sweep(executor=...)`, from the first claim to the last
file. The clusters of all sizes are started and warmed up once, each worker with one point; then the sizes take turns,
round after round, so that whatever else the machine does meets all of them. Starting is told apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import wanlab
from wanlab import runs, sweeps
from wanlab.files import atomic_write

PROMPT = "a red circle moves right on a black background"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to compare")
    parser.add_argument("--gpus", nargs="*", default=[], help="a worker each; none: workers on the CPU")
    parser.add_argument("--model", default="wan_tiny")
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each worker's CPU operations")
    parser.add_argument("--set", nargs="*", default=[], metavar="name=value", help="of the spec, such as num_steps=20")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def digests(results: runs.Results) -> dict[str, str]:
    """Of each run, the SHA-256 of its latents. Raises RuntimeError for a run without."""
    if wrong := [row.error or row.status for row in results if row.status != "ok"]:
        raise RuntimeError(wrong[0])
    return {row.id: hashlib.sha256((row.folder / "latents.safetensors").read_bytes()).hexdigest() for row in results}


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = "cuda" if asked.gpus else "cpu"
    changes = {name: json.loads(value) for name, _, value in (word.partition("=") for word in asked.set)}
    model = wanlab.load(asked.model, device="cpu")
    spec = model.spec(prompt=PROMPT, **changes)
    grid = wanlab.grid(spec, seed=wanlab.seeds(asked.points))
    started: dict[int, float] = {}
    seconds: dict[int, list[float]] = {number: [] for number in asked.workers}
    bits: list[dict[str, str]] = []
    with ExitStack() as stack:
        clients = {}
        for number in asked.workers:
            began = time.perf_counter()
            cluster = sweeps.local_cluster(number, asked.gpus[:number], asked.threads)
            clients[number] = stack.enter_context(cluster)
            warm = wanlab.grid(spec, seed=range(1000, 1000 + number))
            options = {"device": device, "executor": clients[number]}
            digests(wanlab.run_sweep(warm, folder / f"warm{number}", **options))
            started[number] = time.perf_counter() - began
        for turn in range(asked.rounds):
            for number in asked.workers if turn % 2 == 0 else reversed(asked.workers):
                out = folder / f"{turn}-{number}"
                began = time.perf_counter()
                results = wanlab.run_sweep(grid, out, device=device, executor=clients[number])
                seconds[number].append(time.perf_counter() - began)
                bits.append(digests(results))
    least = asked.workers[0]
    ratios = {n: [a / b for a, b in zip(seconds[least], seconds[n], strict=True)] for n in asked.workers}
    return {
        "model": asked.model,
        "points": len(grid),
        "spec": spec.to_dict(),
        "threads": asked.threads,
        "seconds": seconds,
        "times_as_fast": {number: statistics.median(found) for number, found in ratios.items()},
        "of_each_round": ratios,
        "start_and_warm_up_seconds": started,
        "latents_equal_in_every_bit": all(found == bits[0] for found in bits),
    }


def machine(gpus: list[str]) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpus else [],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    asked = arguments()
    if asked.gpus and max(asked.workers) > len(asked.gpus):
        raise SystemExit(f"{max(asked.workers)} workers need as many GPUs")
    found = machine(asked.gpus)
    with tempfile.TemporaryDirectory() as folder:
        found |= measure(asked, Path(folder))
    text = json.dumps(found, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(asked.out, text + "\n")


if __name__ == "__main__":
    main()
