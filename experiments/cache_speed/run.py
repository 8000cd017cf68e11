"""Does a fixed half mask make a compiled Wan 1.3B twice as quick, and quicker than cache-dit with the same mask?

    python experiments/cache_speed/run.py --out experiments/cache_speed/results.json [--deadline 440] [--tiny]

Five rows take turns on one GPU, every one a whole loop of 50 steps: ours without a cache and with the mask, and
diffusers' network without a cache, with cache-dit's F8B0 and with its F1B0. Random weights, the same on both sides.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

BEGIN = time.perf_counter()
sys.path.append(str(Path(__file__).parents[1] / "families"))

import torch  # noqa: E402
from gauges import Clocks, Found, Graphs, Memory, Ticks, nothing_compiles, profiled, waits  # noqa: E402
from sides import Ours, Peer  # noqa: E402
from torch import Tensor  # noqa: E402

from wanlab.files import atomic_write  # noqa: E402

ROUNDS = (
    ("ours_full", "peer_f8b0", "ours_half", "peer_f1b0", "peer_full"),
    ("peer_f1b0", "ours_half", "ours_full", "peer_f8b0"),
    ("ours_half", "peer_f1b0", "peer_f8b0", "ours_full"),
    ("peer_f1b0", "ours_half"),
    ("ours_half", "peer_f1b0"),
)
"""Whole loops, in this order; a loop that would not end in time is left out."""
FIRST = {"peer_f8b0": 8, "peer_f1b0": 1}
"""Blocks that cache-dit always runs."""
TARGETS = {"realised_over_ideal": 0.98, "over_f8b0": 1.2, "over_f1b0": 1.02}
NUM_SHORT = 2
NUM_SKIPS = 12


def half(num_steps: int) -> list[bool]:
    """Every second step computes, from the first on."""
    return [i % 2 == 0 for i in range(num_steps)]


class Measurement:
    """All rows around one model; `found` fills while it runs."""

    def __init__(self, ours: Ours, peer: Peer, num_steps: int, save: Callable[[], None]) -> None:
        self.ours, self.peer, self.num_steps, self._save = ours, peer, num_steps, save
        self.rows: dict[str, Found] = {name: {"loops": []} for name in ROUNDS[0]}
        self.latents: dict[str, Tensor] = {}
        self.clocks = Clocks()

    def once(self, name: str, num_steps: int, ticks: Ticks) -> tuple[Tensor, Found]:
        """A loop of a row with its mask."""
        mask = None if name.endswith("full") else half(num_steps)
        if name.startswith("ours"):
            return self.ours.run(num_steps, mask, ticks)
        return self.peer.run(num_steps, mask, ticks, FIRST.get(name))

    def warm_up(self) -> None:
        """Compile, then look for waits and kernels in a few steps of every row, none of which is timed."""
        for name, row in self.rows.items():
            graphs, begin = Graphs(), time.perf_counter()
            self.once(name, 2, Ticks())
            row["warm_up"] = {"seconds": round(time.perf_counter() - begin, 1), **graphs.found()}
            row["waits"] = waits(lambda name=name: self.once(name, NUM_SHORT, Ticks()))
            row["profile"] = profiled(lambda name=name: self.once(name, NUM_SHORT, Ticks()))
            row["short_steps"] = NUM_SHORT
            say(f"{name}: {row['warm_up']}, waits {row['waits']}")
            self._save()

    def skips(self) -> Found:
        """A run that computes its first step only: seconds of a skipped forward, begin to begin, and of the rest."""
        forwards, steps = Ticks(), Ticks()
        with self.ours.model.on_begin(forwards.mark):
            self.ours.run(NUM_SKIPS, [True] + [False] * (NUM_SKIPS - 1), steps)
        between = forwards.seconds()  # cond to uncond, uncond to the next step's cond, ...
        return {
            "steps": NUM_SKIPS - 1,
            "skipped_forward_ms": round(1e3 * statistics.median(between[2::2]), 3),
            "skipped_forward_and_sampler_ms": round(1e3 * statistics.median(between[3::2]), 3),
            "skipped_step_ms": round(1e3 * statistics.median(steps.seconds()[1:]), 3),
        }

    def loop(self, name: str) -> None:
        """One whole loop; nothing may compile in it."""
        row, graphs, memory, ticks, begin = self.rows[name], Graphs(), Memory(), Ticks(), time.perf_counter()
        with nothing_compiles():
            latents, ran = self.once(name, self.num_steps, ticks)
        steps = ticks.seconds()
        row["loops"].append(
            {
                "seconds": round(sum(steps), 4),
                "wall_seconds": round(time.perf_counter() - begin, 4),
                "peak_bytes": memory.peak(),
                "clocks": self.clocks.since(begin),
                "steps_ms": [round(1e3 * s, 2) for s in steps],
                **ran,
                **graphs.found(),
            }
        )
        self.latents.setdefault(name, latents)
        say(f"{name}: {row['loops'][-1]['seconds']:.3f} s, {row['loops'][-1]['clocks']}")
        self._save()

    def predicted(self, name: str) -> float:
        """Seconds of a loop: the longest so far of this row, else of any."""
        loops = self.rows[name]["loops"] or [x for row in self.rows.values() for x in row["loops"]]
        return max((x["wall_seconds"] for x in loops), default=60.0)

    def differences(self) -> Found:
        """Relative difference of the final latents, against what the loop changed."""
        noise, last = self.ours.noise.float(), self.latents

        def rel(a: str, b: str) -> float | None:
            if a not in last or b not in last:
                return None
            return float(f"{(last[a] - last[b]).norm() / (last[b] - noise).norm():.3g}")

        pairs = ("ours_full", "peer_full"), ("ours_half", "ours_full"), ("peer_f1b0", "peer_full")
        return {f"{a} to {b}": rel(a, b) for a, b in (*pairs, ("peer_f8b0", "peer_full"), ("peer_f1b0", "ours_half"))}


def summary(rows: dict[str, Found], num_steps: int) -> Found:
    """The figures that the question is about, from medians over the loops of a row."""
    mask = half(num_steps)
    seconds = {name: statistics.median(x["seconds"] for x in row["loops"]) for name, row in rows.items()}
    steps: Found = {}
    for name, row in rows.items():
        every = [(i, ms) for loop in row["loops"] for i, ms in enumerate(loop["steps_ms"])]
        computed = [ms for i, ms in every if mask[i] or name.endswith("full")]
        skipped = [ms for i, ms in every if not (mask[i] or name.endswith("full"))]
        steps[name] = {
            "computed_ms": round(statistics.median(computed), 2),
            "skipped_ms": round(statistics.median(skipped), 2) if skipped else None,
        }
    ideal = num_steps / sum(mask)
    realised = seconds["ours_full"] / seconds["ours_half"]
    loops = [loop for row in rows.values() for loop in row["loops"]]
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "spread": {
            name: round((max(s) - min(s)) / min(s), 4)
            for name, row in rows.items()
            for s in [[x["seconds"] for x in row["loops"]]]
        },
        "steps": steps,
        "ideal": ideal,
        "realised": round(realised, 4),
        "realised_over_ideal": round(realised / ideal, 4),
        "over_f8b0": round(seconds["peer_f8b0"] / seconds["ours_half"], 4),
        "over_f1b0": round(seconds["peer_f1b0"] / seconds["ours_half"], 4),
        "peer_realised": {name: round(seconds["peer_full"] / seconds[name], 4) for name in FIRST},
        "graphs_made": sum(x["graphs_made"] for x in loops),
        "breaks": sum(x["breaks"] for x in loops),
    }


def waits_a_step(row: Found) -> float | None:
    """Waits of the loop and all that it calls; those of this folder's own lines, before the loop, are not of it."""
    if row["waits"] is None:
        return None
    return sum(n for place, n in row["waits"].items() if not place.startswith("cache_speed/")) / row["short_steps"]


