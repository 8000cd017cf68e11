"""EXIF chunk of a WebP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wanlab.compat.metadata._exif import read_comment, with_comment
from wanlab.compat.metadata._limits import MAX_PARTS, damaged, whole

_HAS_EXIF, _HAS_ALPHA = 0x08, 0x10


def recognises(start: bytes) -> bool:
    """Whether a file starts as a WebP."""
    return start[:4] == b"RIFF" and start[8:12] == b"WEBP"


def read(path: Path) -> dict[str, str]:
    """EXIF's UserComment as `comment`."""
    exif = next((block for kind, block in _chunks(path, whole(path)) if kind == b"EXIF"), b"")
    return {"comment": read_comment(path, exif)} if exif else {}


def _chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    end, place = int.from_bytes(data[4:8], "little") + 8, 12
    if end > len(data):
        raise damaged(path, "it is truncated")
    for _ in range(MAX_PARTS):
        if place + 8 > end:
            return
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if place + 8 + size > end:
            raise damaged(path, "it ends inside a chunk")
        yield data[place : place + 4], data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    raise damaged(path, f"it has more than {MAX_PARTS:,} chunks")


def write(path: Path, target: Path, text: str) -> None:
    """The file with an EXIF chunk that has the text; a simple file becomes an extended one of the same picture."""
    chunks = list(_chunks(path, whole(path)))
    old = next((block for kind, block in chunks if kind == b"EXIF"), b"")
    head = next((block for kind, block in chunks if kind == b"VP8X"), None)
    if head is None:
        head = _extended(path, chunks)
    head = bytes((head[0] | _HAS_EXIF,)) + head[1:]
    kept = [(kind, block) for kind, block in chunks if kind not in (b"VP8X", b"EXIF")]
    after = [pair for pair in kept if pair[0] == b"XMP "]  # EXIF stands before XMP
    before = [pair for pair in kept if pair[0] != b"XMP "]
    order = [(b"VP8X", head), *before, (b"EXIF", with_comment(path, old, text)), *after]
    body = b"".join(kind + len(block).to_bytes(4, "little") + block + b"\0" * (len(block) % 2) for kind, block in order)
    target.write_bytes(b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body)


def _extended(path: Path, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The header chunk of an extended file, from the size inside of a simple one."""
    kind, block = chunks[0] if chunks else (b"", b"")
    if kind == b"VP8 " and block[3:6] == b"\x9d\x01\x2a" and len(block) >= 10:
        width, height = (int.from_bytes(block[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        flags = 0
    elif kind == b"VP8L" and block[:1] == b"\x2f" and len(block) >= 5:
        bits = int.from_bytes(block[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = _HAS_ALPHA if bits >> 28 & 1 else 0
    else:
        raise damaged(path, "it holds no picture")
    return bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
