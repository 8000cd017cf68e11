"""Measure wan_tiny: reconstruction by the autoencoder, and how well clips follow prompts it never saw.

    python experiments/wan_tiny/score.py --out results.json [--prompts 200] [--guidance 1 5] [--diffusers]

Prompts are combinations of the "held_out" split, two seeds each; the judge is wanlab.shapes.judge.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from measures import SEEDS, batches, interval, shares, to_bytes

import wanlab
from wanlab import stages
from wanlab.shapes.captions import captions, sample_scenes
from wanlab.shapes.renderer import render

Generate = Callable[[list[str], list[int], float], np.ndarray]


def by_wanlab(model: Any) -> Generate:
    """Clips by wanlab's stages, a batch of prompts at once."""

    def generate(texts: list[str], seeds: list[int], guidance_scale: float) -> np.ndarray:
        specs = [model.spec(prompt=t, seed=s, guidance_scale=guidance_scale) for t, s in zip(texts, seeds, strict=True)]
        encoded = [stages.encode_text(model, s) for s in specs]
        text = {k: {n: torch.cat([e[k][n] for e in encoded]) for n in encoded[0][k]} for k in encoded[0]}
        noise = torch.cat([model.initial_noise(s) for s in specs])
        latents = stages.denoise(model, specs[0], text, stages.encode_conditions(model, specs[0]), noise)
        return np.stack([stages.decode(model, specs[0], one[None]).frames for one in latents])

    return generate


def by_diffusers(model: Any, folder: Path) -> Generate:
    """Clips by diffusers' WanPipeline from the same folder, with the same initial latents and its other defaults."""
    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(model.device)
    pipeline.set_progress_bar_config(disable=True)

    def generate(texts: list[str], seeds: list[int], guidance_scale: float) -> np.ndarray:
        specs = [model.spec(prompt=t, seed=s) for t, s in zip(texts, seeds, strict=True)]
        noise = torch.cat([model.initial_noise(s) for s in specs])
        size, sampling = specs[0].size, specs[0].sampling
        result = pipeline(
            texts, height=size.height, width=size.width, num_frames=size.num_frames,
            num_inference_steps=sampling.num_steps, guidance_scale=guidance_scale, latents=noise, output_type="np",
        )  # fmt: skip
        return (result.frames * 255).round().astype(np.uint8)

    return generate


def follow(
    generate: Generate, texts: list[str], args: argparse.Namespace, scale: float, pool: Executor
) -> dict[str, Any]:
    """The judge's shares for both seeds of every prompt at one guidance scale."""
    prompts, seeds = texts * len(SEEDS), [s for s in SEEDS for _ in texts]
    start = time.time()
    clips = np.concatenate([generate(t, s, scale) for t, s in batches(prompts, seeds, args.batch)])
    seconds = time.time() - start
    return {"guidance_scale": scale, "seconds": round(seconds, 1), **shares(clips, prompts, pool)}


@torch.no_grad()
def reconstruct(folder: Path, device: str, num: int = 100) -> dict[str, float]:
    """PSNR of diffusers' own encode and decode on held-out clips, whole and inside the main object's box."""
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32).to(device).eval()
    scenes = sample_scenes(num, torch.Generator().manual_seed(7), "held_out", replace=False)
    whole, box = [], []
    for start in range(0, num, 10):
        clips = render(scenes[start : start + 10].to(device))
        x = clips.frames * 2 - 1
        y = vae.decode(vae.encode(x).latent_dist.mode(), return_dict=False)[0]
        whole.append(data.psnr(x, y))
        box.append(data.psnr(x, y, data.box_mask(clips.boxes)))
    return {"clips": num, **interval("whole", torch.cat(whole)), **interval("box", torch.cat(box))}


def judge_itself(texts: list[str], scenes: Any, pool: Executor) -> dict[str, Any]:
    """What the judge says of true renders, with their own prompts and with shuffled ones."""
    clips = np.concatenate([to_bytes(render(scenes[i : i + 20]).frames) for i in range(0, len(scenes), 20)])
    shuffled = texts[1:] + texts[:1]
    return {"true": shares(clips, texts, pool), "shuffled": shares(clips, shuffled, pool)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="wan_tiny")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 5.0])
    parser.add_argument("--diffusers", type=float, nargs="*", default=[], help="guidance scales for WanPipeline")
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()
    model = wanlab.load(args.model, dtype="float32")
    folder = wanlab.files.resource("assets", "wan_tiny")
    scenes = sample_scenes(args.prompts, torch.Generator().manual_seed(2026), "held_out", replace=False)
    texts = captions(scenes)
    device = str(model.device)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu",
        "dtype": str(model.dtype), "torch": torch.__version__, "prompts": args.prompts, "seeds": SEEDS,
        "vae": reconstruct(folder, device),
    }  # fmt: skip
    print("vae", results["vae"], flush=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        results["judge"] = judge_itself(texts, scenes, pool)
        runs = [("wanlab", by_wanlab(model), g) for g in args.guidance]
        if args.diffusers:
            runs[1:1] = [("diffusers", by_diffusers(model, folder), g) for g in args.diffusers]
        for engine, generate, scale in runs:
            results[f"{engine} guidance {scale:g}"] = follow(generate, texts, args, scale, pool)
            args.out.write_text(json.dumps(results, indent=1))
            found = results[f"{engine} guidance {scale:g}"]
            print(
                engine,
                scale,
                {k: round(found[k]["share"], 3) for k in ("colour", "shape", "motion", "all")},
                flush=True,
            )


if __name__ == "__main__":
    main()
