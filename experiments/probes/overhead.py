"""What recording costs at a real model's size, with random weights, on one GPU.

    python experiments/probes/overhead.py --out experiments/probes/overhead.json [--rounds 4] [--scratch FOLDER]

Wan 2.1's 1.3B transformer at 480x832x81 in bfloat16, a step of two forwards (cond, uncond). Steps with and without a
recorder alternate; a recorder's first step, which has nothing to compare with, is not timed. Takes about three minutes;
every part is written as soon as it is there. `--tiny` runs wan_tiny at its own size on the CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import wanlab
from wanlab import probe
from wanlab.catalog import find
from wanlab.files import resource
from wanlab.models.wan import Wan
from wanlab.sites import Branch, StepContext, compiling

MODEL = "wan_t2v_1_3b"
LATENTS = (1, 16, 21, 60, 104)  # 480x832x81
TEXT = (1, 512, 4096)
CHEAP = ("out", "change", "cosine", "ratio")
BLOCK = 15
"""The block whose attention is looked at."""


def write_checkpoint(folder: Path) -> dict[str, Any]:
    """The definition of a random 1.3B transformer beside wan_tiny's other parts, which are never run."""
    definition = find(MODEL)
    config = definition.architecture["transformer"]
    shutil.copytree(resource("assets", "wan_tiny"), folder, ignore=shutil.ignore_patterns("transformer"))
    cls = Wan.component_class("transformer")
    with torch.device("cuda"):
        torch.manual_seed(0)
        cls(**config).to(torch.bfloat16).save_pretrained(folder / "transformer")
    torch.cuda.empty_cache()
    data = definition.model_dump(mode="json", by_alias=True)
    return {
        **data,
        "id": f"{MODEL}_random",
        "aliases": [],
        "architecture": {"transformer": config},
        "weights": {"folder": str(folder)},
        "constants": {"expand_timesteps": False},
        "sources": {},
    }


class Bench:
    """Steps of two forwards on fixed random inputs."""

    def __init__(self, model: Any, latents: tuple[int, ...], text: tuple[int, ...]) -> None:
        self.model = model
        draw = torch.Generator().manual_seed(0)
        self.latents = torch.randn(latents, generator=draw).to(model.device)
        self.text = {"embeds": torch.randn(text, generator=draw).to(model.device, model.dtype)}
        self.num_steps = 50

    def sync(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def step(self, index: int) -> torch.Tensor:
        """Both forwards of a step; the noise level moves, so that steps differ."""
        sigma = 1 - index / self.num_steps
        for branch in ("cond", "uncond"):
            ctx = StepContext(index, self.num_steps, sigma, timestep=1000 * sigma, branch=branch)
            self.model.begin(ctx)
            out = self.model.velocity(self.latents, ctx, Branch(branch, self.text))
        return out

    def timed(self, index: int) -> float:
        """Milliseconds of a step; on a CPU those that this process worked, which others' work moves less."""
        clock = time.perf_counter if self.model.device.type == "cuda" else time.process_time
        self.sync()
        begin = clock()
        self.step(index)
        self.sync()
        return 1e3 * (clock() - begin)

    def compare(self, attach: dict[str, Callable[[], AbstractContextManager[Any]]], rounds: int) -> dict[str, Any]:
        """Medians, shares and peaks of each attachment, in turns; "plain" is the first of them."""
        times: dict[str, list[float]] = {name: [] for name in attach}
        peaks: dict[str, int] = dict.fromkeys(attach, 0)
        reads: dict[str, list[float]] = {name: [] for name in attach}
        for _ in range(rounds):
            for name, enter in attach.items():
                if self.model.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                with enter() as trace:
                    self.step(0)
                    times[name].append(self.timed(1))
                    begin = time.perf_counter()
                    if trace is not None:
                        trace.flush()
                    reads[name].append(1e3 * (time.perf_counter() - begin))
                if self.model.device.type == "cuda":
                    peaks[name] = torch.cuda.max_memory_allocated()
        plain = times["plain"]
        return {
            name: {
                "step_ms": round(statistics.median(taken), 2),
                "overhead_percent": round(
                    100 * (statistics.median(t / p for t, p in zip(taken, plain, strict=True)) - 1), 2
                ),
                "all_ms": [round(t, 2) for t in taken],
                "peak_gb": round(peaks[name] / 1e9, 3),
                "reading_two_steps_ms": round(statistics.median(reads[name]), 2),
            }
            for name, taken in times.items()
        }


def measure(bench: Bench, rounds: int, note: Callable[[dict[str, Any]], None]) -> None:
    """The cheap quantities, then entropy and mass of one block's attention, then the cheap ones on compiled blocks.

    `note` gets every part as soon as it is there.
    """
    model = bench.model
    block = min(BLOCK, len(model.stacks["transformer"]) - 1)

    def recorder(*names: str) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: probe.record(model, *names)

    cheap = {
        "plain": lambda: nullcontext(),
        "blocks": recorder(*(f"blocks.*.{q}" for q in CHEAP)),
        "stack": recorder(*(f"stack.{q}" for q in CHEAP)),
    }
    looks = {
        "plain": lambda: nullcontext(),
        "entropy": recorder(f"blocks.{block}.self.entropy"),
        "entropy and mass": recorder(f"blocks.{block}.self.entropy", f"blocks.{block}.self.mass"),
        "cross entropy and mass": recorder(f"blocks.{block}.cross.mass", f"blocks.{block}.cross.entropy"),
    }
    plain = bench.step(1)
    with probe.record(model, *(f"blocks.*.{q}" for q in CHEAP)) as trace:
        bench.step(0)
        is_equal = torch.equal(bench.step(1), plain)
    note({"bit_equal": is_equal, "state_gb": round(trace.state_bytes / 1e9, 3)})
    note({"eager": bench.compare(cheap, rounds)})
    note({"eager_one_attention": bench.compare(looks, max(2, rounds // 2))})
    if model.device.type != "cuda":
        return
    with compiling(model.stacks["transformer"]):
        begin = time.perf_counter()
        bench.step(0)
        bench.sync()
        note({"compiling_s": round(time.perf_counter() - begin, 1)})
        note({"compiled": bench.compare(cheap, rounds)})
        note({"uncompiled_blocks": sorted(model.stacks["transformer"].uncompiled)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/wanlab-probe-overhead"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    begin = time.perf_counter()
    if args.tiny:
        bench = Bench(wanlab.load("wan_tiny", device="cpu"), (1, 16, 9, 12, 12), (1, 512, 128))
        found = {"device": "cpu", "model": "wan_tiny"}
    else:
        shutil.rmtree(args.scratch, ignore_errors=True)
        bench = Bench(wanlab.load(write_checkpoint(args.scratch), device="cuda"), LATENTS, TEXT)
        found = {"device": torch.cuda.get_device_name(), "model": MODEL, "size": "480x832x81"}
    found |= {"torch": torch.__version__, "dtype": str(bench.model.dtype), "rounds": args.rounds}
    found["until_loaded_s"] = round(time.perf_counter() - begin, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def note(part: dict[str, Any]) -> None:
        found.update(part, seconds=round(time.perf_counter() - begin, 1))
        args.out.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(part), flush=True)

    measure(bench, args.rounds, note)


if __name__ == "__main__":
    main()
