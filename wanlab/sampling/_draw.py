"""Stateless random draws: equal arguments, equal numbers, on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def draw(seed: int, purpose: str, window: int | None, step: int | None, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 numbers of `shape` on the CPU, decided by the first four arguments alone.

    For every draw but the initial noise, which is the CPU generator of the seed itself, as diffusers draws it.
    `purpose` names who asks ("sampler", "overlap", ...); window and step are None where there is none.
    """
    key = json.dumps([int(seed), purpose, window, step])
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1  # a generator takes 63 bits anywhere
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(number))
