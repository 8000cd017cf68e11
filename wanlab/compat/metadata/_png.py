"""Text chunks of a PNG."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from wanlab.compat.metadata._limits import MAX_PARTS, checked, damaged, inflated

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYS = ("comment", "wanlab")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def recognises(start: bytes) -> bool:
    """Whether a file starts as a PNG."""
    return start.startswith(_SIGNATURE)


def read(path: Path) -> dict[str, str]:
    """The texts `comment` and `wanlab`."""
    found: dict[str, str] = {}
    with path.open("rb") as file:
        for kind, start, size in _chunks(path):
            if kind not in _TEXTS:
                continue
            file.seek(start)
            head = file.read(min(size, 80)).split(b"\0", 1)[0]
            if (key := head.decode("latin-1")) in _KEYS:
                file.seek(start)
                found[key] = _text(path, kind, file.read(checked(path, size)))
    return found


def _chunks(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """(kind, offset of the data, size) up to IEND."""
    total = path.stat().st_size
    with path.open("rb") as file:
        place = len(_SIGNATURE)
        for _ in range(MAX_PARTS):
            file.seek(place)
            head = file.read(8)
            size = int.from_bytes(head[:4], "big")
            if len(head) < 8 or place + 12 + size > total:
                raise damaged(path, "it ends inside a chunk")
            yield head[4:], place + 8, size
            if head[4:] == b"IEND":
                return
            place += 12 + size
    raise damaged(path, f"it has more than {MAX_PARTS:,} chunks")


def _text(path: Path, kind: bytes, data: bytes) -> str:
    text = data.partition(b"\0")[2]
    if kind == b"tEXt":
        return text.decode("latin-1")
    if kind == b"zTXt":
        return inflated(path, text[1:]).decode("latin-1")
    is_compressed, rest = text[:1] == b"\1", text[2:]
    value = rest.partition(b"\0")[2].partition(b"\0")[2]  # after the language and the translated key
    return (inflated(path, value) if is_compressed else value).decode("utf-8", "replace")


def write(path: Path, target: Path, text: str) -> None:
    """The file with `comment` before its pixels, in place of any other `comment`."""
    data = b"comment\0\0\0\0\0" + text.encode()
    chunk = b"iTXt" + data
    comment = len(data).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    is_written = False
    with path.open("rb") as file, target.open("wb") as out:
        out.write(_SIGNATURE)
        for kind, start, size in _chunks(path):
            file.seek(start - 8)
            if kind in _TEXTS and file.read(16)[8:].startswith(b"comment\0"):
                continue
            if kind == b"IDAT" and not is_written:
                out.write(comment)
                is_written = True
            file.seek(start - 8)
            out.write(file.read(size + 12))
    if not is_written:
        raise damaged(path, "it holds no picture")
