"""Measure what wan_tiny does with a first frame, and that it follows prompts alone as well as before.

    python experiments/wan_tiny/score_i2v.py --out OUT --after OUT/transformer [--prompts 200] [--limit 150]

Prompts are `score.py`'s: held-out combinations, two seeds each. A clip's image is the first frame of the true render.
Runs, in this order while time is left: text to video and image to video by the new weights, the same by the old ones,
then images with the text of another scene, then other guidance scales.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data
import first_frame
import numpy as np
import torch
from engine import Engine, load_transformer
from measures import SEEDS, batches, interval, to_bytes
from torch import Tensor

from wanlab.files import resource
from wanlab.shapes._objects import find_background, find_objects
from wanlab.shapes._outlines import centroids
from wanlab.shapes.captions import captions, read_caption, sample_scenes
from wanlab.shapes.judge import Verdict, score, wilson
from wanlab.shapes.renderer import render

GUIDANCE = 3.0
SEEN_FRAMES = (0, 4, 16, 32)
TOLERANCE = 4.0
"""Pixels of 96 that the object's centre may be away from the true one."""
WORDS = ("colour", "shape", "background", "motion")


@dataclass(frozen=True)
class Truth:
    """The rendered clips that images are taken from, one row a prompt and seed."""

    texts: list[str]
    seeds: list[int]
    clips: np.ndarray
    """(N, T, H, W, 3) uint8."""
    tracks: np.ndarray
    """(N, T, 2) pixels, see `track`."""

    def images(self, rows: slice) -> Tensor:
        """First frames (B, 3, H, W) in [-1, 1]."""
        return torch.from_numpy(self.clips[rows, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1


def track(frames: np.ndarray) -> np.ndarray:
    """(T, 2) pixels: the centre of the main object of (T, H, W, 3) uint8; NaN where there is not exactly one."""
    seen = frames.astype(np.float32)
    objects = find_objects(seen, find_background(seen)[1])
    if objects is None:
        return np.full((len(frames), 2), np.nan)
    x, y, _ = centroids(objects.alpha)
    return np.where(objects.is_valid[:, None], np.stack([x, y], -1), np.nan)


def truth(num: int, pool: Executor, device: str) -> Truth:
    scenes = sample_scenes(num, torch.Generator().manual_seed(2026), "held_out", replace=False)
    clips = np.concatenate([to_bytes(render(scenes[i : i + 20].to(device)).frames) for i in range(0, num, 20)])
    tracks, times = np.stack(list(pool.map(track, clips, chunksize=8))), len(SEEDS)
    seeds = [seed for seed in SEEDS for _ in range(num)]
    return Truth(captions(scenes) * times, seeds, np.tile(clips, (times, 1, 1, 1, 1)), np.tile(tracks, (times, 1, 1)))


def share(claims: np.ndarray) -> dict[str, float | int]:
    low, high = wilson(int(claims.sum()), len(claims))
    mean = float(claims.sum()) / max(1, len(claims))
    return {"share": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "num": len(claims)}


def decibels(a: np.ndarray, b: np.ndarray) -> Tensor:
    """(N,) PSNR of clips (N, T, H, W, 3) uint8."""
    error = [np.square(x.astype(np.float32) - y).mean() for x, y in zip(a, b, strict=True)]
    return -10 * (torch.tensor(np.array(error)) / 255**2).clamp(min=1e-10).log10()


def nearness(clips: np.ndarray, true: Truth, pool: Executor) -> dict[str, Any]:
    """How near clips come to the true ones: frame 0, the four frames after it, all after it; the object's place."""
    found = np.stack(list(pool.map(track, clips, chunksize=8)))
    away = np.linalg.norm(found - true.tracks, axis=-1)
    result: dict[str, Any] = interval("first_frame_db", decibels(clips[:, :1], true.clips[:, :1]))
    result |= interval("next_four_db", decibels(clips[:, 1:5], true.clips[:, 1:5]))
    result |= interval("later_db", decibels(clips[:, 1:], true.clips[:, 1:]))
    for frame in SEEN_FRAMES:
        distance = away[~np.isnan(true.tracks[:, frame, 0]), frame]
        seen = distance[~np.isnan(distance)]
        result[f"place_frame_{frame}"] = {
            **share(np.nan_to_num(distance, nan=np.inf) <= TOLERANCE),
            "median_px": round(float(np.median(seen)), 2) if len(seen) else None,
        }
    return result


def who_wins(verdicts: list[dict[str, Any]], pictured: list[str], written: list[str]) -> dict[str, Any]:
    """Of the clips whose image and text differ in a word: how many show the image's, how many the text's."""
    result = {}
    for word in WORDS:
        rows = [
            (seen[word], read_caption(image)[word], read_caption(text)[word])
            for seen, image, text in zip(verdicts, pictured, written, strict=True)
        ]
        rows = [row for row in rows if row[1] != row[2]]
        result[word] = {
            "image": share(np.array([seen == image for seen, image, _ in rows])),
            "text": share(np.array([seen == text for seen, _, text in rows])),
        }
    return result


class Scorer:
    """Makes and measures clips; `results` grows by an entry a run."""

    def __init__(self, args: argparse.Namespace, pool: Executor, begin: float) -> None:
        self.args, self.pool, self.begin, self.slowest = args, pool, begin, 0.0
        device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = resource("assets", "wan_tiny")
        self.engine = Engine(folder, device)
        self.networks = {
            "after": load_transformer(args.after, device),
            "before": load_transformer(args.before or folder / "transformer", device),
        }
        self.true = truth(args.prompts, pool, device)
        self.clips: dict[str, np.ndarray] = {}
        self.all_right: dict[str, np.ndarray] = {}
        self.results: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
            "prompts": args.prompts, "seeds": SEEDS, "tolerance_px": TOLERANCE, "left_out": [],
            "images_through_vae": interval("db", through_vae(self.engine, self.true)),
        }  # fmt: skip

    def has_time(self, name: str) -> bool:
        """Whether a run as slow as the slowest would end in time; one that would not is written down."""
        in_time = time.time() - self.begin + 1.2 * self.slowest < self.args.limit
        if not in_time:
            self.results["left_out"].append(name)
        return in_time

    def generate(self, network: str, with_image: bool, scale: float, texts: list[str]) -> np.ndarray:
        true, made = self.true, []
        for start, (some, seeds) in enumerate(batches(texts, true.seeds, self.args.batch)):
            rows = slice(start * self.args.batch, start * self.args.batch + len(some))
            images = true.images(rows) if with_image else None
            latents = self.engine.latents(self.networks[network], some, seeds, scale, images)
            made.append(self.engine.decode(latents))
        return np.concatenate(made)

    def run(self, network: str, task: str, scale: float = GUIDANCE, other_text: bool = False) -> None:
        name = f"{task} {network} guidance {scale:g}" + other_text * " other text"
        if not self.has_time(name):
            return
        start, true = time.time(), self.true
        texts = true.texts[1:] + true.texts[:1] if other_text else true.texts
        clips = self.generate(network, task == "i2v", scale, texts)
        generated = time.time() - start
        found = score(clips, texts, pool=self.pool)
        verdicts = found.pop("verdicts")
        entry = {"seconds": round(generated, 1), **found, **nearness(clips, true, self.pool)}
        if other_text:
            entry["who_wins"] = who_wins(verdicts, true.texts, texts)
        self.results[name], self.clips[name] = entry, clips
        right = [Verdict(**v).matches(t) for v, t in zip(verdicts, texts, strict=True)]
        self.all_right[name] = np.array([r["colour"] and r["shape"] and r["motion"] for r in right])
        self.slowest = max(self.slowest, time.time() - start)
        brief = {k: round(entry[k]["share"], 3) for k in ("colour", "shape", "motion", "all")}
        near = {k: entry[k] for k in ("first_frame_db", "next_four_db", "later_db")}
        print(name, brief, near, f"{time.time() - self.begin:.0f} s", flush=True)

    def compare(self, task: str) -> None:
        """Old and new weights on equal prompts and noise: the shares, and the clips that only one of them has right."""
        old, new = f"{task} before guidance {GUIDANCE:g}", f"{task} after guidance {GUIDANCE:g}"
        if old not in self.results or new not in self.results:
            return
        before, after = self.all_right[old], self.all_right[new]
        self.results[f"{task} before and after"] = {
            "before": share(before), "after": share(after),
            "only_before": int((before & ~after).sum()), "only_after": int((after & ~before).sum()),
            "not_below_the_interval": bool(after.mean() >= share(before)["low"]),
        }  # fmt: skip

    def picture(self, path: Path, num: int = 6) -> None:
        """Of each of some clips: the true one, and those that the old and the new weights make of its first frame."""
        names = [f"i2v {network} guidance {GUIDANCE:g}" for network in ("before", "after")]
        rows = [self.true.clips, *(self.clips[name] for name in names if name in self.clips)]
        data.save_grid(path, *(torch.from_numpy(r[:num]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1 for r in rows))


@torch.no_grad()
def through_vae(engine: Engine, true: Truth) -> Tensor:
    """Decibels of images that only went through the autoencoder: the most that a first frame can reach."""
    images = true.images(slice(0, 100)).to(engine.device)
    latents = first_frame.encode_image(engine.vae, images)
    return decibels(engine.decode(latents), true.clips[: len(images), :1])


def main() -> None:
    begin = time.time()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--after", type=Path, required=True, help="folder of the new transformer")
    parser.add_argument("--before", type=Path, help="folder of the old transformer, by default the one that ships")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--limit", type=float, default=150, help="seconds after which no run is begun")
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        scorer = Scorer(args, pool, begin)
        print("ready", f"{time.time() - begin:.0f} s", scorer.results["images_through_vae"], flush=True)
        for network in ("after", "before"):
            for task in ("t2v", "i2v"):
                scorer.run(network, task)
                scorer.compare(task)
                write(args.out, scorer)
        scorer.picture(args.out / "samples_i2v.png")
        scorer.run("after", "i2v", other_text=True)
        for scale in (1.0, 5.0):
            scorer.run("after", "i2v", scale)
        write(args.out, scorer)


def write(folder: Path, scorer: Scorer) -> None:
    (folder / "score_i2v.json").write_text(json.dumps(scorer.results, indent=1))


if __name__ == "__main__":
    main()
