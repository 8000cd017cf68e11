"""How many bytes a cache will hold, from the model's configuration alone."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from wanlab.caches._run import Run


def sequences(run: Run) -> int:
    """Sequences of forwards with a memory of their own: one for each branch of each expert, batched or not."""
    found = {(expert, branch) for _, expert, branch in run.forwards}
    return sum(branch.count("+") + 1 for _, branch in found)


def stream_bytes(run: Run, names: Iterable[str] | None = None) -> int:
    """Bytes of the token tensors of one sample and branch, by default of those that are read after the blocks."""
    tokens = run.model.workload(run.spec.resolve(run.model)).tokens
    return sum(prod(tokens[name]) for name in names or run.model.outputs) * run.model.dtype.itemsize


def residual_bytes(run: Run) -> int:
    """Bytes of one residual for every branch of every expert."""
    return sequences(run) * stream_bytes(run)


def latent_bytes(run: Run, itemsize: int = 4) -> int:
    """Bytes of the latents of one sample, float32 unless said otherwise."""
    return prod(run.model.latent_shape(run.spec.resolve(run.model))) * itemsize
