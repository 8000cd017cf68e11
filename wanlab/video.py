"""Video and picture files: H.264 in mp4 through PyAV, PNG through Pillow, each with a text that travels inside.

On one machine the bytes depend on the frames, the settings and the encoder's version alone: one thread, no time stamps,
no AVX-512. (Processors of another make may round x264's reciprocals otherwise.)
"""

from __future__ import annotations

import io
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.audio import AacTrack, Audio
from wanlab.errors import WanlabError, shorten
from wanlab.files import writing

Frames = NDArray[np.uint8]
MAX_COMMENT = 16 << 20  # bytes of a comment that are read; a spec is a few kilobytes
_PNG_KEY = "wanlab"
# x264's mbtree_propagate_list for AVX-512 takes 8 macroblocks at a time and does not mask those beyond a row's end.
# Unless a width fills 8, 16, .. macroblocks, memory never written steers the quantisers there, and equal frames now and
# then give other bytes. The code up to AVX2 stops at the end. SSE4.2 is on every x86 processor that torch runs on and
# costs about a tenth more time; other processors have other code and do not know the name.
_SIMD = {"x264-params": "asm=SSE4.2"} if platform.machine().lower() in ("x86_64", "amd64") else {}
_PADDED = re.compile(r"(\d+)x(\d+) pixels, padded to (\d+)x(\d+)")


def write_video(
    path: str | Path, frames: Frames, fps: float, *, crf: int = 18, comment: str = "", audio: Audio | None = None
) -> Path:
    """Write an mp4 that browsers play (H.264, yuv420p, index first); the file appears complete or not at all.

    frames: (T, H, W, 3) uint8, RGB; an odd height or width is padded by repeating the last row or column, and
    `read_video` cuts it off again. crf: 0 (best) to 51. comment: any text without NUL, stored as the file's comment.
    audio: becomes AAC; it may be shorter or longer than the pictures.
    Raises `WanlabError` for frames of another shape or type and for a full disk.
    """
    encoding = _Encoding(frames, fps, crf, comment, audio)
    with _finished(Path(path)) as part:
        encoding.write(part)
    return Path(path)


def write_lossless(path: str | Path, frames: Frames, fps: float) -> Path:
    """Write an mp4 that keeps RGB exactly, of any size; browsers do not play it. Raises as `write_video`."""
    encoding = _Encoding(frames, fps)
    with _finished(Path(path)) as part:
        encoding.write(part)
    return Path(path)


def encode_video(frames: Frames, fps: float, *, crf: int, audio: Audio | None = None) -> bytes:
    """The bytes of an mp4 for a page, made in memory: as `write_video` writes it, but with the index at its end."""
    file = io.BytesIO()
    _Encoding(frames, fps, crf, "", audio).write(file)
    return file.getvalue()


class _Encoding:
    """What goes into an mp4, checked; without a crf, RGB is kept exactly."""

    def __init__(
        self, frames: Frames, fps: float, crf: int | None = None, comment: str = "", audio: Audio | None = None
    ) -> None:
        check_frames(frames)
        _check_text(comment)
        if not 0 < fps <= 1000:
            raise WanlabError(f"fps = {fps!r}", remedy="Give frames per second between 0 and 1000")
        self._frames, self._comment, self._audio = frames, comment, audio
        self._rate = Fraction(fps).limit_denominator(1001)
        self._lossless = crf is None
        quality = {"preset": "veryfast", "qp": "0"} if crf is None else {"preset": "medium", "crf": str(crf)}
        self._options = quality | _SIMD | {"threads": "1", "flags": "+bitexact"}

    def write(self, file: Path | io.BytesIO) -> None:
        import av

        in_memory = isinstance(file, io.BytesIO)
        target = file if in_memory else os.path.abspath(file)  # absolute: "a:b.mp4" is no protocol
        flags = {"fflags": "+bitexact"} | ({} if in_memory else {"movflags": "+faststart"})
        height, width = self._frames.shape[1:3]
        odd = (0, 0) if self._lossless else (height % 2, width % 2)
        padded = np.pad(self._frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        with av.open(target, "w", format="mp4", options=flags) as container:
            if self._comment:
                container.metadata["comment"] = self._comment
            if any(odd):
                size = f"{width}x{height} pixels, padded to {padded.shape[2]}x{padded.shape[1]}"
                container.metadata["description"] = size
            stream = self._stream(container, padded)
            sound = None if self._audio is None else AacTrack(container, self._audio)
            for i, picture in enumerate(padded):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame if self._lossless else _converted(frame, "yuv420p")))
                if sound is not None:
                    sound.mux(float((i + 1) / self._rate))
            container.mux(stream.encode())
            if sound is not None:
                sound.finish()

    def _stream(self, container: Any, frames: Frames) -> Any:
        from av.video.reformatter import ColorRange

        codec = "libx264rgb" if self._lossless else "libx264"
        stream = container.add_stream(codec, rate=self._rate, options=self._options)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "rgb24" if self._lossless else "yuv420p"
        if not self._lossless:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709, as players assume
            context.color_range = ColorRange.MPEG
        return stream


