"""Pictures and clips as HTML that a notebook keeps: without scripts, so that it shows in untrusted notebooks too."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wanlab import notebook, video
from wanlab.audio import Audio
from wanlab.video import Frames

EMBED_BYTES = 2_000_000  # of H.264 or image in one display; base64 adds a third
BUDGET_BYTES = 20_000_000  # of all results that a kernel embeds
_MOST_PIXELS = 64_000_000  # of all frames together; encoding more would hold up the cell for a minute
_PROXY_HEIGHT = 320  # pixels of the smaller copy that is embedded when the clip itself is too large
_SHOWN_SIDE = 320  # pixels; smaller pictures are shown enlarged a whole number of times, up to this
_SHOWN_HEIGHT = 480  # pixels of a result on the page; the player's full screen has the rest
_STRIP_WIDTH, _STRIP_HEIGHT = 640, 160  # pixels of a row of pictures, and the most of one picture
_LARGE, _SMALL = 28, 34  # crf of an embedded copy, and of the second try
_TINY = 20  # crf of pictures that are shown enlarged, where every blemish is


@dataclass(frozen=True)
class Shown:
    """What a notebook shows: HTML where there is a page, a line of text elsewhere."""

    page: str
    text: str

    def _repr_html_(self) -> str:
        return self.page

    def __repr__(self) -> str:
        return self.text


class Budget:
    """Bytes that a kernel has put into its notebook; a cell that runs again gives back what it took before."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[str, int]] = {}

    def take(self, num_bytes: int) -> bool:
        """Whether as many bytes are left for the running cell; they are taken then."""
        cell, run = notebook.running_cell()
        if self._taken.get(cell, (run, 0))[0] != run:
            del self._taken[cell]
        if sum(taken for _, taken in self._taken.values()) + num_bytes > BUDGET_BYTES:
            return False
        self._taken[cell] = (run, self._taken.get(cell, (run, 0))[1] + num_bytes)
        return True


BUDGET = Budget()


