"""Cancel, progress and previews at a real model's size, with random weights, on one GPU.

    python experiments/lab/real_size/run.py --out experiments/lab/real_size/results.json [--steps 8] [--scratch FOLDER]

Writes Wan 2.1's 1.3B transformer, its VAE and UMT5-XXL with random weights in diffusers layout (15 GB), loads them as
any checkpoint, and cancels a job in each of its stages: how long from `job.cancel()` to its end, next to the time of
one forward? Then: is the next run bit-equal, how good was the estimate of the time left, what does a preview cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import wanlab
from wanlab import runs
from wanlab.catalog import find
from wanlab.files import resource
from wanlab.models.wan import Wan
from wanlab.watch import Cancelled

MODEL = "wan_t2v_1_3b"


def write_checkpoint(folder: Path) -> dict[str, Any]:
    """The definition of a random checkpoint at real size, whose files are written to `folder` in bfloat16."""
    definition = find(MODEL)
    with torch.device("cuda"):
        torch.manual_seed(0)
        for name, config in definition.architecture.items():
            cls = Wan.component_class(name)
            module = cls(cls.config_class(**config)) if hasattr(cls, "config_class") else cls(**config)
            module.to(torch.bfloat16).save_pretrained(folder / name)
            del module
            torch.cuda.empty_cache()
    tiny = resource("assets", "wan_tiny")  # any tokenizer gives ids that the random encoder knows
    shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    shutil.copytree(tiny / "scheduler", folder / "scheduler")
    shutil.copy(tiny / "model_index.json", folder)
    data = definition.model_dump(mode="json", by_alias=True)
    return {**data, "id": f"{MODEL}_random", "aliases": [], "weights": {"folder": str(folder)}}


class Run:
    """One job, watched from outside: when it reached a stage, when it ended."""

    def __init__(self, model: Any, folder: Path, num_steps: int, **changes: Any) -> None:
        self.previews: list[float] = []
        self.etas: list[tuple[int, float, float]] = []
        self.model = model
        self.job = wanlab.submit(
            model, prompt="a kite over dunes", num_steps=num_steps, folder=folder, on_step=self._look, **changes
        )
        self.begin = self.end = time.perf_counter()
        self.job.on_end(self._over)

    def _over(self, job: Any) -> None:
        self.end = time.perf_counter()

    def _look(self, step: int, sigma: float, latents: Any, denoised: Any) -> None:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        self.model.preview(denoised)
        self.previews.append(time.perf_counter() - begin)
        progress = self.job.progress
        if progress.eta is not None:
            self.etas.append((step, progress.eta, begin - self.begin))

    def until(self, claim: Callable[[Any], bool]) -> None:
        while not claim(self.job.progress):
            assert not self.job.done(), self.job.error
            time.sleep(0.002)

    def cancel(self) -> float:
        """Seconds from the wish to the end."""
        begin = time.perf_counter()
        self.job.cancel()
        try:
            self.job.result()
        except Cancelled:
            return time.perf_counter() - begin
        raise AssertionError("it ended before it could be cancelled")


def measure(definition: dict[str, Any], scratch: Path, num_steps: int) -> dict[str, Any]:
    """All figures, in seconds."""
    model = wanlab.load(definition)
    found: dict[str, Any] = {"cancel": {}}

    def cancelled(name: str, claim: Callable[[Any], bool], wait: float) -> None:
        run = Run(model, scratch / f"cancel-{name}", num_steps)
        run.until(claim)
        time.sleep(wait)
        stage = str(run.job.progress)
        found["cancel"][name] = {"seconds": round(run.cancel(), 3), "at": stage}
        found["cancel"][name]["status"] = runs.read_run(scratch / f"cancel-{name}").status

    cancelled("while the text encoder is read", lambda p: p.stage == "text", 1.0)
    first = Run(model, scratch / "first", num_steps)
    fresh = first.job.result()
    found["first_run"] = {k: round(v, 2) for k, v in fresh.seconds.items()}
    second = Run(model, scratch / "second", num_steps)
    again = second.job.result()
    found["second_run"] = {k: round(v, 2) for k, v in again.seconds.items()}
    found["peak_gb"] = round(again.peak_bytes / 1e9, 2)
    found["equal_runs_are_bit_equal"] = bool((again.frames == fresh.frames).all())
    step = again.seconds["denoise"] / num_steps
    found["step_seconds"] = round(step, 3)
    cancelled("in the text encoder", lambda p: p.stage == "text", 0.004)
    cancelled("in a step", lambda p: p.step >= 2, step * 0.3)
    cancelled("in the decoder", lambda p: p.stage == "decode", 0.3)
    after = Run(model, scratch / "after", num_steps)
    found["after_cancels_bit_equal"] = bool((after.job.result().frames == fresh.frames).all())
    found["preview_ms"] = round(1e3 * sorted(after.previews)[len(after.previews) // 2], 2)
    total = after.end - after.begin  # with the writing of the run folder, which the estimate covers too
    found["until_saved"] = round(total, 2)
    found["time_left"] = [
        {"step": s, "estimated": round(eta, 2), "true": round(total - at, 2)} for s, eta, at in after.etas
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/wanlab-real-size"))
    args = parser.parse_args()
    shutil.rmtree(args.scratch, ignore_errors=True)
    begin = time.perf_counter()
    definition = write_checkpoint(args.scratch / "checkpoint")
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "model": MODEL, "dtype": "bfloat16"}
    found |= {"size": "480x832x81", "num_steps": args.steps, "written_in": round(time.perf_counter() - begin, 1)}
    found |= measure(definition, args.scratch, args.steps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
