"""Every cache at three operating points on wan_tiny: what it saves, what it costs, and whether prompts are still followed.

    python experiments/caches/run.py --out experiments/caches/results/h100.json --films films   # one GPU, 8 minutes
    python experiments/caches/vmaf.py experiments/caches/results/h100.json --films films        # a CPU, 3 minutes
    python experiments/caches/figures.py experiments/caches/results/h100.json

Every clip is made by itself, so that a method decides for this clip alone. Clips of one prompt share their noise, and
each is compared with the clip without a cache: decoded frames, no codec between.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from points import points

import wanlab
from wanlab import metrics, runs, stages, study
from wanlab.shapes.captions import captions, read_caption, sample_scenes
from wanlab.shapes.judge import judge

PLAIN = "none"
JUDGED = ("colour", "shape", "motion")


def prompts(num: int) -> list[str]:
    """Combinations of colour, shape, motion and background that wan_tiny was not trained on."""
    return captions(sample_scenes(num, torch.Generator().manual_seed(5), "held_out", replace=False))


class Bench:
    """One model, one number of steps; makes a clip with a cache and says what that took."""

    def __init__(self, model: Any, num_steps: int) -> None:
        self.model = model
        self.num_steps = num_steps

    def clip(self, prompt: str, seed: int, cache: Any) -> dict[str, Any]:
        """{"frames", "latents", "seconds" of denoising, "cache": its report, None without one}."""
        spec = self.model.spec(prompt=prompt, seed=seed, num_steps=self.num_steps, cache=cache)
        text = stages.encode_text(self.model, spec)
        conditions = stages.encode_conditions(self.model, spec)
        self._wait()
        begin = time.perf_counter()
        latents, ran = stages.denoise_recorded(self.model, spec, text, conditions)
        self._wait()
        seconds = time.perf_counter() - begin
        frames = stages.decode(self.model, spec, latents).frames
        return {"frames": frames, "latents": latents, "seconds": seconds, "cache": ran.get("cache")}

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def distances(clip: dict[str, Any], plain: dict[str, Any], prompt: str) -> dict[str, Any]:
    """How far a clip is from the plain one, and what the judge says of it."""
    a, b = plain["frames"], clip["frames"]
    said, verdict = read_caption(prompt), judge(b)
    matches = verdict.matches(said)
    return {
        "psnr_clip": metrics.psnr(a, b),
        "psnr_frames": float(np.mean(metrics.psnr_per_frame(a, b))),
        "ssim": metrics.ssim(a, b),
        "flicker": metrics.flicker(b),
        "right": all(matches[word] for word in JUDGED),
    }


def summary(clip: dict[str, Any]) -> dict[str, Any]:
    """What a clip took, without its pixels."""
    report = clip["cache"] or {}
    names = ("computed", "reused", "state_bytes", "ideal_speedup")
    return {"seconds": clip["seconds"], **{name: report[name] for name in names if name in report}}


class Film:
    """The brightness of many clips, one after another, as lossless H.265: what VMAF reads."""

    def __init__(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._box = av.open(str(path), "w")
        self._stream = self._box.add_stream("libx265", rate=16)
        self._stream.options = {"x265-params": "lossless=1:log-level=none", "preset": "slow"}
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = "gray"

    def add(self, frames: np.ndarray) -> None:
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="gray")
            self._box.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._box.mux(self._stream.encode())
        self._box.close()


def every_point() -> Iterator[tuple[str, str, Any]]:
    """(method, name of the point, the cache of the spec), the plain run first."""
    yield PLAIN, PLAIN, PLAIN
    for method, rows in points().items():
        for name, options in rows.items():
            yield method, name, {"method": method, **options}


def warm(bench: Bench) -> None:
    """The first runs of every method choose kernels; they do not count."""
    for _, _, cache in every_point():
        bench.clip("a red circle stays still on a black background", 0, cache)


def run(bench: Bench, args: argparse.Namespace, pool: Executor) -> dict[str, Any]:
    """rows: "method/point" -> {"method", "point", "options", "clips": [per prompt]}."""
    rows: dict[str, Any] = {}
    film = Film(args.films / "luma.mkv", bench.model.spec().size.width) if args.films else None
    waiting = []
    for number, prompt in enumerate(prompts(args.prompts)):
        plain: dict[str, Any] = {}
        for method, name, cache in every_point():
            clip = bench.clip(prompt, number, cache)
            plain = plain or clip
            key = f"{method}/{name}"
            row = rows.setdefault(key, {"method": method, "point": name, "options": cache, "clips": []})
            row["clips"].append({"prompt": number, "latent_psnr": latent_psnr(plain, clip), **summary(clip)})
            if number == 0 and clip["cache"]:
                row["hit_map"], row["shares"] = clip["cache"]["hit_map"], clip["cache"]["shares"]
            task = pool.submit(distances, _pixels(clip), _pixels(plain), prompt)
            waiting.append((row["clips"][-1], task))
            if film is not None:
                film.add(clip["frames"])
        print(f"{number + 1} of {args.prompts}", flush=True)
    for entry, task in waiting:
        entry |= task.result()
    if film is not None:
        film.close()
    return rows


def _pixels(clip: dict[str, Any]) -> dict[str, Any]:
    return {"frames": clip["frames"]}


def latent_psnr(plain: dict[str, Any], clip: dict[str, Any]) -> float:
    """dB, peak to peak of the plain latents."""
    return float(metrics.latent_psnr(plain["latents"], clip["latents"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--films", type=Path, help="folder for the clips' brightness, which vmaf.py reads")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    model = wanlab.load("wan_tiny", dtype="float32")
    bench = Bench(model, args.steps)
    torch.backends.cuda.matmul.allow_tf32 = False
    warm(bench)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = run(bench, args, pool)
    seconds = statistics.median(c["seconds"] for c in rows[f"{PLAIN}/{PLAIN}"]["clips"])
    found = {
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "cpu",
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "env": runs.environment(),
        "num_steps": args.steps,
        "prompts": prompts(args.prompts),
        "plain_seconds": seconds,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))
    print(study.__name__, "median seconds without a cache:", round(seconds, 3))


if __name__ == "__main__":
    main()
