"""The gate for GGUF files: header and tensor list in pure Python, every count and offset checked before it is used.

Source of the format: ggml, docs/gguf.md (versions 2 and 3); of the 5-dimensional shapes: the metadata
`comfy.gguf.orig_shape.<tensor>` that ComfyUI-GGUF writes.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

from wanlab.errors import WanlabError, shorten

MAGIC = b"GGUF"
_MAX_TENSORS = 50_000
_MAX_KEYS = 10_000
_MAX_HEADER = 64 << 20  # bytes; a tokenizer of 256,000 words inside needs 10 MB
_SHAPE = "comfy.gguf.orig_shape."
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
TYPES = {  # number of the type: name, elements of a block, bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
}
BLOCKS = {name: (elements, size) for name, elements, size in TYPES.values()}
"""Name of a type -> (elements, bytes) of a block."""

Table = dict[str, tuple[str, tuple[int, ...], int, int]]


def read_gguf(path: Path) -> tuple[Table, dict[str, str]]:
    """({tensor: (type, shape as torch orders it, first byte, end)}, text metadata) of a sound GGUF file.

    Raises WanlabError with the file, the reason and the remedy.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        version, num_tensors, num_keys = cursor.take("4xIQQ")
        if version not in (2, 3):
            _refuse(path, f"is GGUF of version {version}, and 2 and 3 are read", "Convert it with a current tool")
        if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
            _refuse(path, f"claims {num_tensors:,} tensors and {num_keys:,} settings")
        settings = _settings(cursor, num_keys)
        raw = [_tensor(cursor) for _ in range(num_tensors)]
        align = settings.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1 or align & (align - 1) or align > 1 << 20:
            _refuse(path, f"has an alignment of {shorten(align, 40)}")
        base = -(-cursor.place // align) * align
        table = _check(path, raw, settings, base, align, len(data))
    return table, {key: value for key, value in settings.items() if isinstance(value, str)}


class _Cursor:
    """Reads numbers and words one after another, and refuses to leave the file."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self.data, self.place = path, data, 0
        self.end = min(len(data), _MAX_HEADER)

    def skip(self, size: int) -> int:
        """Move on; returns where it was."""
        place = self.place
        if size > self.end - place:
            if self.end < len(self.data):
                _refuse(self.path, f"has a header of more than {_MAX_HEADER:,} bytes")
            _refuse(self.path, "is truncated inside its header")
        self.place += size
        return place

    def take(self, layout: str) -> Any:
        """Numbers by struct's letters, little-endian without padding; one alone is not a tuple."""
        layout = f"<{layout}"
        values = struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))
        return values if len(values) > 1 else values[0]

    def text(self, limit: int = 1 << 20) -> str:
        size = self.take("Q")
        if size > limit:
            _refuse(self.path, f"has a text of {size:,} bytes in its header")
        place = self.skip(size)
        return bytes(self.data[place : place + size]).decode("utf-8", "replace")


def _settings(cursor: _Cursor, count: int) -> dict[str, Any]:
    """Numbers and texts of the header, and its short arrays of numbers; arrays of texts are passed over."""
    found: dict[str, Any] = {}
    for _ in range(count):
        key, kind = cursor.text(), cursor.take("I")
        if key in found:
            _refuse(cursor.path, f"gives the setting {shorten(key, 80)} twice")
        found[key] = _value(cursor, kind)
    return found


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.take(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        _refuse(cursor.path, f"has a setting of the unknown type {kind}")
    inner, count = cursor.take("IQ")
    if inner in _SCALARS:
        size = struct.calcsize("<" + _SCALARS[inner])
        place = cursor.skip(count * size)
        return struct.unpack_from(f"<{count}{_SCALARS[inner]}", cursor.data, place) if count <= 16 else None
    if inner != _STRING:
        _refuse(cursor.path, f"has an array of the type {inner}")
    for _ in range(count):
        cursor.skip(cursor.take("Q"))
    return None


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, type, offset) of one entry of the list."""
    name, num_dims = cursor.text(), cursor.take("I")
    if num_dims > 8:
        _refuse(cursor.path, f"is damaged: {shorten(name, 80)} has {num_dims} dimensions")
    dims = tuple(cursor.take("Q") for _ in range(num_dims))
    kind, offset = cursor.take("IQ")
    return name, dims[::-1], kind, offset  # GGML counts from the innermost dimension


def _check(path: Path, raw: list[Any], settings: dict[str, Any], base: int, align: int, size: int) -> Table:
    """Every tensor is of a known type, whole, aligned, inside the file, and none lies over another."""
    table: Table = {}
    for name, stored, kind, offset in raw:
        if name in table:
            _refuse(path, f"lists {shorten(name, 80)} twice")
        if kind not in TYPES:
            remedy = "Give a file of a type that is read: " + ", ".join(sorted(BLOCKS))
            _refuse(path, f"stores {shorten(name, 80)} in the GGML type {kind}, which is not read", remedy)
        word, elements, bytes_ = TYPES[kind]
        shape = _true_shape(path, name, stored, settings)
        count = math.prod(stored)
        if count >= 2**60 or (elements > 1 and (not stored or stored[-1] % elements)) or offset % align:
            _refuse(path, f"is damaged: {shorten(name, 80)} has an impossible shape or offset")
        table[name] = (word, shape, base + offset, base + offset + count // elements * bytes_)
    end, last = base, ""
    for name, entry in sorted(table.items(), key=lambda item: item[1][2]):
        if entry[2] < end:
            _refuse(path, f"is unsafe: {shorten(name, 80)} overlaps {shorten(last, 80)}")
        end, last = entry[3], name
    if end > size:
        _refuse(path, f"is truncated: {max(0, size - base):,} of {end - base:,} bytes of tensors are there")
    return table


def _true_shape(path: Path, name: str, stored: tuple[int, ...], settings: dict[str, Any]) -> tuple[int, ...]:
    """The tensor's shape: that of the list, or what the settings say of one with more than four dimensions."""
    given = settings.get(_SHAPE + name)
    if given is None:
        return stored
    if not isinstance(given, tuple) or math.prod(given) != math.prod(stored):
        _refuse(path, f"is damaged: the original shape of {shorten(name, 80)} does not fit its size")
    return given


def _refuse(path: Path, reason: str, remedy: str = "Download it again") -> NoReturn:
    raise WanlabError(f"The weight file {path} {reason}", remedy=remedy)
