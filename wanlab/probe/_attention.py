"""What attention looks at, from queries and keys in chunks of rows: entropy, mass by frames and by text, maps of words.

Cost: the scores are computed again, in float32, which is half of the attention's own FLOPs (2 of its 4 * L * L_keys * H
* D); the probabilities then go through memory about five times, where a fused kernel never writes them. On a GPU that
takes many times as long as the attention itself: look at a few sites. experiments/probes/overhead.py measures it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.sites import AttentionSite

LOOKS = ("entropy", "mass", "text_mass", "text_map")
_COPIES = 3  # of a chunk's probabilities at once: scores, probabilities, and what is summed
_FRAMES = ("self", "joint")  # roles whose keys are places in the video


@dataclass(frozen=True)
class Look:
    """What to compute. `tokens`: positions in the text of the maps, empty is all; `chunk_bytes` bounds the rows."""

    wanted: Collection[str]
    chunk_bytes: int
    tokens: tuple[int, ...] = ()

    def __call__(
        self, q: Tensor, k: Tensor, site: AttentionSite, mask: Tensor | None, branches: int
    ) -> dict[str, Tensor]:
        """Values by quantity, means over queries, float32 with the guidance branches in front.

        entropy (branches, H) in nats; mass (branches, T): on keys that are |dT| frames from the query, or (branches,
        L_keys) where keys are no frames; text_mass (branches, L_text); text_map (branches, tokens, T, H, W): the
        probability of each text token as seen from each place, mean over heads. mass, text_mass and text_map of joint
        attention are those of queries in the picture. Never holds more than `chunk_bytes` of probabilities, besides a
        float32 copy of the keys. Raises WanlabError where not even one row fits.
        """
        sums = _Sums(self, q, k, site)
        keys = k.transpose(1, 2).float()
        scale = q.shape[-1] ** -0.5
        rows = self._rows(q, k, site)
        for start in range(0, q.shape[1], rows):
            part = slice(start, min(start + rows, q.shape[1]))
            scores = (q[:, part].transpose(1, 2).float() * scale) @ keys.transpose(2, 3)
            if mask is not None:
                scores = _masked(scores, mask, part)
            sums.add(part, scores.softmax(-1))
            del scores
        return {name: _by_branch(value, branches) for name, value in sums.means().items()}

    def _rows(self, q: Tensor, k: Tensor, site: AttentionSite) -> int:
        row = _COPIES * 4 * q.shape[0] * q.shape[2] * k.shape[1]
        if row > self.chunk_bytes:
            raise WanlabError(
                f"One row of {site.name}'s attention takes {row:,} bytes, and chunk_bytes = {self.chunk_bytes:,}",
                remedy=f"Give chunk_bytes of at least {row:,}",
            )
        return self.chunk_bytes // row


class _Sums:
    """Sums over rows of one attention call, in float64; every shape starts with (B,)."""

    def __init__(self, look: Look, q: Tensor, k: Tensor, site: AttentionSite) -> None:
        self.wanted = look.wanted
        self.num_queries = q.shape[1]
        self.grid = site.grid
        self.frames = site.grid[0]
        self.area = site.grid[1] * site.grid[2]
        first, end = site.text if site.role == "joint" else (0, k.shape[1] if site.role not in _FRAMES else 0)
        self.text = range(first, end)
        self.picture = range(end, end + self.frames * self.area) if site.role in _FRAMES else range(0)
        assert site.role not in _FRAMES or len(self.picture) + len(self.text) == k.shape[1] == q.shape[1], site.name
        self.columns = self._columns(look, k.device)
        batch, heads = q.shape[0], q.shape[2]
        self.entropy = q.new_zeros(batch, heads, dtype=torch.float64)
        self.between = q.new_zeros(batch, self.frames, self.frames, dtype=torch.float64)
        self.on_text = q.new_zeros(batch, len(self.text), dtype=torch.float64)
        num_columns = len(self.columns) if self.columns is not None else 0
        self.maps = q.new_zeros(batch, q.shape[1], num_columns, dtype=torch.float32)

    def _columns(self, look: Look, device: torch.device) -> Tensor | None:
        """Keys of the text tokens whose maps are wanted; raises WanlabError for one that is not there."""
        if "text_map" not in self.wanted:
            return None
        chosen = look.tokens or tuple(range(len(self.text)))
        if wrong := [token for token in chosen if not 0 <= token < len(self.text)]:
            raise WanlabError(
                f"There is no text token {wrong[0]}; attention reads {len(self.text)}", remedy="They count from 0"
            )
        return torch.tensor(chosen, device=device) + self.text.start

    def add(self, rows: slice, p: Tensor) -> None:
        """Take the probabilities (B, H, rows, L_keys) of some queries."""
        if "entropy" in self.wanted:
            self.entropy += torch.special.entr(p).sum((2, 3))
        if self.columns is not None:
            self.maps[:, rows] = p[..., self.columns].mean(1)
        if not {"mass", "text_mass"} & set(self.wanted):
            return
        seen = p[:, :, self._in_picture(rows)]
        if self.text:
            self.on_text += seen[..., self.text.start : self.text.stop].mean(1).sum(1)
        if self.picture and seen.shape[2]:
            keys = seen[..., self.picture.start : self.picture.stop]
            by_frame = keys.unflatten(-1, (self.frames, self.area)).sum(-1).mean(1)
            first = max(rows.start, self.picture.start) - self.picture.start
            frame = torch.arange(first, first + by_frame.shape[1], device=p.device) // self.area
            self.between.index_add_(1, frame, by_frame.double())

    def _in_picture(self, rows: slice) -> slice:
        """Which of these rows are queries in the picture, counted from the first of them."""
        if not self.picture:
            return slice(0, rows.stop - rows.start)
        return slice(max(self.picture.start - rows.start, 0), max(self.picture.stop - rows.start, 0))

    def means(self) -> dict[str, Tensor]:
        """The wanted values, each (B, ...)."""
        found = {}
        places = len(self.picture) or self.num_queries
        if "entropy" in self.wanted:
            found["entropy"] = self.entropy / self.num_queries
        if "mass" in self.wanted:
            found["mass"] = (self._by_distance() if self.picture else self.on_text) / places
        if "text_mass" in self.wanted:
            found["text_mass"] = self.on_text / places
        if self.columns is not None:
            maps = self.maps[:, self.picture.start : self.picture.stop] if self.picture else self.maps
            found["text_map"] = maps.transpose(1, 2).unflatten(2, self.grid)
        return found

    def _by_distance(self) -> Tensor:
        """(B, T) from sums between frames (B, T, T)."""
        frame = torch.arange(self.frames, device=self.between.device)
        distance = (frame[:, None] - frame[None, :]).abs().flatten()
        zero = self.between.new_zeros(self.between.shape[0], self.frames)
        return zero.index_add_(1, distance, self.between.flatten(1))


def _masked(scores: Tensor, mask: Tensor, rows: slice) -> Tensor:
    """Scores with a mask (..., L or 1, L_keys), True or added, as PyTorch's attention reads it."""
    mask = mask[..., rows, :] if mask.ndim > 1 and mask.shape[-2] > 1 else mask
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()


def _by_branch(value: Tensor, branches: int) -> Tensor:
    """(B, ...) as (branches, ...), float32, mean over a branch's samples."""
    return value.unflatten(0, (branches, -1)).mean(1).float()
