"""EXIF and comment segments of a JPEG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wanlab.compat.metadata._exif import read_comment, with_comment
from wanlab.compat.metadata._limits import MAX_PARTS, damaged, whole
from wanlab.errors import WanlabError

_APP0, _APP1, _COM, _SOS, _EOI = 0xE0, 0xE1, 0xFE, 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_ROOM = 65_533  # bytes in a segment


def recognises(start: bytes) -> bool:
    """Whether a file starts as a JPEG."""
    return start.startswith(b"\xff\xd8\xff")


def read(path: Path) -> dict[str, str]:
    """EXIF's UserComment, else the comment segment, as `comment`."""
    data, plain = whole(path), ""
    for kind, start, end in _segments(path, data):
        if kind == _APP1 and data.startswith(b"Exif\0\0", start) and (text := read_comment(path, data[start:end])):
            return {"comment": text}
        if kind == _COM:
            plain = data[start:end].decode("utf-8", "replace")
    return {"comment": plain}


def _segments(path: Path, data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start and end of the content) of the segments before the pixels."""
    place = 2
    for _ in range(MAX_PARTS):
        while data[place : place + 2] == b"\xff\xff":  # fill bytes
            place += 1
        if data[place : place + 1] != b"\xff" or place + 2 > len(data):
            raise damaged(path, "it ends before its pixels")
        kind = data[place + 1]
        if kind in (_SOS, _EOI):
            return
        if kind in _ALONE:
            place += 2
            continue
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        if size < 2 or place + 2 + size > len(data):
            raise damaged(path, "it ends inside a segment")
        yield kind, place + 4, place + 2 + size
        place += 2 + size
    raise damaged(path, f"it has more than {MAX_PARTS:,} segments")


def write(path: Path, target: Path, text: str) -> None:
    """The file with an EXIF block that has the text, in place of its own."""
    data, old, cuts, place = whole(path), b"", [], 2
    for kind, start, end in _segments(path, data):
        if kind == _APP1 and data.startswith(b"Exif\0\0", start):
            old = old or data[start:end]
            cuts.append((start - 4, end))
        elif kind == _APP0:
            place = max(place, end) if not cuts else place
    block = with_comment(path, old, text)
    if len(block) > _ROOM:
        raise WanlabError(
            f"Settings of {len(block):,} bytes do not go into {path}: a jpg has room for {_ROOM:,}",
            remedy="Save the picture as png or webp, or the settings as json beside it.",
        )
    segment = bytes((0xFF, _APP1)) + (len(block) + 2).to_bytes(2, "big") + block
    pieces, last = [data[:place], segment], place
    for start, end in cuts:
        pieces.append(data[last:start])
        last = end
    target.write_bytes(b"".join([*pieces, data[last:]]))