def meets(found: Found) -> dict[str, bool]:
    """Which targets are met."""
    rows, total = found["rows"], found["summary"]
    return {
        **{name: total[name] >= wanted for name, wanted in TARGETS.items()},
        "cache_adds_no_wait": waits_a_step(rows["ours_full"]) == waits_a_step(rows["ours_half"]),
        "no_break": total["breaks"] == 0 and all(row["warm_up"]["breaks"] == 0 for row in rows.values()),
        "no_recompilation": total["graphs_made"] == 0,
    }


def table(found: Found) -> str:
    """The rows as markdown."""
    heads = "row | s a loop | spread | loops | ms a step, computed | skipped | speed-up | state, MB | peak, GB"
    lines = [f"| {heads} | waits a step |", "|---|" + "---:|" * 9]
    total = found["summary"]
    for name, row in found["rows"].items():
        base = "ours_full" if name.startswith("ours") else "peer_full"
        last, step = row["loops"][-1], total["steps"][name]
        waited = waits_a_step(row)
        cells = [
            name,
            f"{total['seconds'][name]:.3f}",
            f"{100 * total['spread'][name]:.2f} %",
            f"{len(row['loops'])}",
            f"{step['computed_ms']:.1f}",
            "-" if step["skipped_ms"] is None else f"{step['skipped_ms']:.1f}",
            f"{total['seconds'][base] / total['seconds'][name]:.3f}",
            f"{last['state_bytes'] / 1e6:.1f}",
            "-" if last["peak_bytes"] is None else f"{last['peak_bytes'] / 1e9:.2f}",
            "-" if waited is None else f"{waited:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> Found:
    """What the figures belong to."""
    cuda = torch.cuda.is_available()
    packages = ("torch", "diffusers", "transformers", "cache-dit")
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "python": platform.python_version(),
        **{name: torch.__version__ if name == "torch" else version(name) for name in packages},
    }


