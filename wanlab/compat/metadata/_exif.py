"""UserComment in EXIF, as WanGP writes it: ASCII where that is enough, else UTF-16."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

from wanlab.compat.metadata._limits import damaged

_EXIF_IFD, _USER_COMMENT, _UNDEFINED = 0x8769, 0x9286, 7
_MARK = b"Exif\0\0"


def read_comment(path: Path, data: bytes) -> str:
    """The UserComment of an EXIF block (with or without its mark); empty if there is none."""
    exif = _load(path, data)
    value = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT) or exif.get(_USER_COMMENT) or b""
    if isinstance(value, tuple):  # written as numbers
        value = bytes(v & 255 for v in value if isinstance(v, int))
    return value if isinstance(value, str) else decode(value)


def with_comment(path: Path, data: bytes, text: str) -> bytes:
    """An EXIF block, mark included, with another UserComment and all else that it had."""
    exif = _load(path, data)
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = encode(text)
    return _MARK + _as_undefined(bytes(exif.tobytes()).removeprefix(_MARK))


def _as_undefined(tiff: bytes) -> bytes:
    """The same with UserComment as type 7, as EXIF has it and its readers expect; Pillow 13 writes bytes as type 1."""
    order = ">" if tiff.startswith(b"MM") else "<"
    fields, result = struct.Struct(f"{order}HHII"), bytearray(tiff)

    def entry(place: int, tag: int) -> tuple[int, int]:
        """Where a tag's entry of the directory at `place` is, and its value."""
        count = struct.unpack_from(f"{order}H", tiff, place)[0]
        for at in range(place + 2, place + 2 + count * fields.size, fields.size):
            found, _, _, value = fields.unpack_from(tiff, at)
            if found == tag:
                return at, value
        raise AssertionError("Pillow wrote no such tag")

    directory = entry(struct.unpack_from(f"{order}I", tiff, 4)[0], _EXIF_IFD)[1]
    struct.pack_into(f"{order}H", result, entry(directory, _USER_COMMENT)[0] + 2, _UNDEFINED)
    return bytes(result)


def _load(path: Path, data: bytes) -> Any:
    from PIL import Image

    exif = Image.Exif()
    if data:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about each tag that it cannot read
                exif.load(_MARK + data.removeprefix(_MARK))
                dict(exif.get_ifd(_EXIF_IFD))
        except (SyntaxError, ValueError, LookupError, TypeError, OSError, OverflowError, struct.error) as error:
            raise damaged(path, f"its EXIF is damaged ({error})") from None
    return exif


def encode(text: str) -> bytes:
    """The bytes of a UserComment."""
    return b"ASCII\0\0\0" + text.encode() if text.isascii() else b"UNICODE\0" + text.encode("utf-16-le")


def decode(data: bytes) -> str:
    """The text of a UserComment; without a mark it is taken as UTF-8."""
    if data.startswith(b"ASCII\0\0\0"):
        return data[8:].decode("ascii", "replace")
    if data.startswith(b"UNICODE\0"):
        order = "utf-16-be" if data[8:9] == b"\0" and data[9:10] != b"\0" else "utf-16-le"
        return data[8:].decode(order, "replace")
    return data.decode("utf-8", "replace")
