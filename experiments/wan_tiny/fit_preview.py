"""Fit the linear map from wan_tiny's latents to colours that previews use.

    python experiments/wan_tiny/fit_preview.py --out experiments/wan_tiny/results/preview.json [--clips 96]

Least squares from the 16 channels and a constant to the mean colour of the 4 frames x 8 x 8 pixels that a latent
stands for, on training scenes; scored on held-out ones. The first latent frame stands for one frame alone and looks
different in the latents, so it has a map of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import data
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from einops import rearrange
from torch import Tensor

from wanlab.files import resource
from wanlab.shapes.captions import Split

Pairs = tuple[Tensor, Tensor]


@torch.no_grad()
def pairs(vae: AutoencoderKLWan, num: int, seed: int, split: Split) -> dict[str, Pairs]:
    """Latents (N, 16) as the sampler sees them and colours (N, 3) in [-1, 1], of first and of later latent frames."""
    pool = data.Pool.rendered(num, torch.Generator().manual_seed(seed), split)
    mean, std = (torch.tensor(vae.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    latents, colours = [], []
    for clip in pool.frames.split(8):
        pixels = clip.float() / 127.5 - 1
        latents.append((vae.encode(pixels).latent_dist.mean - mean) / std)
        colours.append(F.avg_pool3d(torch.cat([pixels[:, :, :1].expand(-1, -1, 3, -1, -1), pixels], 2), (4, 8, 8)))
    x, y = torch.cat(latents).double(), torch.cat(colours).double()
    assert x.shape[2:] == y.shape[2:]
    parts = {"first": slice(0, 1), "later": slice(1, None)}
    return {name: (rows(x[:, :, part]), rows(y[:, :, part])) for name, part in parts.items()}


def rows(video: Tensor) -> Tensor:
    """(B, C, T, H, W) as (B T H W, C)."""
    return rearrange(video, "b c t h w -> (b t h w) c")


def fit(latents: Tensor, colours: Tensor) -> Tensor:
    """(17, 3): factors, then the bias."""
    return torch.linalg.lstsq(F.pad(latents, (0, 1), value=1.0), colours).solution


def quality(solution: Tensor, latents: Tensor, colours: Tensor) -> dict[str, float]:
    """Share of the variance that the map explains, and its PSNR in dB."""
    error = (F.pad(latents, (0, 1), value=1.0) @ solution - colours).square().mean()
    explained = 1 - error / colours.var(0).mean()
    return {"explained": round(float(explained), 4), "psnr_db": round(float(-10 * (error / 4).log10()), 2)}


def plain(solution: Tensor) -> dict[str, Any]:
    """As a definition's constants have it."""
    numbers = [[round(v, 4) for v in row] for row in solution.tolist()]
    return {"factors": numbers[:-1], "bias": numbers[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=96)
    args = parser.parse_args()
    vae = AutoencoderKLWan.from_pretrained(resource("assets", "wan_tiny"), subfolder="vae").eval()
    maps = {name: fit(*pair) for name, pair in pairs(vae, args.clips, 0, "train").items()}
    held_out = pairs(vae, args.clips // 2, 1, "held_out")
    report = {"clips": args.clips, "held_out_clips": args.clips // 2}
    report |= {name: quality(solution, *held_out[name]) for name, solution in maps.items()}
    print(json.dumps(report))
    latent_rgb = plain(maps["later"]) | {"first": plain(maps["first"])}
    args.out.write_text(json.dumps(report | {"latent_rgb": latent_rgb}, indent=2) + "\n")


if __name__ == "__main__":
    main()
