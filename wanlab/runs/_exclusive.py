"""Files that exactly one of several processes creates, whole."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from wanlab.files import PART, sync_folder, writing


def create(path: Path, text: str) -> bool:
    """Create a file that is not there yet; False if it is. Of several processes exactly one gets True.

    The file appears with its content; where the disk knows no hard links, it appears empty and is filled at once.
    Raises WanlabError for a full disk and a folder that cannot be written.
    """
    part = path.with_name(f"{PART}{secrets.token_hex(8)}")
    with writing(path):
        try:
            _write(part, text)
            try:
                os.link(part, path)
            except FileExistsError:
                return False
            except OSError:  # no hard links here, or whoever ended the run has swept the part away
                try:
                    _write(path, text)
                except FileExistsError:
                    return False
        finally:
            part.unlink(missing_ok=True)
        sync_folder(path.parent)
    return True


def _write(path: Path, text: str) -> None:
    with open(path, "xb") as file:
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
