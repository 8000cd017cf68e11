"""The tensors that a weight file lists, whatever its format. Nothing but the header is read; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError
from wanlab.files import header_gate
from wanlab.weights._gguf import MAGIC, read_gguf

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its number format (safetensors' word, or GGML's, such as Q4_K), shape and place."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Of its first byte in the file; of a pickle's tensors 0."""
    end: int


@dataclass(frozen=True)
class Header:
    """What a weight file holds, in the file's order."""

    path: Path
    kind: str
    """safetensors, gguf or pickle."""
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Any] | None = None
    """The values, of a pickle only: it cannot be read in parts."""


def read_header(path: Path | str, allow_pickle: bool = False) -> Header:
    """The header of a safetensors or GGUF file, and with `allow_pickle` of a file of torch.save.

    Raises WanlabError for a file that does not pass the gate: named, with the reason and the remedy.
    """
    path = Path(path)
    start = _start(path)
    if start == MAGIC:
        entries, metadata = read_gguf(path)
        return Header(path, "gguf", {name: Entry(*entry) for name, entry in entries.items()}, metadata)
    if allow_pickle and path.suffix in PICKLES:
        return _read_pickle(path)
    table = header_gate(path)
    with open(path, "rb") as file:
        base = 8 + int.from_bytes(file.read(8), "little")
    entries = {
        name: Entry(e["dtype"], tuple(e["shape"]), base + e["data_offsets"][0], base + e["data_offsets"][1])
        for name, e in table.items()
        if name != "__metadata__"
    }
    return Header(path, "safetensors", entries, table.get("__metadata__", {}))


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError as error:
        raise WanlabError(
            f"The weight file {path} cannot be read ({error.strerror})", remedy="Check the path"
        ) from None


def _read_pickle(path: Path) -> Header:
    """Tensors of a file that torch.save wrote, by torch's reader that runs no code from it; mapped, not read."""
    import torch

    from wanlab.weights._dtypes import WORDS

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # noqa: BLE001  torch raises what the pickle machine meets: many kinds, no common base
        raise WanlabError(
            f"The weight file {path} is a pickle that torch refuses: {str(error).strip().splitlines()[0][:200]}",
            remedy="Do not use this file; download it again, or its safetensors form",
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()) or not state:
        raise WanlabError(f"The weight file {path} holds no table of tensors", remedy="Give the weights alone")
    entries = {
        name: Entry(WORDS.get(t.dtype, str(t.dtype)), tuple(t.shape), 0, t.numel() * t.element_size())
        for name, t in state.items()
    }
    return Header(path, "pickle", entries, {}, state)


def _is_zip(path: Path) -> bool:
    return _start(path) == b"PK\x03\x04"