def player(frames: Frames, fps: float, title: str, path: Path | None = None) -> str:
    """HTML that shows frames in a notebook and survives saving it: H.264 or an image inside the page, at most 2 MB.

    A clip above that is shown as a copy of at most 320 pixels in height; if even that is too large, as its middle
    frame with a link to `path`, the saved file. Small pictures are enlarged by the browser, without smoothing.
    """
    if len(frames) == 1:
        return _image_tag(frames[0], _image_source(frames[0]), title)
    data = _encoded(frames, fps, (20,))
    if data is None:
        data = _encoded(_shrunk(frames), fps, (30,))
    if data is not None:
        return _video_tag(frames, _source("video/mp4", data), title)
    middle = frames[len(frames) // 2]
    link = "" if path is None else f'<a href="{html.escape(str(path), quote=True)}">{html.escape(path.name)}</a>'
    return f"<div>{_image_tag(middle, _image_source(middle), title)}<p>Too long to show here. {link}</p></div>"


def linked(frames: Frames, address: str, title: str, *, is_video: bool, has_sound: bool = False) -> str:
    """HTML that shows a file beside the notebook, and of a clip a small picture where the file is not found."""
    if not is_video:
        return _image_tag(frames[0], address, title, _SHOWN_HEIGHT)
    shown = f'poster="{poster(frames)}"'
    return _video_tag(frames, address, title, has_sound=has_sound, most=_SHOWN_HEIGHT, more=shown)


def embedded(frames: Frames, fps: float, title: str, audio: Audio | None = None) -> tuple[str, str]:
    """HTML with a small copy of a result inside: at most 320 pixels in height and 2 MB, within the kernel's budget.

    Where that is not enough, the middle frame as a small picture, and why. An image keeps its size.
    """
    is_video = len(frames) > 1 or audio is not None
    first = _TINY if enlargement(*frames.shape[1:3]) > 1 else _LARGE
    if is_video:
        data = _encoded(_shrunk(frames), fps, (first, _SMALL), audio)
        source = "" if data is None else _source("video/mp4", data)
    else:
        source = _image_source(frames[0])
    if not source:
        problem = f"It would be above {EMBED_BYTES // 1_000_000} MB, too much to embed."
    elif not BUDGET.take(len(source) * 3 // 4):
        problem = f"The {BUDGET_BYTES // 1_000_000} MB that a kernel embeds are used up."
    elif is_video:
        return _video_tag(frames, source, title, has_sound=audio is not None, most=_SHOWN_HEIGHT), ""
    else:
        return _image_tag(frames[0], source, title, _SHOWN_HEIGHT), ""
    return _image_tag(frames[0], poster(frames), title, _SHOWN_HEIGHT), problem


def poster(frames: Frames, most: tuple[int, int] = (2 * _SHOWN_SIDE, _PROXY_HEIGHT)) -> str:
    """The middle frame as a small JPEG inside an address; `most` pixels in width and height."""
    file = io.BytesIO()
    picture = Image.fromarray(frames[len(frames) // 2])
    picture.thumbnail(most, Image.Resampling.BILINEAR)
    picture.save(file, "jpeg", quality=70)
    return _source("image/jpeg", file.getvalue())


def strip(pictures: Sequence[Frames], titles: Sequence[str]) -> str:
    """HTML of pictures (H, W, 3) in rows of equal length that fit a page, each under its title, by mediapy."""
    import mediapy

    height, width = pictures[0].shape[:2]
    shown = min(height * enlargement(2 * height, 2 * width), _STRIP_HEIGHT)
    rows = math.ceil(len(pictures) * width * shown / height / _STRIP_WIDTH)
    columns = math.ceil(len(pictures) / max(1, min(rows, len(pictures))))
    return mediapy.show_images(pictures, titles, height=shown, columns=columns, return_html=True)


def enlargement(height: int, width: int) -> int:
    """How many times a picture of this size is enlarged on a screen, so that its pixels can be seen; 1 from 161 on.

    >>> enlargement(96, 96), enlargement(480, 832)
    (3, 1)
    """
    return max(1, _SHOWN_SIDE // max(height, width))


def ellipsis(text: str, limit: int) -> str:
    """`text` of at most `limit` characters; a cut one ends in "…"."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def _shown(frames: Frames, most: int | None = None) -> str:
    """Attributes of a tag: the size on the screen, at most `most` pixels in height. The style alone would not do, as
    untrusted notebooks lose parts of it."""
    height, width = frames.shape[1:3]
    times = enlargement(height, width)
    pixelated = ";image-rendering:pixelated" if times > 1 else ""
    scale = times if most is None else min(times, most / height)
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return f'{size} style="max-width:100%;height:auto{pixelated}"'


def _shrunk(frames: Frames) -> Frames:
    """Frames of at most 320 pixels in height."""
    height, width = frames.shape[1:3]
    if height <= _PROXY_HEIGHT:
        return frames
    size = (max(2, round(width * _PROXY_HEIGHT / height)), _PROXY_HEIGHT)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in frames])


def _encoded(frames: Frames, fps: float, crfs: Sequence[int], audio: Audio | None = None) -> bytes | None:
    """The first of these qualities that is small enough; None if none is."""
    if frames[..., 0].size > _MOST_PIXELS:
        return None
    tries = (video.encode_video(frames, fps, crf=crf, audio=audio) for crf in crfs)
    return next((data for data in tries if len(data) <= EMBED_BYTES), None)


def _source(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _image_source(frame: Frames) -> str:
    """A PNG inside an address, or a JPEG where the PNG is above 2 MB."""
    attempts: list[tuple[str, dict[str, Any]]] = [("png", {}), ("jpeg", {"quality": 90}), ("jpeg", {"quality": 40})]
    for kind, options in attempts:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, kind, **options)
        if file.tell() <= EMBED_BYTES:
            break
    return _source(f"image/{kind}", file.getvalue())


def _image_tag(frame: Frames, source: str, title: str, most: int | None = None) -> str:
    name = _quoted(title)
    return f'<img {_shown(frame[None], most)} alt="{name}" title="{name}" src="{_quoted(source)}">'


def _video_tag(
    frames: Frames, source: str, title: str, *, has_sound: bool = False, most: int | None = None, more: str = ""
) -> str:
    """A player that loops; a silent one starts by itself, one with sound waits for a click."""
    starts = 'preload="auto"' if has_sound else "autoplay muted"
    return (
        f"<video {_shown(frames, most)} controls loop {starts} playsinline {more} "
        f'title="{_quoted(title)}" src="{_quoted(source)}"></video>'
    )


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)
