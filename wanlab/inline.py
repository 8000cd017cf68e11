"""Pictures and clips as HTML that a notebook keeps."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from wanlab import video
from wanlab.video import Frames

EMBED_BYTES = 2_000_000  # of H.264 or image in one display; base64 adds a third
_MOST_PIXELS = 64_000_000  # of all frames together; encoding more would hold up the cell for a minute
_PROXY_HEIGHT = 320  # pixels of the smaller copy that is embedded when the clip itself is too large
_SHOWN_SIDE = 320  # pixels; smaller pictures are shown enlarged a whole number of times, up to this


def player(frames: Frames, fps: float, title: str, path: Path | None = None) -> str:
    """HTML that shows frames in a notebook and survives saving it: H.264 or an image inside the page, at most 2 MB.

    A clip above that is shown as a copy of at most 320 pixels in height; if even that is too large, as its middle
    frame with a link to `path`, the saved file. Small pictures are enlarged by the browser, without smoothing.
    """
    if len(frames) == 1:
        return _image_tag(frames[0], title)
    for clip, crf in ((frames, 20), (_shrunk(frames), 30)):
        if clip[..., 0].size > _MOST_PIXELS:
            continue
        data = _encoded(clip, fps, crf)
        if len(data) <= EMBED_BYTES:
            source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
            return (
                f"<video {_shown(frames)} controls autoplay loop muted playsinline "
                f'title="{html.escape(title, quote=True)}" src="{source}"></video>'
            )
    link = "" if path is None else f'<a href="{html.escape(str(path), quote=True)}">{html.escape(path.name)}</a>'
    return f"<div>{_image_tag(frames[len(frames) // 2], title)}<p>Too long to show here. {link}</p></div>"


def enlargement(height: int, width: int) -> int:
    """How many times a picture of this size is enlarged on a screen, so that its pixels can be seen; 1 from 161 on.

    >>> enlargement(96, 96), enlargement(480, 832)
    (3, 1)
    """
    return max(1, _SHOWN_SIDE // max(height, width))


def ellipsis(text: str, limit: int) -> str:
    """`text` of at most `limit` characters; a cut one ends in "…"."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def _shown(frames: Frames) -> str:
    """Attributes of a tag: the size on the screen. The style alone would not do, as untrusted notebooks lose parts."""
    height, width = frames.shape[1:3]
    times = enlargement(height, width)
    pixelated = ";image-rendering:pixelated" if times > 1 else ""
    return f'width="{width * times}" height="{height * times}" style="max-width:100%;height:auto{pixelated}"'


def _shrunk(frames: Frames) -> Frames:
    """Frames of at most 320 pixels in height."""
    height, width = frames.shape[1:3]
    if height <= _PROXY_HEIGHT:
        return frames
    size = (max(2, round(width * _PROXY_HEIGHT / height)), _PROXY_HEIGHT)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in frames])


def _encoded(frames: Frames, fps: float, crf: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return video.write_video(Path(folder) / "clip.mp4", frames, fps, crf=crf).read_bytes()


def _image_tag(frame: Frames, title: str) -> str:
    """An `<img>` with a PNG inside, or a JPEG where the PNG is above 2 MB."""
    for kind, options in (("png", {}), ("jpeg", {"quality": 90}), ("jpeg", {"quality": 40})):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, kind, **options)
        if file.tell() <= EMBED_BYTES:
            break
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<img {_shown(frame[None])} title="{html.escape(title, quote=True)}" src="{source}">'
