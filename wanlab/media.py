"""Media that go into a generation, stored once under the hash of their content."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wanlab import video
from wanlab.errors import WanlabError, shorten
from wanlab.files import sha256_file, writing
from wanlab.spec.media_ref import MediaRef

Kind = Literal["image", "video", "mask", "audio"]
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "bmp": ".bmp", "tiff": ".tif"}


class MediaStore:
    """A folder of files called `<sha256>.<ext>`; the same content is stored once. Made when something is put.

    spec.with_(image=MediaStore(folder).put("kite.png"))
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def put(self, what: Any, *, kind: Kind | None = None, fps: float = 16.0) -> MediaRef:
        """Store a file, a picture or frames and return the reference that a spec holds.

        what: a path; a PIL image or (H, W, 3) uint8 array, stored as PNG; or (T, H, W, 3) uint8 frames at `fps`,
        stored without loss. kind is found from the content and given for masks. Raises `WanlabError` for anything else.
        """
        with writing(self.root), _scratch(self.root) as scratch:
            part, name = _write(what, scratch, fps)
            found, suffix = _recognise(part)
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
        if sha256_file(path) != ref.sha256:
            raise WanlabError(
                f"{path} has changed since it was stored", remedy="Delete it and put the original in again"
            )
        return path

    def _stored(self, sha256: str) -> Path | None:
        return next(self.root.glob(f"{sha256}.*"), None)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=root) as folder:
        yield Path(folder)


def _write(what: Any, folder: Path, fps: float) -> tuple[Path, str]:
    """Write `what` into `folder`; returns the file and the name it had."""
    if isinstance(what, str | os.PathLike):
        source = Path(what)
        if not source.is_file():
            raise WanlabError(f"{source} does not exist or is no file", remedy="Check the path")
        return Path(shutil.copyfile(source, folder / "file")), source.name[:255]
    if hasattr(what, "convert"):  # a PIL image
        what = np.asarray(what.convert("RGB"))
    if isinstance(what, np.ndarray) and what.ndim == 3:
        return video.write_image(folder / "file", what), ""
    if isinstance(what, np.ndarray) and what.ndim == 4:
        return video.write_lossless(folder / "file", what, fps), ""
    raise WanlabError(f"{shorten(what, 80)} is no media", remedy="Give a path, a PIL image or a uint8 array")


def _recognise(path: Path) -> tuple[Kind, str]:
    """Kind and suffix from the content: what a file is called says nothing."""
    import av
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            form = (image.format or "").lower()
            return "image", _SUFFIXES.get(form, f".{form}")
    except (UnidentifiedImageError, OSError, ValueError):
        pass
    try:
        with av.open(os.path.abspath(path), metadata_errors="replace") as container:
            form = container.format.name.split(",")
            suffix = ".mp4" if "mp4" in form else f".{form[0]}"
            if container.streams.video:
                return "video", suffix
            if container.streams.audio:
                return "audio", suffix
    except (av.FFmpegError, OSError):
        pass
    raise WanlabError(
        f"{path.name} is no picture, video or sound that can be read", remedy="Give a PNG, JPEG, mp4 or wav"
    )