def to_rgb(frame: Any) -> Frames:
    """A decoded frame of PyAV as (H, W, 3) uint8."""
    return np.asarray(_converted(frame, "rgb24").to_ndarray())


def true_size(container: Any) -> tuple[int, int] | None:
    """(height, width) without the rows and columns that `write_video` padded; None where there are none."""
    padding = _PADDED.fullmatch(container.metadata.get("description", ""))
    stream = container.streams.video[0]
    if padding and (int(padding[3]), int(padding[4])) == (stream.width, stream.height):
        return int(padding[2]), int(padding[1])
    return None


def _converted(frame: Any, form: str) -> Any:
    """A frame in another pixel format, rounded rightly: swscale's default is darker by one level on average."""
    from av.video.reformatter import Colorspace, Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return frame.reformat(
        format=form,
        dst_colorspace=Colorspace.ITU709 if form == "yuv420p" else None,
        interpolation=Interpolation.BICUBIC | exact | Interpolation.BITEXACT,
    )


def screen_video(pictures: Iterable[Frames], num_frames: int, fps: float, *, crf: int, most_bytes: int) -> bytes:
    """An mp4 for players on a screen: quick to encode, exact to seek (no B-frames, a key frame every eight).

    pictures: `num_frames` of (H, W, 3) uint8 RGB, even height and width, taken one by one. crf says how good it is
    where the bytes allow that; a rate limit keeps it near or below `most_bytes`. Unlike those of `write_video`, the
    bytes may change with the number of threads.
    """
    import av
    from av.video.reformatter import ColorRange

    rate, seconds = Fraction(fps).limit_denominator(1001), num_frames / fps
    limits = {"maxrate": str(int(most_bytes * 8 * 0.6 / seconds)), "bufsize": str(int(most_bytes * 8 * 0.3))}
    options = {"preset": "ultrafast", "crf": str(crf), "bf": "0", "g": "8", "keyint_min": "8", "sc_threshold": "0"}
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=options | limits)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709, as players assume
        context.color_range = ColorRange.MPEG
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(_converted(av.VideoFrame.from_ndarray(picture, format="rgb24"), "yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()


def read_video(path: str | Path) -> tuple[Frames, float, str]:
    """Frames (T, H, W, 3) uint8, frames per second, and the comment ("" if there is none).

    Raises `WanlabError` for a missing file and for one that holds no video.
    """
    import av

    path = Path(path)
    with _opened(path) as container:
        comment, size = _comment(container, path), true_size(container)
        stream = container.streams.video[0]
        try:
            pictures = [to_rgb(frame) for frame in container.decode(stream)]
        except av.FFmpegError as error:
            raise _unreadable(path, str(error)) from None
        fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not pictures:
        raise _unreadable(path, "it holds no frame")
    frames = np.stack(pictures)
    if size is not None:
        frames = frames[:, : size[0], : size[1]]
    return frames, fps, comment


def read_comment(path: str | Path) -> str:
    """The text that travels in an mp4 or PNG, without decoding pictures; "" if there is none."""
    path = Path(path)
    if is_png(path):
        return read_image(path)[1]
    with _opened(path) as container:
        return _comment(container, path)


def first_frame(path: str | Path) -> Frames:
    """The first frame (H, W, 3) uint8 of an mp4, or a PNG; decodes no more. Raises `WanlabError` as `read_video`."""
    import av

    path = Path(path)
    if is_png(path):
        return read_image(path)[0]
    with _opened(path) as container:
        try:
            frame = next(container.decode(container.streams.video[0]), None)
        except av.FFmpegError as error:
            raise _unreadable(path, str(error)) from None
        if frame is None:
            raise _unreadable(path, "it holds no frame")
        return to_rgb(frame)


def write_image(path: str | Path, frame: Frames, *, comment: str = "") -> Path:
    """Write a PNG; frame: (H, W, 3) uint8. The comment is an iTXt chunk. Complete or not at all."""
    from PIL import Image, PngImagePlugin

    check_frames(frame[None])
    _check_text(comment)
    info = PngImagePlugin.PngInfo()
    if comment:
        info.add_itxt(_PNG_KEY, comment)
    with _finished(Path(path)) as part:
        Image.fromarray(frame).save(part, format="PNG", pnginfo=info)
    return Path(path)


def read_image(path: str | Path) -> tuple[Frames, str]:
    """Frame (H, W, 3) uint8 and the comment of a PNG or another picture file ("" if there is none)."""
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        with Image.open(path) as image:
            frame = np.asarray(image.convert("RGB"))
            comment = str(getattr(image, "text", {}).get(_PNG_KEY, ""))
    except FileNotFoundError:
        raise _missing(path) from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    return frame, _capped(comment, path)


def is_png(path: Path) -> bool:
    """Whether the file starts as a PNG does. Raises `WanlabError` if it does not exist."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89PNG\r\n\x1a\n"
    except (FileNotFoundError, IsADirectoryError):
        raise _missing(path) from None


def check_frames(frames: Frames) -> None:
    """Raise `WanlabError` unless `frames` is a non-empty (T, H, W, 3) uint8 array."""
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        have = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise WanlabError(f"Frames are {have}", remedy="Give a uint8 array of shape (T, H, W, 3)")
    if 0 in frames.shape:
        raise WanlabError(f"Frames of shape {frames.shape} hold no picture", remedy="Give at least one frame")


def _check_text(comment: str) -> None:
    if "\0" in comment or len(comment.encode("utf-8", "replace")) > MAX_COMMENT:
        raise WanlabError(f"Comment {shorten(comment, 60)} holds a NUL or more than {MAX_COMMENT >> 20} MB")
    try:
        comment.encode()
    except UnicodeEncodeError:
        raise WanlabError(f"Comment {shorten(comment, 60)} is not valid Unicode (a lone surrogate)") from None


@contextmanager
def _finished(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes otherwise."""
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        container = av.open(os.path.abspath(path), metadata_errors="replace")  # absolute: "a:b.mp4" is no protocol
    except (FileNotFoundError, IsADirectoryError):
        raise _missing(path) from None
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from None
    with container:
        if not container.streams.video:
            raise _unreadable(path, "it holds no video")
        yield container


def _comment(container: Any, path: Path) -> str:
    return _capped(container.metadata.get("comment", ""), path)


def _capped(comment: str, path: Path) -> str:
    if len(comment) > MAX_COMMENT:
        raise _unreadable(path, f"its comment is longer than {MAX_COMMENT >> 20} MB")
    return comment


def _missing(path: Path) -> WanlabError:
    return WanlabError(f"{path} does not exist or is no file", remedy="Check the path")


def _unreadable(path: Path, reason: str) -> WanlabError:
    return WanlabError(f"{path} cannot be read: {reason}", remedy="Give an mp4 or PNG that is complete")
