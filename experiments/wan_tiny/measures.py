"""What the scores of wan_tiny share: clips as bytes, batches, the judge's shares, decibels with their interval."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from wanlab.shapes.judge import score

SEEDS = (0, 1)


def to_bytes(frames: Tensor) -> np.ndarray:
    """(B, 3, T, H, W) in [0, 1] -> (B, T, H, W, 3) uint8."""
    return rearrange((frames * 255).round().byte(), "b c t h w -> b t h w c").cpu().numpy()


def batches(texts: list[str], seeds: list[int], size: int) -> Iterator[tuple[list[str], list[int]]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size], seeds[start : start + size]


def shares(clips: np.ndarray, prompts: list[str], pool: Executor) -> dict[str, Any]:
    """The judge's score without its 400 single verdicts."""
    result = score(clips, prompts, pool=pool)
    del result["verdicts"]
    return result


def interval(name: str, values: Tensor) -> dict[str, float]:
    """Mean of clips' decibels, half-width of its 95 % interval, and the worst clip."""
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    return {
        name: round(float(values.mean()), 2),
        f"{name}_ci95": round(half, 2),
        f"{name}_worst": round(float(values.min()), 2),
    }
