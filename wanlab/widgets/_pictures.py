"""Small pictures of clips, made in a thread while somebody looks at a table of them."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from wanlab import video
from wanlab.errors import WanlabError

KEPT = 60  # pictures
_SIZE = (112, 84)  # pixels, twice what is shown
_AT_ONCE = 5  # pictures in a message


class Pictures:
    """`ask` makes JPEGs of first frames and hands them to `send`; what was asked before and is not made yet is dropped.

    At most 60 are kept; a file that changed is read again. A file that cannot be read has no picture.
    """

    def __init__(self, send: Callable[[dict[str, bytes]], None]) -> None:
        self._send = send
        self._kept: OrderedDict[tuple[Path, float], bytes] = OrderedDict()
        self._wanted: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, files: Mapping[str, Path]) -> None:
        """Make pictures of these files, by id, instead of those that were asked before. Returns at once."""
        with self._lock:
            self._wanted = dict(files)
            if self._thread is None and self._wanted:
                self._thread = threading.Thread(target=self._work, name="wanlab-pictures", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                batch = {key: self._wanted.pop(key) for key in list(self._wanted)[:_AT_ONCE]}
                if not batch:
                    self._thread = None
                    return
            made = {key: self._picture(file) for key, file in batch.items()}
            if found := {key: data for key, data in made.items() if data is not None}:
                self._send(found)

    def _picture(self, file: Path) -> bytes | None:
        try:
            key = file, file.stat().st_mtime
            if key not in self._kept:
                self._kept[key] = small_jpeg(file)
        except (WanlabError, OSError):
            return None
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def small_jpeg(file: Path) -> bytes:
    """The first frame of a clip, or a picture, at most 112 x 84 pixels. Raises WanlabError for what cannot be read."""
    picture = Image.fromarray(video.first_frame(file))
    picture.thumbnail(_SIZE, Image.Resampling.BILINEAR)
    data = io.BytesIO()
    picture.save(data, "jpeg", quality=75)
    return data.getvalue()
