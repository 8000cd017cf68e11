"""Sampler states as safetensors files, so that a run resumes bit-identically."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load, save

from wanlab.errors import WanlabError
from wanlab.files import atomic_write, header_gate
from wanlab.sampling._state import SamplerState

SCHEMA = 3
_READABLE = ("1", "2", "3")  # 2 may hold what guidance remembers, 3 what a cache does too
_KEY = "wanlab sampler state"  # the only key of the metadata: safetensors writes several in no fixed order


def save_state(state: SamplerState, path: str | Path) -> None:
    """Write `state` to `path`, at once or not at all; tensors keep their dtype and every bit."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.to_tensors().items()}
    atomic_write(Path(path), save(tensors, metadata={_KEY: str(SCHEMA)}))


def load_state(path: str | Path) -> SamplerState:
    """Read what `save_state` wrote, on the CPU; raises WanlabError when the file is not that."""
    path = Path(path)
    if header_gate(path).get("__metadata__", {}).get(_KEY) not in _READABLE:
        raise WanlabError(
            f"{path.name} is no sampler state of schema {', '.join(_READABLE[:-1])} or {_READABLE[-1]}",
            remedy="Save one with wanlab.sampling.save_state.",
        )
    try:
        # copied, since the file has tensors wherever they lie, and kernels of the CPU may round differently at odd
        # addresses
        return SamplerState.from_tensors({name: x.clone() for name, x in load(path.read_bytes()).items()})
    except KeyError as missing:
        raise WanlabError(f"{path.name} lacks the tensor {missing}", remedy="Save the state again.") from missing
