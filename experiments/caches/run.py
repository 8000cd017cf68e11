"""Every cache at three operating points on wan_tiny: what it saves, what it costs, whether prompts are still followed.

    cd experiments/caches
    for k in 0 1 2 3 4 5; do python run.py --shard $k 6 --out shard_$k.json --films films & done; wait   # one GPU
    python run.py --prompts 2 --out timed.json
    python merge.py shard_*.json --timed timed.json --out results/h100.json

Every clip is made by itself, so that a method decides for this clip alone. Clips of one prompt share their noise, and
each is compared with the clip without a cache: decoded frames, no codec between.
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrate import options
from points import points

import wanlab
from wanlab import metrics, runs, stages
from wanlab.shapes.captions import captions, sample_scenes
from wanlab.shapes.judge import judge

PLAIN = "none"
JUDGED = ("colour", "shape", "motion")


def prompts(num: int) -> list[str]:
    """Combinations of colour, shape, motion and background that wan_tiny was not trained on.

    Fewer are no prefix of more: corner objects are drawn after all main ones.
    """
    return captions(sample_scenes(num, torch.Generator().manual_seed(5), "held_out", replace=False))


class Bench:
    """One model, one number of steps; makes a clip with a cache and says what that took."""

    def __init__(self, model: Any, num_steps: int) -> None:
        self.model = model
        self.num_steps = num_steps

    def clip(self, prompt: str, seed: int, cache: Any) -> dict[str, Any]:
        """{"frames", "latents", "seconds" and "cpu_seconds" of denoising, "cache": its report, None without one}."""
        spec = self.model.spec(prompt=prompt, seed=seed, num_steps=self.num_steps, cache=cache)
        text = stages.encode_text(self.model, spec)
        conditions = stages.encode_conditions(self.model, spec)
        self._wait()
        begin, worked = time.perf_counter(), time.process_time()
        latents, ran = stages.denoise_recorded(self.model, spec, text, conditions)
        self._wait()
        took = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - worked}
        frames = stages.decode(self.model, spec, latents).frames
        return {"frames": frames, "latents": latents, **took, "cache": ran.get("cache")}

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def look(clip: np.ndarray, plain: np.ndarray, prompt: str) -> tuple[dict[str, Any], bytes]:
    """How far a clip is from the plain one, what the judge says of it, and its brightness."""
    matches = judge(clip).matches(prompt)
    psnr = metrics.psnr(plain, clip)
    found = {
        "psnr_clip": min(psnr, metrics.EQUAL_FRAME),
        "psnr_frames": float(np.mean(metrics.psnr_per_frame(plain, clip))),
        "ssim": metrics.ssim(plain, clip),
        "flicker": metrics.flicker(clip),
        "right": all(matches[word] for word in JUDGED),
    }
    return found, luma(clip)


def summary(clip: dict[str, Any]) -> dict[str, Any]:
    """What a clip took, without its pixels."""
    report = clip["cache"] or {}
    names = ("computed", "reused", "state_bytes", "ideal_speedup")
    return {"seconds": clip["seconds"], **{name: report[name] for name in names if name in report}}


def luma(frames: np.ndarray) -> bytes:
    """The clip's brightness by BT.709's weights, packed: all that VMAF reads of it."""
    grey = (frames @ np.array([0.2126, 0.7152, 0.0722])).round().astype(np.uint8)
    return lzma.compress(grey.tobytes(), preset=6)


def write_films(folder: Path, packed: dict[str, bytes], part: int) -> None:
    """Every clip's brightness under "prompt/method/point"."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"luma_{part}.npz", **{key: np.frombuffer(data, np.uint8) for key, data in packed.items()})


def every_point(num_steps: int, folder: Path) -> Iterator[tuple[str, str, Any]]:
    """(method, name of the point, the cache of the spec), the plain run first."""
    yield PLAIN, PLAIN, PLAIN
    for method, rows in points(num_steps, options(folder, num_steps)).items():
        for name, cache in rows.items():
            yield method, name, cache


def warm(bench: Bench, plan: list[Any]) -> None:
    """The first runs of every method choose kernels; they do not count."""
    for _, _, cache in plan:
        bench.clip("a red circle stays still on a black background", 0, cache)


def run(bench: Bench, plan: list[Any], args: argparse.Namespace, pool: Executor) -> dict[str, Any]:
    """rows: "method/point" -> {"method", "point", "options", "clips": [per prompt]}."""
    rows: dict[str, Any] = {}
    waiting, packed = [], {}
    for number, prompt in list(enumerate(prompts(args.prompts)))[args.shard[0] :: args.shard[1]]:
        plain: dict[str, Any] = {}
        for method, name, cache in plan:
            clip = bench.clip(prompt, number, cache)
            plain = plain or clip
            key = f"{method}/{name}"
            row = rows.setdefault(key, {"method": method, "point": name, "cache": _short(cache), "clips": []})
            row["clips"].append({"prompt": number, "latent_psnr": latent_psnr(plain, clip), **summary(clip)})
            if number == 0 and clip["cache"]:
                row["hit_map"], row["shares"] = clip["cache"]["hit_map"], clip["cache"]["shares"]
            task = pool.submit(look, clip["frames"], plain["frames"], prompt)
            waiting.append((f"{number}/{key}", row["clips"][-1], task))
        print(f"{number + 1} of {args.prompts}", flush=True)
    for key, entry, task in waiting:
        found, packed[key] = task.result()
        entry |= found
    if args.films is not None:
        write_films(args.films, packed, args.shard[0])
    return rows


def _short(cache: Any) -> Any:
    """A spec's cache without its constants, which are in the calibrations' files."""
    long = ("mag_ratios", "coefficients", "made_for")
    return cache if cache == PLAIN else {name: value for name, value in cache.items() if name not in long}


def latent_psnr(plain: dict[str, Any], clip: dict[str, Any]) -> float:
    """dB, peak to peak of the plain latents."""
    return min(float(metrics.latent_psnr(plain["latents"], clip["latents"])), metrics.EQUAL_FRAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--films", type=Path, help="folder for the clips' brightness, which vmaf.py reads")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shard", type=int, nargs=2, default=(0, 1), help="every n-th prompt from k on: k n")
    parser.add_argument("--constants", type=Path, default=Path(__file__).parent / "calibration")
    args = parser.parse_args()
    model = wanlab.load("wan_tiny", dtype="float32")
    bench = Bench(model, args.steps)
    torch.backends.cuda.matmul.allow_tf32 = False
    plan = list(every_point(args.steps, args.constants))
    if args.shard[1] == 1:
        warm(bench, plan)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = run(bench, plan, args, pool)
    seconds = statistics.median(c["seconds"] for c in rows[f"{PLAIN}/{PLAIN}"]["clips"])
    found = {
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "cpu",
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "env": runs.environment(),
        "num_steps": args.steps,
        "shard": args.shard,
        "prompts": prompts(args.prompts),
        "plain_seconds": seconds,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))
    for key, row in rows.items() if args.shard[1] == 1 else ():
        ideal, psnr = (statistics.mean(c.get(n, 1) for c in row["clips"]) for n in ("ideal_speedup", "psnr_frames"))
        print(f"{key:40s} ideal {ideal:.2f}  {psnr:.1f} dB", flush=True)


if __name__ == "__main__":
    main()
