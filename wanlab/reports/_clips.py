"""What a page needs to know of a clip without decoding it: a small picture, its size and its rate."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from wanlab import inline, video
from wanlab.errors import WanlabError

_POSTER = (240, 180)  # pixels
_POSTERS_BYTES = 280_000  # of all posters of a page
_SMALLEST = (96, 72)  # pixels; below that, a poster says nothing


@dataclass(frozen=True)
class Clip:
    """A clip beside the page. Without a rate it is an image, or a file that cannot be read."""

    path: Path
    poster: str = ""
    """An address with the picture inside, for `src` and `poster`; "" leaves it to the browser."""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
    problem: str = ""

    @property
    def is_video(self) -> bool:
        return self.path.suffix == ".mp4"


def look(paths: list[Path | None]) -> list[Clip | None]:
    """The clips of files, in order; their posters together take at most 280 kB, so many clips have smaller ones."""
    count = sum(path is not None for path in paths)
    share = _POSTERS_BYTES // max(count, 1)
    return [None if path is None else _look(path, share) for path in paths]


def _look(path: Path, share: int) -> Clip:
    try:
        frame = video.first_frame(path)
        fps, num_frames = (0.0, 1) if path.suffix != ".mp4" else _timing(path)
    except (WanlabError, OSError) as error:
        return Clip(path, problem=str(error))
    return Clip(path, _poster(frame, share), frame.shape[1], frame.shape[0], fps, num_frames)


def _poster(frame: video.Frames, share: int) -> str:
    """A JPEG of at most `share` bytes; "" where a small one is larger."""
    for most in (_POSTER, (160, 120), _SMALLEST):
        address = inline.poster(frame[None], most)
        if len(address) <= share:
            return address
    return ""


def _timing(path: Path) -> tuple[float, int]:
    """Frames per second and number of frames, from the index alone."""
    import av

    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 0), int(stream.frames)
    return 0.0, 0
