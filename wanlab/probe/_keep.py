"""Tensors and maps that a recorder keeps, in memory or on disk, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.files import atomic_write, header_gate

KEPT = ("tensor", "text_map")
"""Quantities that are too large to keep at every step without asking how much there may be."""
FOLDER = "kept"
_NAME = "tensor"


@dataclass(frozen=True)
class Keep:
    """What is kept of the quantities "tensor" and "text_map", and where."""

    max_bytes: int = 1 << 30
    """Of all kept tensors together."""
    folder: Path | str | None = None
    """Written here as it goes, one safetensors file a tensor; None keeps them in the CPU's memory."""
    steps: Collection[int] | None = None
    """None is all steps."""
    branches: Collection[str] | None = None
    """None is all guidance branches."""
    tokens: Collection[int | str] = ()
    """Text tokens whose maps are kept, by position, or words of the prompt; empty is all."""

    def wants(self, step: int, branch: str) -> bool:
        """Whether this step of this branch is kept."""
        return (self.steps is None or step in self.steps) and (self.branches is None or branch in self.branches)

    def num_left(self, step: int, num_steps: int) -> int:
        """Steps that are kept from `step` on."""
        return sum(self.steps is None or i in self.steps for i in range(step, num_steps))


@dataclass(frozen=True)
class Kept:
    """A tensor on disk, read when it is asked for."""

    path: Path

    def load(self) -> Tensor:
        """The tensor, on the CPU; raises WanlabError for a damaged file."""
        if _NAME not in header_gate(self.path):
            raise WanlabError(f"{self.path} holds no kept tensor", remedy="Record again")
        return load_file(self.path)[_NAME]


Value = np.ndarray | Tensor | Kept
"""A value of a trace: numbers, or a tensor that was kept."""


def as_array(value: Value) -> np.ndarray:
    """The value as numbers; bfloat16 becomes float32."""
    if isinstance(value, np.ndarray):
        return value
    tensor = value.load() if isinstance(value, Kept) else value
    return tensor.float().numpy() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.numpy()


@dataclass
class Store:
    """Keeps tensors until the budget is used up; then it says so in `stopped` and keeps no more."""

    keep: Keep
    num_bytes: int = 0
    stopped: str = ""
    _expected: dict[tuple[str, ...], int] = field(default_factory=dict)
    _written: int = 0

    def __post_init__(self) -> None:
        if self.keep.max_bytes <= 0:
            raise WanlabError(f"max_bytes = {self.keep.max_bytes} keeps nothing", remedy="Give a number above 0")
        if self.keep.folder is not None:
            folder = Path(self.keep.folder)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise WanlabError(f"{folder} is not empty", remedy="Give a new folder for each trace")

    def expect(self, what: tuple[str, ...], num_bytes: int, times: int) -> None:
        """Refuse at its first tensor what cannot fit: `times` tensors of `num_bytes` bytes of the kind `what`.

        Raises WanlabError.
        """
        if what in self._expected:
            return
        self._expected[what] = num_bytes * times
        if (total := sum(self._expected.values())) > self.keep.max_bytes:
            raise WanlabError(
                f"Keeping {times} of {'.'.join(what)} with {num_bytes:,} bytes each brings what is kept to {total:,} "
                f"bytes for one guidance branch, and the budget is {self.keep.max_bytes:,}",
                remedy="Name fewer sites, choose Keep(steps=...) or Keep(tokens=...), or raise Keep(max_bytes=...)",
            )

    def put(self, name: str, tensor: Tensor) -> Value | None:
        """Keep a copy; None where the budget is used up. `name` is for the note about that."""
        if self.stopped:
            return None
        size = tensor.numel() * tensor.element_size()
        if self.num_bytes + size > self.keep.max_bytes:
            self.stopped = (
                f"Keeping tensors ended before {name}: {self.num_bytes:,} of {self.keep.max_bytes:,} bytes were used, "
                f"and it has {size:,}"
            )
            return None
        self.num_bytes += size
        copy = tensor.detach().to("cpu", copy=True).contiguous()
        return copy if self.keep.folder is None else self._write(copy)

    def _write(self, tensor: Tensor) -> Kept:
        kept = write(Path(self.keep.folder or "."), self._written, tensor)
        self._written += 1
        return kept


def write(folder: Path, number: int, tensor: Tensor) -> Kept:
    """Write one kept tensor into a trace's folder."""
    return Kept(atomic_write(folder / FOLDER / f"{number:06d}.safetensors", save({_NAME: tensor.contiguous()})))
