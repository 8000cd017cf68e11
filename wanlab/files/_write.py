"""Writes that are whole or absent, and say in words what the disk refused."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from wanlab.errors import WanlabError

PART = ".part-"
"""What the name of an unfinished file or folder starts with; whatever is called so may be deleted."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what the operating system says while `path` is written (disk full, no permission) into WanlabError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            remedy = "Free some space or write elsewhere; nothing half-written is left."
            raise WanlabError(f"Disk full while writing {path}: {reason}", remedy=remedy) from error
        raise WanlabError(f"Cannot write {path}: {reason}", remedy="Write to another folder.") from error


def atomic_write(path: Path | str, data: bytes | str) -> Path:
    """Write a file that is old or new, never torn, whatever happens meanwhile; makes its folder.

    Text is UTF-8. The data are on the disk when this returns. Raises WanlabError if the disk is full.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{PART}{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return path


def sweep(folder: Path) -> None:
    """Delete unfinished files that killed processes left in a folder that only this process writes to."""
    for left in folder.rglob(f"{PART}*"):
        if left.is_file():
            left.unlink(missing_ok=True)


def sync_folder(path: Path | str) -> None:
    """Make a rename durable where the system can: Windows and some network drives cannot sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
