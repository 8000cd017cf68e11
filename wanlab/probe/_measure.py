"""Norms, change, cosine and ratio of token tensors: reductions on the device, without a wait for it.

All of them are sums over tokens of norms over channels. Differences are taken in the tensors' dtype and their norms
accumulate in float32, so bfloat16 is never copied to float32; a step in bfloat16 costs about eleven reads or writes of
each recorded tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHEAP = ("in", "out", "change", "cosine", "residual", "ratio")
NORMS = {"in": ("token_l2", "rms"), "out": ("token_l2", "rms"), "change": ("l1", "l2")}
"""The numbers of quantities that have two."""


@dataclass
class Previous:
    """What a step leaves to the next one of the same branch."""

    out: Tensor | None = None
    """(B, L, ...), the tensor itself, held and not copied."""
    norms: Tensor | None = None
    """(B, L) of `out`."""
    absolute: Tensor | None = None
    """(branches,) sums of |out|."""
    residual: Tensor | None = None
    """(B, L) norms of out - in."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are held for the next step."""
        held = (self.out, self.norms, self.absolute, self.residual)
        return sum(t.numel() * t.element_size() for t in held if t is not None)


def token_norms(x: Tensor, order: float = 2) -> Tensor:
    """(B, L) float32: norms of tokens (B, L, ...) over all that a token has."""
    norms: Tensor = torch.linalg.vector_norm(x, order, dim=tuple(range(2, x.ndim)), dtype=torch.float32)
    return norms


class Measure:
    """The cheap quantities of one token stream at one site, for tensors that hold `branches` guidance branches."""

    def __init__(self, wanted: set[str], branches: int) -> None:
        self.wanted = wanted
        self.branches = branches

    def __call__(
        self, before: Tensor | None, after: Tensor, previous: Previous | None, seen: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], Previous]:
        """Values by quantity, (branches,) or (branches, 2), and what the next step needs; `seen` gives token norms.

        change, cosine and ratio are left out at a branch's first call, and where shapes differ from the last one's.
        """
        found: dict[str, Tensor] = {}
        left = Previous()
        norms = seen(after) if self.wanted & {"out", "change", "cosine"} else None
        if "in" in self.wanted and before is not None:
            found["in"] = self._sizes(before, seen(before))
        if "out" in self.wanted and norms is not None:
            found["out"] = self._sizes(after, norms)
        if norms is not None and self.wanted & {"change", "cosine"}:
            left.out, left.norms = after, norms
            left.absolute = self._sum(token_norms(after, 1)) if "change" in self.wanted else None
            if previous is not None and previous.out is not None and previous.out.shape == after.shape:
                found |= self._against(after, norms, previous)
        if before is not None and self.wanted & {"residual", "ratio"}:
            left.residual = token_norms(after - before)
            found |= self._residual(left.residual, previous)
        return found, left

    def _group(self, x: Tensor) -> Tensor:
        """(B, L) as (branches, tokens of all samples)."""
        return x.reshape(self.branches, -1)

    def _sum(self, x: Tensor) -> Tensor:
        return self._group(x).sum(1)

    def _sizes(self, x: Tensor, norms: Tensor) -> Tensor:
        """(branches, 2): mean norm of a token, root of the mean square of an element."""
        norms = self._group(norms)
        channels = x[0, 0].numel()
        return torch.stack([norms.mean(1), (norms.square().mean(1) / channels).sqrt()], 1)

    def _against(self, after: Tensor, norms: Tensor, previous: Previous) -> dict[str, Tensor]:
        """Relative change and cosine; the cosine from the three norms, which keeps its digits near 1."""
        assert previous.out is not None
        assert previous.norms is not None
        found = {}
        difference = after - previous.out
        moved = self._sum(token_norms(difference).square())
        then, now = self._sum(previous.norms.square()), self._sum(norms.square())
        if "change" in self.wanted and previous.absolute is not None:
            absolute = self._sum(token_norms(difference, 1))
            found["change"] = torch.stack([absolute / previous.absolute, (moved / then).sqrt()], 1)
        if "cosine" in self.wanted:
            found["cosine"] = (then + now - moved) / (2 * (then * now).sqrt())
        return found

    def _residual(self, norms: Tensor, previous: Previous | None) -> dict[str, Tensor]:
        """Mean norm of a token's residual, and MagCache's ratio: the mean over tokens of norm / norm a step before.

        Source: arXiv:2506.09045; Zehong-Ma/MagCache, MagCache4Wan2.1/magcache_generate.py, its calibration.
        """
        found = {}
        if "residual" in self.wanted:
            found["residual"] = self._group(norms).mean(1)
        then = None if previous is None else previous.residual
        if "ratio" in self.wanted and then is not None and then.shape == norms.shape:
            found["ratio"] = self._group(norms / then).mean(1)
        return found


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
