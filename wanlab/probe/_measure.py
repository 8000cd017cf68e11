"""Norms, change, cosine and ratio of token tensors: reductions on the device, without a wait for it.

All of them are sums over tokens of norms over channels, which stay on the device until a trace is read; what is left to
do with them is done on the CPU, in float64. Differences are taken in the tensors' dtype and their norms accumulate in
float32, so bfloat16 is never copied to float32: a call reads or writes each recorded tensor about eleven times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHEAP = ("in", "out", "change", "cosine", "residual", "ratio")
NORMS = {"in": ("token_l2", "rms"), "out": ("token_l2", "rms"), "change": ("l1", "l2")}
"""The numbers of quantities that have two."""


@dataclass
class Previous:
    """What a call leaves to the next one of the same branch."""

    out: Tensor | None = None
    """(B, L, ...), the tensor itself, held and not copied."""
    norm: Tensor | None = None
    """(branches,) norms of `out`."""
    absolute: Tensor | None = None
    """(branches,) sums of |out|."""
    residual: Tensor | None = None
    """(B, L) norms of out - in."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are held for the next call."""
        held = (self.out, self.norm, self.absolute, self.residual)
        return sum(t.numel() * t.element_size() for t in held if t is not None)


def token_norms(x: Tensor) -> Tensor:
    """(B, L) float32: norms of tokens (B, L, ...) over all that a token has."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(2, x.ndim)), dtype=torch.float32)
    return norms


def token_sums(x: Tensor) -> Tensor:
    """(B, L) float32: sums of absolute values of tokens (B, L, ...)."""
    inner = tuple(range(2, x.ndim))
    if not x.is_cuda:  # vector_norm takes ten times as long on the CPU, and there alone saves nothing
        return x.abs().sum(inner, dtype=torch.float32)
    sums: Tensor = torch.linalg.vector_norm(x, 1, dim=inner, dtype=torch.float32)
    return sums


Sums = dict[str, Tensor]
"""Sums of one call by name, each (branches,) on the device."""


@dataclass(frozen=True)
class Finish:
    """Makes quantities of a call's sums, once they are on the CPU."""

    wanted: set[str]
    names: tuple[str, ...]
    tokens: int
    """Of a branch, in all its samples."""
    channels: int

    def __call__(self, stacked: np.ndarray) -> dict[str, np.ndarray]:
        """Quantities, (branches,) or (branches, 2), of sums (names, branches)."""
        sums = dict(zip(self.names, stacked.astype(np.float64), strict=True))
        found: dict[str, np.ndarray] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for side in ("in", "out"):
                if f"{side} tokens" in sums:
                    rms = sums[f"{side} norm"] / (self.tokens * self.channels) ** 0.5
                    found[side] = np.stack([sums[f"{side} tokens"] / self.tokens, rms], 1)
            for name in ("residual", "ratio"):
                if name in sums:
                    found[name] = sums[name] / self.tokens
            if "moved" in sums:
                found |= self._against(sums)
        return {name: value.astype(np.float32) for name, value in found.items()}

    def _against(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Relative change and cosine; the cosine from the three norms, which keeps its digits near 1."""
        found = {}
        moved, then, now = sums["moved"], sums["then norm"], sums["out norm"]
        if "change" in self.wanted:
            found["change"] = np.stack([sums["moved absolute"] / sums["then absolute"], moved / then], 1)
        if "cosine" in self.wanted:
            found["cosine"] = (then**2 + now**2 - moved**2) / (2 * then * now)
        return found


@dataclass(frozen=True)
class Measure:
    """The cheap quantities of one token stream at one site, for tensors that hold `branches` guidance branches."""

    wanted: set[str]
    branches: int

    def __call__(
        self, before: Tensor | None, after: Tensor, previous: Previous | None, seen: Callable[[Tensor], Tensor]
    ) -> tuple[Sums, Previous]:
        """The call's sums, and what the next call needs; `seen` gives token norms. `finish` makes quantities of sums.

        change, cosine and ratio have no sums at a branch's first call, and where shapes differ from the last one's.
        """
        sums: Sums = {}
        left, previous = Previous(), previous or Previous()
        if "in" in self.wanted and before is not None:
            self._sizes("in", sums, seen(before))
        if self.wanted & {"out", "change", "cosine"}:
            self._sizes("out", sums, seen(after))
        if self.wanted & {"change", "cosine"}:
            left.out, left.norm = after, sums["out norm"]
            left.absolute = self._sum(token_sums(after)) if "change" in self.wanted else None
            if previous.out is not None and previous.out.shape == after.shape:
                self._moved(sums, after, previous)
        if before is not None and self.wanted & {"residual", "ratio"}:
            left.residual = token_norms(after - before)
            self._residual(sums, left.residual, previous.residual)
        return sums, left

    def finish(self, sums: Sums, after: Tensor) -> Finish:
        """What makes quantities of these sums, without holding them."""
        tokens = after.shape[0] * after.shape[1] // self.branches
        return Finish(self.wanted, tuple(sums), tokens, after[0, 0].numel())

    def _group(self, x: Tensor) -> Tensor:
        """(B, L) as (branches, tokens of all samples)."""
        return x.reshape(self.branches, -1)

    def _sum(self, x: Tensor) -> Tensor:
        return self._group(x).sum(1)

    def _norm(self, norms: Tensor) -> Tensor:
        """Of whole tensors, from their tokens' norms."""
        whole: Tensor = torch.linalg.vector_norm(self._group(norms), dim=1)
        return whole

    def _sizes(self, side: str, sums: Sums, norms: Tensor) -> None:
        if side in self.wanted:
            sums[f"{side} tokens"] = self._sum(norms)
        sums[f"{side} norm"] = self._norm(norms)

    def _moved(self, sums: Sums, after: Tensor, previous: Previous) -> None:
        assert previous.out is not None
        assert previous.norm is not None
        difference = after - previous.out
        sums |= {"moved": self._norm(token_norms(difference)), "then norm": previous.norm}
        if previous.absolute is not None:
            sums |= {"moved absolute": self._sum(token_sums(difference)), "then absolute": previous.absolute}

    def _residual(self, sums: Sums, norms: Tensor, previous: Tensor | None) -> None:
        """Mean norm of a token's residual, and MagCache's ratio: the mean over tokens of norm / norm a call before.

        Source: arXiv:2506.09045; Zehong-Ma/MagCache, MagCache4Wan2.1/magcache_generate.py, its calibration.
        """
        if "residual" in self.wanted:
            sums["residual"] = self._sum(norms)
        if "ratio" in self.wanted and previous is not None and previous.shape == norms.shape:
            sums["ratio"] = self._sum(norms / previous)


class Norms:
    """Token norms of each stream's last tensor, since a block's output is the next one's input."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, stream: str, x: Tensor) -> Tensor:
        last = self._last.get(stream)
        if last is None or last[0] is not x:
            last = self._last[stream] = (x, token_norms(x))
        return last[1]

    def forget(self) -> None:
        """Let the tensors go."""
        self._last.clear()


def labels(quantity: str, shape: tuple[int, ...], role: str, tokens: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
    """Axes of one value of a quantity, in order: name -> labels."""
    if quantity in NORMS:
        return {"norm": NORMS[quantity]}
    axes = {
        "entropy": ("head",),
        "mass": ("distance",) if role in ("self", "joint") else ("token",),
        "text_mass": ("token",),
        "text_map": ("token", "frame", "row", "column"),
        "tensor": ("sample", "position", "channel") if len(shape) == 3 else ("sample", "position", "head", "channel"),
    }.get(quantity, ())
    found: dict[str, tuple[Any, ...]] = {axis: tuple(range(n)) for axis, n in zip(axes, shape, strict=True)}
    if quantity == "text_map" and tokens:
        found["token"] = tokens
    return found
