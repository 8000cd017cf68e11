"""The gate that every weight file passes before anything reads it: its header, in pure Python.

Refuses what the reader of safetensors refuses, and what it lets through: duplicate keys, huge headers, and tensors
that are not stored in header order (readers that ignore offsets would swap them silently).
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from wanlab.errors import WanlabError, shorten

_MAX_HEADER = 16 << 20  # bytes; the largest known checkpoints need 0.5 MB
_MAX_TENSORS = 50_000
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_DOWNLOAD = "Download it again."
_CONVERT = "Convert it to safetensors: pickles can run code, so they are not read."


def header_gate(path: Path | str) -> dict[str, Any]:
    """The header of a sound safetensors file: name -> dtype, shape, data_offsets (and `__metadata__` if it has one).

    Takes under 0.1 s and reads no tensor. Raises WanlabError with the file, the reason and the remedy.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            start = file.read(512)
            length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
            _check_start(path, start, size, length)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})", "Check the path.") from None
    header = _parse(path, raw)
    _check_tensors(path, header, size - 8 - length)
    return header


def _check_start(path: Path, start: bytes, size: int, length: int) -> None:
    if size == 0:
        raise _refusal(path, "is empty", _DOWNLOAD)
    if size >= 10 and length <= size - 8 and start[8:9] == b"{":
        if length > _MAX_HEADER:
            raise _refusal(path, f"has a header of {length:,} bytes, at most {_MAX_HEADER:,} are read", _DOWNLOAD)
        return
    reason, remedy = _foreign(start)
    if reason:
        raise _refusal(path, reason, remedy)
    if size >= 9 and start[8:9] == b"{" and length <= _MAX_HEADER:
        raise _refusal(path, f"is truncated: {size:,} bytes end inside a header of {length:,}", _DOWNLOAD)
    raise _refusal(path, "is not a safetensors file, or is damaged", _DOWNLOAD)


def _foreign(start: bytes) -> tuple[str, str]:
    """What a file is that is not safetensors, from its first bytes: (reason, remedy), empty if unknown."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is an HTML page, not weights (a login or error page was saved)", "Download it again, signed in."
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights", "Fetch the file itself: git lfs pull"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive, as torch.save writes (a pickle)", _CONVERT
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a pickle", _CONVERT
    if start.startswith(b"GGUF"):
        return "is a GGUF file", "Give the safetensors form of these weights."
    if text.startswith((b"{", b"[")) and b"\0" not in start[:8]:  # a length may begin with the byte of a brace
        return "is a JSON text, not weights", _DOWNLOAD
    return "", ""


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if raw.count(b'"data_offsets"') > _MAX_TENSORS:
        raise _refusal(path, f"has a header of more than {_MAX_TENSORS:,} tensors", _DOWNLOAD)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_unique)
    except (ValueError, RecursionError) as error:
        why = error.problem if isinstance(error, WanlabError) else "it is not JSON"
        raise _refusal(path, f"has a damaged header: {why}", _DOWNLOAD) from None
    if not isinstance(header, dict):
        raise _refusal(path, "has a damaged header: it is not a table", _DOWNLOAD)
    return header


def _unique(pairs: Any) -> dict[str, Any]:
    table = dict(pairs) if isinstance(pairs, list) else {}
    if len(table) != len(pairs):
        raise WanlabError("a key is given twice" if isinstance(pairs, list) else f"{pairs} is not a number")
    return table


def _check_tensors(path: Path, header: dict[str, Any], size: int) -> None:
    """Every entry is well formed and the tensors fill the file in header order, without gaps."""
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
                raise _refusal(path, "has damaged metadata", _DOWNLOAD)
            continue
        begin, stop, wanted = _span(path, name, entry)
        if begin != end:
            what = "overlaps another tensor" if begin < end else "leaves a gap, or is not stored in header order"
            raise _refusal(
                path, f"is unsafe: {shorten(name, 80)} {what}", "Save it again with safetensors.torch.save_file."
            )
        if stop - begin != wanted:
            raise _refusal(
                path, f"is damaged: {shorten(name, 80)} has {stop - begin:,} bytes, not {wanted:,}", _DOWNLOAD
            )
        end = stop
    if end > size:
        raise _refusal(path, f"is truncated: {size:,} of {end:,} bytes of tensors are there", _DOWNLOAD)
    if end < size:
        raise _refusal(path, f"has {size - end:,} bytes after its last tensor", _DOWNLOAD)


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, int]:
    """(begin, end, bytes that dtype and shape need) of one entry."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(path, name, "its entry lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        _damaged(path, name, f"unknown dtype {shorten(dtype, 40)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        _damaged(path, name, "its shape or offsets are not counts")
    bits = math.prod(shape) * _BITS[dtype]
    if bits >= 2**63:
        _damaged(path, name, "its shape is impossible")
    if bits % 8:
        _damaged(path, name, "it ends inside a byte")
    return offsets[0], offsets[1], bits // 8


def _counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 64 and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _damaged(path: Path, name: str, why: str) -> NoReturn:
    raise _refusal(path, f"is damaged: {shorten(name, 80)}: {why}", _DOWNLOAD)


def _refusal(path: Path, reason: str, remedy: str) -> WanlabError:
    return WanlabError(f"The weight file {path} {reason}", remedy=remedy)
