"""The comment of an mp4 or mov: item `\u00a9cmt` of the iTunes list in moov/udta/meta.

Boxes are read one head at a time, so a hostile size costs nothing. Writing moves nothing but the boxes after a larger
index, whose offsets are corrected; pictures and sound are copied as they are.
Source of the layout: ISO/IEC 14496-12 and Apple's QuickTime File Format.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wanlab.compat.metadata._limits import MAX_INDEX, MAX_PARTS, checked, damaged
from wanlab.errors import WanlabError

_COMMENT = b"\xa9cmt"
_HANDLER = b"\0\0\0\x21hdlr" + bytes(8) + b"mdirappl" + bytes(9)
_FULL = 4  # bytes of version and flags
Box = tuple[bytes, int, int]
"""Kind, start of the content, end."""


def recognises(start: bytes) -> bool:
    """Whether a file starts as an mp4 or mov."""
    return start[4:8] in (b"ftyp", b"moov", b"wide") or (start[4:8] in (b"free", b"mdat", b"skip") and start[0] == 0)


def read(path: Path) -> dict[str, str]:
    """The comment; QuickTime's own way of writing it counts too."""
    moov = _index(path)[0]
    udta = _content(path, moov, b"udta")
    if udta is None:
        return {}
    if (items := _list(path, udta)) is not None and (item := _content(path, items, _COMMENT)) is not None:
        data = _content(path, item, b"data") or b""
        checked(path, len(data))
        return {"comment": data[8:].decode("utf-8", "replace")}
    if (plain := _content(path, udta, _COMMENT)) is not None:  # size, language, text
        size = checked(path, int.from_bytes(plain[:2], "big"))
        return {"comment": plain[4 : 4 + size].decode("utf-8", "replace")}
    return {}


def _index(path: Path) -> tuple[bytes, int, int]:
    """The content of moov, and where the whole box starts and ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        for _ in range(MAX_PARTS):
            if place >= size:
                break
            file.seek(place)
            kind, start, end = _head(path, file.read(16), place, size)
            if kind == b"moov":
                if end - start > MAX_INDEX:
                    raise damaged(path, f"its index is larger than {MAX_INDEX >> 20} MB")
                file.seek(start)
                return file.read(end - start), place, end
            if kind == b"moof":
                raise damaged(path, "it is in fragments before its index")
            place = end
    raise damaged(path, "it has no index (moov): it is truncated or was never finished")


def _head(path: Path, head: bytes, place: int, limit: int) -> Box:
    """The box whose first 16 bytes are `head`; a size of 0 means to the end."""
    size, kind, length = int.from_bytes(head[:4], "big"), head[4:8], 8
    if size == 1:
        size, length = int.from_bytes(head[8:16], "big"), 16
    end = limit if size == 0 else place + size
    if len(kind) < 4 or end > limit or end < place + length:
        raise damaged(path, "it ends inside a box")
    return kind, place + length, end


def _boxes(path: Path, data: bytes) -> Iterator[Box]:
    place = 0
    for _ in range(MAX_PARTS):
        if place + 8 > len(data):  # QuickTime ends udta with four zero bytes
            return
        box = _head(path, data[place : place + 16], place, len(data))
        yield box
        place = box[2]
    raise damaged(path, f"it has more than {MAX_PARTS:,} boxes")


def _content(path: Path, data: bytes, wanted: bytes) -> bytes | None:
    """The content of the first box of a kind."""
    return next((data[start:end] for kind, start, end in _boxes(path, data) if kind == wanted), None)


def _list(path: Path, udta: bytes) -> bytes | None:
    """The iTunes list in a udta; None if it has none."""
    meta = _content(path, udta, b"meta")
    return None if meta is None else _content(path, meta[_version(meta) :], b"ilst")


def _version(meta: bytes) -> int:
    """Bytes before the first box: an ISO meta has a version, QuickTime's has not."""
    return 0 if meta[4:8] == b"hdlr" else _FULL


def write(path: Path, target: Path, text: str) -> None:
    """The file with another comment in its index."""
    moov, start, end = _index(path)
    content = _with_comment(path, moov, text)
    grown = len(content) + 8 - (end - start)
    content = _moved(path, content, end, grown)
    with path.open("rb") as file, target.open("wb") as out:
        _copy(file, out, start)
        out.write(_box(b"moov", content))
        file.seek(end)
        shutil.copyfileobj(file, out, 1 << 20)


def _copy(file: BinaryIO, out: BinaryIO, count: int) -> None:
    while count and (piece := file.read(min(count, 1 << 20))):
        out.write(piece)
        count -= len(piece)


def _box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def _with_comment(path: Path, moov: bytes, text: str) -> bytes:
    """The content of moov with the item; what is missing on the way to it is made."""
    item = _box(_COMMENT, _box(b"data", b"\0\0\0\1\0\0\0\0" + text.encode()))
    udta = _content(path, moov, b"udta") or b""
    meta = _content(path, udta, b"meta")
    lead, inner = (bytes(_FULL), _HANDLER) if meta is None else (meta[: _version(meta)], meta[_version(meta) :])
    items = _replaced(path, _content(path, inner, b"ilst") or b"", _COMMENT, item)
    inner = _replaced(path, inner, b"ilst", _box(b"ilst", items))
    udta = _without(path, udta, _COMMENT)  # QuickTime's own comment would contradict it
    return _replaced(path, moov, b"udta", _box(b"udta", _replaced(path, udta, b"meta", _box(b"meta", lead + inner))))


def _replaced(path: Path, data: bytes, kind: bytes, box: bytes) -> bytes:
    """`data` with its boxes of a kind replaced by one, which comes last."""
    return _without(path, data, kind) + box


def _without(path: Path, data: bytes, kind: bytes) -> bytes:
    pieces, place = [], 0
    for found, _, end in _boxes(path, data):
        if found != kind:
            pieces.append(data[place:end])
        place = end
    return b"".join(pieces)


def _moved(path: Path, moov: bytes, end: int, grown: int) -> bytes:
    """The index with the offsets of what lies behind it raised. Raises WanlabError where they do not fit."""
    if any(kind == b"mvex" for kind, _, _ in _boxes(path, moov)):
        raise WanlabError(f"{path} is in fragments, which cannot be rewritten", remedy="Write a sidecar .json.")
    pieces = bytearray(moov)
    for place, count, width in _tables(path, moov, 0, ()):
        for i in range(count):
            at = place + i * width
            offset = int.from_bytes(moov[at : at + width], "big")
            if offset >= end:
                if offset + grown >= 1 << (8 * width):
                    raise WanlabError(f"{path} is too large for its offsets", remedy="Write a sidecar .json.")
                pieces[at : at + width] = (offset + grown).to_bytes(width, "big")
    return bytes(pieces)


_ROAD = (b"trak", b"mdia", b"minf", b"stbl")


def _tables(path: Path, data: bytes, base: int, road: tuple[bytes, ...]) -> Iterator[tuple[int, int, int]]:
    """(place in moov, entries, bytes of an entry) of every table of chunk offsets."""
    for kind, start, end in _boxes(path, data):
        if len(road) < len(_ROAD) and kind == _ROAD[len(road)]:
            yield from _tables(path, data[start:end], base + start, (*road, kind))
        elif len(road) == len(_ROAD) and kind in (b"stco", b"co64"):
            width, count = (4 if kind == b"stco" else 8), int.from_bytes(data[start + 4 : start + 8], "big")
            if start + 8 + count * width > end:
                raise damaged(path, "a table of its index is too short")
            yield base + start + 8, count, width
