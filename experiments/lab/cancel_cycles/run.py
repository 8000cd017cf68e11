"""100 jobs started and cancelled: does anything stay? Writes a JSON of every cycle and the slopes.

python experiments/lab/cancel_cycles/run.py --out experiments/lab/cancel_cycles/results.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import sys
import tempfile
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wanlab
from wanlab.watch import Cancelled

SIZE = {"num_steps": 4, "num_frames": 5, "width": 32, "height": 32, "seed": 1, "max_text_tokens": 32}
WHERE = ("queued", "text", "step", "decode", "step", "branch")
WARM = 20  # cycles before the counts and the fit begin
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "100000000"}
"""One heap, and pages of their own for larger tensors: with glibc's defaults RSS moves by megabytes on its own, and a
real leak hides in the holes of the heap."""


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keep".split()
    ]


def heap() -> int:
    """Bytes that C code has allocated and not freed."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    found = libc.mallinfo2()
    return found.used + found.hblkhd


def blocks(module: torch.nn.Module, name: str) -> list[torch.nn.Module]:
    """The entries of all lists called `name`."""
    return [block for path, block in module.named_modules() if path.rpartition(".")[0].endswith(name)]


def cycle(model: Any, spec: Any, number: int, folder: Path) -> str:
    """Start a job, cancel it at a place that depends on the number, and return how it ended."""
    where, reached, handles = WHERE[number % len(WHERE)], threading.Event(), []
    asked: list[Any] = []

    def stop(*_: Any) -> None:
        reached.wait(60)
        asked[0].cancel()

    def on_step(step: int, *_: Any) -> None:
        if where == "step" and step == number % SIZE["num_steps"]:
            stop()

    if where in ("text", "decode"):
        part, name = {"text": ("text_encoder", "layer"), "decode": ("vae", "resnets")}[where]
        module = model.parts[part].module
        inner = blocks(module.decoder if part == "vae" else module, name)
        handles.append(inner[number % len(inner)].register_forward_pre_hook(stop))
    if where == "branch":
        handles.append(model.on_begin(lambda ctx: stop() if ctx.step == number % SIZE["num_steps"] else None))
    with model.lock.hold("the test") if where == "queued" else nullcontext():
        job = wanlab.submit(model, spec, on_step=on_step, folder=folder / str(number) if number % 2 else None)
        asked.append(job)
        if where == "queued":
            job.cancel()
    reached.set()
    with suppress(Cancelled):
        job.result(60)
    for handle in handles:
        handle.remove()
    return job.status


COUNTS = ("threads", "tensors", "files", "blocks", "heap", "rss")


def counts() -> tuple[int, ...]:
    """Of this process, after a collection: threads, tensors, files, blocks of Python's allocator, bytes of C's, RSS."""
    gc.collect()
    return (
        threading.active_count(),
        sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()),
        len(os.listdir("/proc/self/fd")),
        sys.getallocatedblocks(),
        heap(),
        int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
    )


def slope(values: np.ndarray) -> tuple[float, float]:
    """Bytes a cycle by least squares, and the standard error of that."""
    x, y = np.arange(len(values)) - (len(values) - 1) / 2, values.astype(float)
    fit = float((x * y).sum() / (x**2).sum())
    rest = y - y.mean() - fit * x
    return fit, float(np.sqrt((rest**2).sum() / (len(values) - 2) / (x**2).sum()))


def series(model: Any, spec: Any, num_cycles: int, leak: int = 0) -> dict[str, Any]:
    """The counts after every cycle, with `leak` bytes kept in each to see whether the fit finds them."""
    table, ends = np.zeros((num_cycles, len(COUNTS)), np.int64), [""] * num_cycles  # filling them takes no memory
    kept: list[Any] = [None] * num_cycles
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_cycles):
            ends[number] = cycle(model, spec, number, Path(folder))
            kept[number] = torch.ones(leak, dtype=torch.uint8) if leak else None
            table[number] = counts()
    columns = dict(zip(COUNTS, table.T, strict=True))
    slopes = {name: slope(columns[name][WARM:]) for name in ("rss", "heap", "blocks")}
    return {"leak": leak, "slopes": slopes, "ends": ends, **{name: c.tolist() for name, c in columns.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wan_tiny", help="an id or the path of a definition")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--leaks", type=int, nargs="*", default=[20_000], help="bytes a cycle of the controls")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(1)
    model = wanlab.load(args.model, device="cpu")
    spec = model.spec(prompt="a red circle moves right on a black background", **SIZE)
    fresh = wanlab.generate(model, spec)
    gc.collect()
    gc.freeze()  # what is here now is not counted again in every cycle
    runs = [series(model, spec, args.cycles, leak) for leak in [0] * args.repeats + args.leaks]
    again = wanlab.generate(model, spec)
    result = {
        "model": args.model,
        "torch": torch.__version__,
        "machine": platform.platform(),
        "equal": bool(torch.equal(again.latents, fresh.latents) and np.array_equal(again.frames, fresh.frames)),
        "runs": runs,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n")
    for run in runs:
        told = [f"{name} {fit:.1f} +- {error:.1f}" for name, (fit, error) in run["slopes"].items()]
        print(f"{run['leak']} bytes kept in each cycle; slopes a cycle: {', '.join(told)}")


if __name__ == "__main__":
    main()
