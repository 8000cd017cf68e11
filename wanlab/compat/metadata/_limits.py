"""What no honest file exceeds, and the error for one that does."""

from __future__ import annotations

import zlib
from pathlib import Path

from wanlab.errors import WanlabError

MAX_TEXT = 16 << 20  # bytes; settings are a few kilobytes, with a very long prompt a few hundred
MAX_INDEX = 256 << 20  # bytes of an mp4's index, which grows with the film's length
MAX_PICTURE = 512 << 20  # bytes of a picture that is rewritten in memory
MAX_PARTS = 100_000  # boxes, chunks or segments


def damaged(path: Path, why: str) -> WanlabError:
    """The error for a file that is not what its first bytes say."""
    return WanlabError(f"{path} cannot be read: {why}", remedy="Give a file that is complete, as WanGP wrote it.")


def checked(path: Path, size: int) -> int:
    """The size of a text, if it is one that is read."""
    if size > MAX_TEXT:
        raise damaged(path, f"a text in it has {size:,} bytes, at most {MAX_TEXT:,} are read")
    return size


def inflated(path: Path, data: bytes) -> bytes:
    """What zlib data hold, if they are no bomb."""
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(data, MAX_TEXT + 1)
    except zlib.error as error:
        raise damaged(path, f"a compressed text is damaged ({error})") from None
    checked(path, len(text))
    return text


def whole(path: Path) -> bytes:
    """The bytes of a picture file."""
    if path.stat().st_size > MAX_PICTURE:
        raise damaged(path, f"it is larger than {MAX_PICTURE >> 20} MB")
    return path.read_bytes()