def say(text: str) -> None:
    print(f"[{time.perf_counter() - BEGIN:6.1f} s] {text}", flush=True)


def conclude(found: Found, save: Callable[[], None]) -> int:
    """Add what follows from the loops, save and print it; 0 if all targets are met."""
    found["summary"] = summary(found["rows"], found["setting"]["steps"])
    forward = found["summary"]["steps"]["ours_full"]["computed_ms"] / 2
    found["skips"]["share_of_a_computed_forward"] = round(found["skips"]["skipped_forward_ms"] / forward, 5)
    found["meets"] = meets(found)
    save()
    print(table(found))
    print(json.dumps({k: found[k] for k in ("summary", "skips", "latents_differ", "meets")}, indent=1))
    return 0 if found["tiny"] or all(found["meets"].values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--deadline", type=float, default=440.0, help="seconds from the start of the process")
    parser.add_argument("--tiny", action="store_true", help="narrow and short, on a CPU too; its figures mean nothing")
    parser.add_argument("--again", action="store_true", help="measure nothing: conclude from the loops in --out")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not (args.tiny or args.again):
        parser.error("the real size needs a GPU; --tiny runs on a CPU")
    found: Found = json.loads(args.out.read_text()) if args.again else {"machine": machine(), "tiny": args.tiny}

    def save() -> None:
        atomic_write(args.out, json.dumps(found, indent=1) + "\n")

    if args.again:
        return conclude(found, save)
    with tempfile.TemporaryDirectory(prefix="wanlab-cache-speed-") as folder:
        ours = Ours(Path(folder) / "checkpoint", device, args.tiny)
        peer = Peer(ours)
    found["setting"] = {**ours.describe(), "steps": args.steps, "mask": half(args.steps), "peer_first_blocks": FIRST}
    run = Measurement(ours, peer, args.steps, save)
    found["rows"] = run.rows
    say(f"{found['machine']}, {found['setting']['size']}")
    try:
        run.warm_up()
        found["skips"] = run.skips()
        say(f"skips: {found['skips']}")
        for i, names in enumerate(ROUNDS):
            for name in names:
                if i == 0 or time.perf_counter() - BEGIN + run.predicted(name) < args.deadline:
                    run.loop(name)
    finally:
        run.clocks.stop()
    found["latents_differ"] = run.differences()
    found["seconds"] = round(time.perf_counter() - BEGIN, 1)
    return conclude(found, save)


if __name__ == "__main__":
    sys.exit(main())
