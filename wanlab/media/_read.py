"""Stored media as arrays, for models: pictures, masks, and videos at the wanted pace. No torch."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError
from wanlab.media._files import container, frame_rgb, is_animation, picture, rgb
from wanlab.media._find import find
from wanlab.spec.media_ref import MediaRef
from wanlab.video import Frames, true_size

MAX_BYTES = 8 << 30
"""Of the frames that are read at once."""
_CLOSE = 1e-3  # seconds; files count time in steps of up to a millisecond
_NO_DURATION = 0.1  # seconds that browsers show a frame of an animation which says 0

_WHOLE = 0.9  # of the promised seconds; headers round, and count frames that a player does not show

Source = MediaRef | str | os.PathLike[str]


def read_image(source: Source) -> Frames:
    """(H, W, 3) uint8 of a picture: turned as its EXIF says, on white where it is transparent, 16 bits as 8.

    source: a reference, found as `find` does, or a path. Raises `WanlabError` for a video and a damaged file.
    """
    path, ref = _found(source)
    with picture(path, ref.name) as image:
        if image is None or is_animation(image):
            remedy = "Give a picture: media.read_video(path)[0] is the first frame of a video"
            raise WanlabError(f"{ref.name} is no single picture", remedy=remedy)
        return rgb(image)


def read_mask(source: Source, fps: float | None = None, num_frames: int | None = None) -> NDArray[np.float32]:
    """Grey values (H, W) of a picture or (T, H, W) of a video, float32 from 0 (black) to 1 (white).

    Colours count by their luma (BT.601). fps, num_frames and errors as for `read_video`.
    """
    path, ref = _found(source)
    with picture(path, ref.name) as image:
        is_still = image is not None and not is_animation(image)
    pixels = read_image(source) if is_still else read_video(source, fps, num_frames)
    weights = np.array([299, 587, 114], dtype=np.float32)
    return np.stack([frame @ weights for frame in pixels]) / np.float32(255_000)


def read_video(source: Source, fps: float | None = None, num_frames: int | None = None) -> Frames:
    """(T, H, W, 3) uint8 of a video, an animation (GIF, WebP, PNG) or a picture (T = 1), T at most `num_frames`.

    The reference's start and end cut it, in seconds. At the reference's fps, else `fps`, frame k is the one whose time
    is nearest to start + k / fps, the earlier one of two equally near, for as long as that time lies before the end; a
    file of 9 frames at 16 fps has 5 at 8 fps. Without either, all frames come as they are. No more is decoded than is
    needed. Frames are turned as the file says, and transparency lies on white. Raises `WanlabError` for more than
    `MAX_BYTES` of frames, before they are decoded, for a part without frames and for a damaged file.
    """
    path, ref = _found(source)
    pace = ref.fps or fps
    for name, value in (("fps", pace), ("num_frames", num_frames)):
        if value is not None and not 0 < value < math.inf:
            raise WanlabError(f"{name} = {value}", remedy="Give more than 0")
    with _clip(path, ref) as clip:
        _check_bytes(clip, _expected(clip, ref, pace, num_frames))
        chosen = itertools.islice(_chosen(clip, ref, pace), num_frames)
        frames: list[Frames] = []
        for moment in chosen:
            frames.append(moment.pixels())
            _check_bytes(clip, len(frames))
    if not frames:
        part = f"from {ref.start or 0:g} s to {'the end' if ref.end is None else f'{ref.end:g} s'}"
        raise WanlabError(f"{ref.name} has no frame {part}", remedy=f"It is {clip.seconds:g} s long")
    return np.stack(frames)


def _found(source: Source) -> tuple[Path, MediaRef]:
    """The file, and its reference with a name for messages."""
    if isinstance(source, MediaRef):
        return find(source), source.with_(name=source.name or f"{source.kind} {source.sha256[:12]}")
    path = Path(source)
    if not path.is_file():
        raise WanlabError(f"{path} does not exist or is no file", remedy="Check the path")
    return path, MediaRef(sha256="0" * 64, name=path.name[:255], kind="video")


@dataclass(frozen=True, eq=False)
class _Moment:
    """A frame with its time and duration in seconds; made into pixels only when it is wanted."""

    time: float
    duration: float
    pixels: Callable[[], Frames]


@dataclass(frozen=True, eq=False)
class _Clip:
    """An open video: what its header says, and its frames in order."""

    name: str
    height: int
    width: int
    num_frames: int
    seconds: float
    moments: Iterator[_Moment]


@contextmanager
def _clip(path: Path, ref: MediaRef) -> Iterator[_Clip]:
    with picture(path, ref.name) as image:
        if image is not None:
            yield _animation(image, ref.name)
            return
    with container(path, ref.name) as opened:
        if not opened.streams.video:
            raise WanlabError(f"{ref.name} holds no video", remedy="Give a video or a picture")
        yield _film(opened, ref)


def _animation(image: Any, name: str) -> _Clip:
    num_frames = image.n_frames if is_animation(image) else 1
    hidden = 1 if num_frames > 1 and getattr(image, "default_image", False) else 0  # of a PNG; no part of the animation

    def moments() -> Iterator[_Moment]:
        time = 0.0
        for number in range(hidden, num_frames):
            if num_frames > 1:
                image.seek(number)
            image.load()
            duration = image.info.get("duration", 0) / 1000 or _NO_DURATION
            pixels = rgb(image)
            yield _Moment(time, duration, lambda pixels=pixels: pixels)
            time += duration

    seconds = (num_frames - hidden) * (image.info.get("duration", 0) / 1000 or _NO_DURATION)
    return _Clip(name, image.height, image.width, num_frames - hidden, seconds, moments())


def _film(opened: Any, ref: MediaRef) -> _Clip:
    stream = opened.streams.video[0]
    rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    seconds = float(stream.duration * stream.time_base) if stream.duration else (opened.duration or 0) / 1e6
    origin = float((stream.start_time or 0) * stream.time_base)
    size = true_size(opened) or (stream.height, stream.width)
    start = ref.start or 0.0
    is_mp4 = "mp4" in opened.format.name.split(",")
    if 5 < start < seconds and is_mp4:  # which has an exact index; others are read from the beginning
        opened.seek(int((start - 1 + origin) / stream.time_base), stream=stream)

    def moments() -> Iterator[_Moment]:
        reached = 0.0
        for number, frame in enumerate(opened.decode(stream)):
            time = number / rate if frame.time is None else frame.time - origin
            duration = float(frame.duration * frame.time_base) if frame.duration else 1 / rate
            yield _Moment(time, duration, lambda frame=frame: frame_rgb(frame, size))
            reached = time + duration
        if is_mp4 and reached < _WHOLE * seconds:  # its index stands first, so the pictures may end anywhere
            raise WanlabError(
                f"{ref.name} is cut off: it ends after {reached:.2f} s of {seconds:.2f} s", remedy="Copy it again"
            )

    return _Clip(ref.name, *size, stream.frames or math.ceil(seconds * rate), seconds, moments())


def _chosen(clip: _Clip, ref: MediaRef, fps: float | None) -> Iterator[_Moment]:
    """The frames of the wanted part, as they are or at a pace."""
    start, end = ref.start or 0.0, math.inf if ref.end is None else ref.end
    if fps is None:
        after = itertools.dropwhile(lambda m: m.time < start - _CLOSE, clip.moments)
        yield from itertools.takewhile(lambda m: m.time < end - _CLOSE, after)
        return
    before: _Moment | None = None
    number = 0
    for moment in clip.moments:
        while (time := start + number / fps) <= moment.time:
            if time >= end - _CLOSE:
                return
            yield moment if before is None or moment.time - time < time - before.time else before
            number += 1
        before = moment
    if before is not None:
        end = min(end, before.time + before.duration)
        while (time := start + number / fps) < end - _CLOSE:
            yield before
            number += 1


def _expected(clip: _Clip, ref: MediaRef, fps: float | None, num_frames: int | None) -> int:
    """How many frames the header promises for what is asked."""
    span = min(ref.end or math.inf, clip.seconds) - (ref.start or 0.0)
    rate = fps or (clip.num_frames / clip.seconds if clip.seconds else 0.0)
    promised = max(0, math.ceil(span * rate))
    return promised if num_frames is None else min(num_frames, promised)


def _check_bytes(clip: _Clip, num_frames: int) -> None:
    size = num_frames * clip.height * clip.width * 3
    if size > MAX_BYTES:
        raise WanlabError(
            f"{clip.name} is too long to read at once: {num_frames} frames of {clip.width}x{clip.height} pixels are"
            f" {size / 1e9:.1f} GB, above {MAX_BYTES / 1e9:.1f} GB",
            remedy="Take a part with the reference's start and end, ask for fewer frames a second, or make it smaller",
        )
