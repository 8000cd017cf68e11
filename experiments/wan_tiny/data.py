"""Rendered clips kept on the GPU as bytes, and small pictures of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from wanlab.shapes.captions import Scenes, Split, sample_scenes
from wanlab.shapes.renderer import render

NUM_FRAMES, SIZE = 33, 96


@dataclass
class Pool:
    """`frames` (N, 3, T, H, W) uint8, `weight` (N, T, H, W) uint8 (255 near an object), `boxes` (N, T, 4)."""

    frames: Tensor
    weight: Tensor
    boxes: Tensor
    scenes: Scenes

    @classmethod
    def rendered(cls, num: int, generator: torch.Generator, split: Split = "train", chunk: int = 64) -> Pool:
        scenes = sample_scenes(num, generator, split)
        frames, weight, boxes = [], [], []
        for start in range(0, num, chunk):
            clips = render(scenes[start : start + chunk], NUM_FRAMES, SIZE)
            frames.append((clips.frames * 255).round().byte())
            near = F.max_pool2d(rearrange(clips.coverage, "b t h w -> (b t) 1 h w"), 7, 1, 3)
            weight.append((rearrange(near, "(b t) 1 h w -> b t h w", t=NUM_FRAMES) * 255).byte())
            boxes.append(clips.boxes)
        return cls(torch.cat(frames), torch.cat(weight), torch.cat(boxes), scenes)

    def batch(self, num: int, num_frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random (part of) clips in [-1, 1] and weights in [0, 1]; flipped, reversed and transposed at random."""
        device = self.frames.device
        rows = torch.randint(len(self.frames), (num,), generator=generator, device=device)
        start = int(torch.randint(NUM_FRAMES - num_frames + 1, (), generator=generator, device=device))
        x = self.frames[rows, :, start : start + num_frames].float() / 127.5 - 1
        w = self.weight[rows, start : start + num_frames].float() / 255
        for dim in (-1, -2, -3):
            if torch.rand((), generator=generator, device=device) < 0.5:
                x, w = x.flip(dim), w.flip(dim)
        if torch.rand((), generator=generator, device=device) < 0.5:
            x, w = x.mT, w.mT
        return x, w


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,) decibels, one mean square error a clip (B, 3, T, H, W) in [-1, 1]; `mask` (B, T, H, W) in {0, 1}."""
    error = ((a - b).float() / 2).square().mean(1)
    error = error.mean((1, 2, 3)) if mask is None else (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    return -10 * error.clamp(min=1e-10).log10()


def box_mask(boxes: Tensor, size: int = SIZE) -> Tensor:
    """(B, T, H, W) float, 1 inside the boxes (B, T, 4)."""
    grid = torch.arange(size, device=boxes.device)
    left, top, right, bottom = boxes.unbind(-1)
    x = (grid >= left[..., None]) & (grid < right[..., None])
    y = (grid >= top[..., None]) & (grid < bottom[..., None])
    return (y[..., :, None] & x[..., None, :]).float()


def save_grid(path: Path, *clips: Tensor, every: int = 4) -> None:
    """A PNG: a row a clip, each of `clips` (B, 3, T, H, W) in [-1, 1] under the other."""
    rows = torch.stack([c[:, :, ::every].float().cpu() for c in clips], 1)
    picture = rearrange(rows, "b n c t h w -> (b n h) (t w) c")
    Image.fromarray(((picture.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(path)
