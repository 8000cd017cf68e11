"""What a cache knows between two forwards, as named tensors and back, and what it tells after the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Key = tuple[str, str, int]
"""(expert, branch, window): every such sequence of forwards has its own memory; window is -1 where there is none."""
TOGETHER = "*"
"""The branch of what all branches of an expert share: a decision that they follow."""


@dataclass
class Memory:
    """What a cache knows of one expert, branch and window."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What is reused or compared with, by the method's own names."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Counters and sums."""
    shares: dict[int, float] = field(default_factory=dict)
    """Step -> share of the blocks' work that was done, 0 to 1."""
    signals: dict[int, float] = field(default_factory=dict)
    """Step -> the number that was held against the threshold, for methods that have one."""
    skips: tuple[int, ...] | None = None
    """Blocks that the branch left out when it last ran; None before it did."""

    unkept: int = 0
    """Bytes of tensors that would be here, had not somebody known that nothing will reuse them."""

    def forget(self) -> None:
        """Drop what could be reused; what was done stays known."""
        self.tensors.clear()
        self.numbers.clear()
        self.unkept = 0

    def copy(self) -> Memory:
        """Another memory of the same tensors."""
        return replace(
            self,
            tensors=dict(self.tensors),
            numbers=dict(self.numbers),
            shares=dict(self.shares),
            signals=dict(self.signals),
        )

    def to(self, device: torch.device) -> Memory:
        """A copy with its tensors on a device."""
        found = self.copy()
        found.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return found

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors, and of those that it would have."""
        return sum(t.nbytes for t in self.tensors.values()) + self.unkept


@dataclass(frozen=True, repr=False)
class CacheReport:
    """What a cache did in a run."""

    method: str
    hit_map: dict[str, dict[int, bool]]
    """"expert/branch/window" -> step -> whether all of the blocks' work was done."""
    shares: dict[str, dict[int, float]]
    """The same -> the share of that work that was done, 0 to 1; what a signal costs beside the blocks is not in it."""
    signals: dict[str, dict[int, float]]
    """The same -> what was held against the threshold, for methods that have one."""
    computed: int
    """Forwards in which everything was computed."""
    reused: int
    """Forwards in which something was reused."""
    state_bytes: int
    """Bytes that were held at the most."""
    ideal_speedup: float
    """Forwards over the sum of shares: what reuse that costs nothing would give."""

    def __repr__(self) -> str:
        return (
            f"CacheReport({self.method}, {self.reused} of {self.computed + self.reused} forwards reused something, "
            f"ideal speed-up {self.ideal_speedup:.2f}x, holds {self.state_bytes:,} bytes)"
        )


def pack(memories: Mapping[Key, Memory]) -> dict[str, Tensor]:
    """Memories as named tensors."""
    found: dict[str, Tensor] = {}
    for key, memory in memories.items():
        path = path_of(key)
        if memory.skips is not None:
            found[f"skips/{path}"] = torch.tensor(memory.skips, dtype=torch.int64)
        if memory.unkept:
            found[f"unkept/{path}"] = torch.tensor(memory.unkept)
        found |= {f"tensors/{path}/{name}": value for name, value in memory.tensors.items()}
        found |= {f"numbers/{path}/{name}": _float64(value) for name, value in memory.numbers.items()}
        for what in ("shares", "signals"):
            if rows := list(getattr(memory, what).items()):
                found[f"{what}/{path}"] = _float64(rows)
    return found


def unpack(tensors: Mapping[str, Tensor]) -> dict[Key, Memory]:
    """The reverse of `pack`; other names are left out."""
    memories: dict[Key, Memory] = {}
    for path, value in tensors.items():
        if "/" not in path:
            continue
        what, expert, branch, window, *rest = path.split("/")
        memory = memories.setdefault((expert, branch, int(window)), Memory())
        if what == "tensors":
            memory.tensors["/".join(rest)] = value
        elif what == "numbers":
            memory.numbers["/".join(rest)] = float(value)
        elif what == "skips":
            memory.skips = tuple(value.tolist())
        elif what == "unkept":
            memory.unkept = int(value)
        else:
            getattr(memory, what).update({int(step): number for step, number in value.tolist()})
    return memories


def to_bytes(data: Any) -> Tensor:
    """JSON data as a tensor of bytes."""
    return torch.tensor(list(json.dumps(data, sort_keys=True).encode()), dtype=torch.uint8)


def from_bytes(tensor: Tensor) -> Any:
    """The reverse of `to_bytes`."""
    return json.loads(bytes(tensor.tolist()))


def path_of(key: Key) -> str:
    """A memory's key as text: "transformer/cond/-1"."""
    return "/".join(map(str, key))


def _float64(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
