"""The texts that travel in video and picture files, where WanGP looks for them.

mp4 and mov have one in the `\\u00a9cmt` item of their iTunes list, mkv in the tag `comment`, png in a text chunk
`comment`, jpg and webp in EXIF's UserComment. What a file is comes from its first bytes, never from its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from wanlab.compat.metadata import _jpeg, _mkv, _mp4, _png, _webp
from wanlab.compat.metadata._limits import MAX_TEXT, damaged
from wanlab.errors import WanlabError
from wanlab.files import writing

__all__ = ["MAX_TEXT", "form_of", "read_texts", "write_text"]

_FORMS: dict[str, ModuleType] = {"mp4": _mp4, "mkv": _mkv, "png": _png, "jpeg": _jpeg, "webp": _webp}


def form_of(path: Path) -> str:
    """mp4 (mov too), mkv, png, jpeg, webp, zip, or text for anything else; raises WanlabError if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WanlabError(f"Cannot read {path}: {error.strerror or error}", remedy="Check the path.") from None
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    return next((name for name, form in _FORMS.items() if form.recognises(start)), "text")


def read_texts(path: str | Path) -> dict[str, str]:
    """Texts in a video or picture: `comment`, and `wanlab` in a PNG of this program. Reads no picture.

    Raises WanlabError that names the file if it is of another form, damaged, or a text is over MAX_TEXT bytes.
    """
    path = Path(path)
    texts: dict[str, str] = _form(path).read(path)
    return {key: text for key, text in texts.items() if text.strip("\ufeff\0 \r\n\t")}


def write_text(path: str | Path, settings: Mapping[str, Any]) -> Path:
    """Put settings into an mp4, mov, mkv, png, jpg or webp, in WanGP's form, in place of those it has.

    Pictures and sound stay as they are, bit by bit; other texts stay. The file is the old or the new one, never torn.
    Raises WanlabError if the file is of another form or damaged, or if there is no room (64 KB in a jpg).
    """
    path = Path(path)
    form, text = _form(path), json.dumps(settings, ensure_ascii=False, allow_nan=False)
    if (size := len(text.encode())) > MAX_TEXT:
        raise WanlabError(f"Settings of {size:,} bytes do not go into {path}", remedy=f"At most {MAX_TEXT:,} are read.")
    part = path.with_name(f".part-{path.name}")
    with writing(path):
        try:
            form.write(path, part, text)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _form(path: Path) -> ModuleType:
    name = form_of(path)
    if name not in _FORMS:
        raise damaged(path, "it is no mp4, mov, mkv, png, jpg or webp")
    return _FORMS[name]
