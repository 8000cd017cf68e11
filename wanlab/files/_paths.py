"""Names that stay inside their folder, and the files that come with the package."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

from wanlab.errors import WanlabError, shorten

_PACKAGE = Path(__file__).resolve().parents[1]
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}


def safe_path(root: Path | str, name: str) -> Path:
    """The path of `name` (with `/` between folders) inside `root`, on every system; links that lead out are refused.

    Raises WanlabError for absolute paths, `..`, backslashes, drives, control characters, device names, names that
    end in a dot or a space, and names over 200 bytes.
    """
    reason = _unsafe(name)
    if not reason:
        base = Path(root).resolve()
        if (base / name).resolve().is_relative_to(base):
            return base / name
        reason = "it leads out of the folder through a link"
    raise WanlabError(
        f"The name {shorten(name)} is refused: {reason}", remedy="Give a plain relative name, such as clips/a.mp4."
    )


def _unsafe(name: str) -> str:
    """Why a relative name is not safe everywhere; empty if it is."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > 200:
        return "it is longer than 200 bytes"
    if any(unicodedata.category(c) in ("Cc", "Cf") for c in name):
        return "it has control characters"
    if any(c in name for c in '\\:*?"<>|'):
        return 'it has one of \\ : * ? " < > |'
    for step in name.split("/"):
        if step in ("", ".", ".."):
            return "it has an empty, '.' or '..' step"
        if step.endswith((".", " ")) or step.startswith(("~", " ")):
            return "a step ends in a dot or space, or starts with '~' or a space"
        if step.split(".")[0].rstrip().lower() in _DEVICES:
            return "it is a device's name on Windows"
    return ""


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; about 1 s a GB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resource(*parts: str) -> Path:
    """A file or folder that comes with wanlab (`resource("defaults", "wan_tiny.json")`), in a checkout or a wheel.

    A checkout has `defaults/` and `notebooks/` beside the package, a wheel in its `_data`. Raises WanlabError.
    """
    places = [_PACKAGE, _PACKAGE / "_data"]
    if (_PACKAGE.parent / "pyproject.toml").is_file():  # a checkout: beside an installed package lie other packages
        places.append(_PACKAGE.parent)
    for place in places:
        if (found := place.joinpath(*parts)).exists():
            return found
    remedy = "Install it again: pip install --force-reinstall wanlab"
    raise WanlabError(f"wanlab comes without {'/'.join(parts)}", remedy=remedy)
