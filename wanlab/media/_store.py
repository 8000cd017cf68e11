"""Media that go into a generation, stored once under the hash of their content."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab import video
from wanlab.errors import WanlabError, shorten
from wanlab.files import sha256_file, writing
from wanlab.media._files import Kind, check_kind, recognise, rgb
from wanlab.spec.media_ref import MediaRef

_ARRAYS = "Give a path, a PIL image, or uint8 of shape (H, W, 3) or (T, H, W, 3)"
_MASKS = "Give a path, a PIL image, or bool, uint8 or 0 to 1 of shape (H, W) or (T, H, W)"
_checked: dict[Path, tuple[int, int, str]] = {}  # size, time and hash of files whose content was hashed


class MediaStore:
    """A folder of files called `<sha256>.<ext>`; the same content is stored once. Made when something is put.

    spec.with_(image=MediaStore(folder).put("kite.png"))
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def put(self, what: Any, *, kind: Kind | None = None, fps: float = 16.0, name: str = "") -> MediaRef:
        """Store a file, a picture or frames and return the reference that a spec holds.

        what: a path; a file's bytes; a PIL image or (H, W, 3) uint8 array, stored as PNG; or (T, H, W, 3) uint8 frames
        at `fps`, stored without loss. name: what people call it, by default the file's. kind is found from the content
        and given for masks, which may be (H, W) or (T, H, W), bool, uint8 or 0 to 1, too. Raises `WanlabError` that
        names what is no media, is damaged, holds no frame or is of another kind.
        """
        with writing(self.root), _scratch(self.root) as scratch:
            part, called = _write(what, scratch, kind, fps)
            name = (name or called)[-255:]
            found, suffix = recognise(part, name or "What is given")
            check_kind(found, kind or found, name or "What is given")
            sha256 = sha256_file(part)
            if self._stored(sha256) is None:
                os.replace(part, self.root / f"{sha256}{suffix}")
        return MediaRef(sha256=sha256, name=name, kind=kind or found)

    def get(self, ref: MediaRef) -> Path:
        """The stored file. Raises `WanlabError` if it is not in this store or no longer has its content."""
        path = self._stored(ref.sha256)
        if path is None:
            remedy = "Put the file into this store: MediaStore(folder).put(path)"
            raise WanlabError(f"{ref.name or ref.kind} ({ref.sha256[:12]}) is not stored in {self.root}", remedy=remedy)
        if _hash(path) != ref.sha256:
            raise WanlabError(
                f"{path} has changed since it was stored", remedy="Delete it and put the original in again"
            )
        return path

    def holds(self, ref: MediaRef) -> bool:
        """Whether a file of the reference's name is here."""
        return self._stored(ref.sha256) is not None

    def _stored(self, sha256: str) -> Path | None:
        return next(self.root.glob(f"{sha256}.*"), None)


def _hash(path: Path) -> str:
    """The file's hash, taken again only when its size or time has changed."""
    status = path.stat()
    size, time, sha256 = _checked.get(path, (-1, 0, ""))
    if (size, time) != (status.st_size, status.st_mtime_ns):
        sha256 = sha256_file(path)
        _checked[path] = status.st_size, status.st_mtime_ns, sha256
    return sha256


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=root) as folder:
        yield Path(folder)


def _write(what: Any, folder: Path, kind: Kind | None, fps: float) -> tuple[Path, str]:
    """Write `what` into `folder`; returns the file and the name it had."""
    if isinstance(what, str | os.PathLike):
        source = _source(what)
        return Path(shutil.copyfile(source, folder / "file")), source.name
    if isinstance(what, bytes | bytearray | memoryview):
        (folder / "file").write_bytes(what)
        return folder / "file", ""
    if hasattr(what, "convert") and hasattr(what, "size"):  # a PIL image
        what = rgb(what)
    frames = _mask_frames(what) if kind == "mask" else what
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 3:
        return video.write_image(folder / "file", frames), ""
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4:
        return video.write_lossless(folder / "file", frames, fps), ""
    have = f"An array {what.dtype} {what.shape}" if isinstance(what, np.ndarray) else shorten(what, 80)
    raise WanlabError(f"{have} is no media", remedy=_MASKS if kind == "mask" else _ARRAYS)


def _source(path: str | os.PathLike[str]) -> Path:
    """The file at a path that a user gave; raises `WanlabError` where there is none."""
    try:
        source = Path(path).expanduser()
        is_file, is_folder = source.is_file(), source.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long a name; ~somebody who is not there; a NUL
        is_file = is_folder = False
    if not is_file:
        why = "is a folder" if is_folder else "does not exist or is no file"
        raise WanlabError(f"{shorten(str(path))} {why}", remedy="Give the path of a picture, video or sound")
    return source


def _mask_frames(what: Any) -> Any:
    """Grey frames of a mask that is given as numbers; anything else as it is."""
    if not isinstance(what, np.ndarray) or what.ndim not in (2, 3) or (what.ndim == 3 and what.shape[2] == 3):
        return what
    return np.repeat(_bytes(what)[..., None], 3, axis=-1)


def _bytes(mask: NDArray[Any]) -> NDArray[np.uint8]:
    if mask.dtype == np.uint8:
        return mask
    if mask.dtype != bool and not (mask.dtype.kind == "f" and mask.size and mask.min() >= 0 and mask.max() <= 1):
        raise WanlabError(f"A mask of {mask.dtype} {mask.shape} is not 0 to 1", remedy=_MASKS)
    return np.asarray(np.rint(mask.astype(np.float64) * 255), dtype=np.uint8)
