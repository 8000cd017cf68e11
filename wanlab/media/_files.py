"""Picture, video and sound files of anybody: opened by their content, by the decoders of known formats alone."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wanlab.errors import WanlabError
from wanlab.video import Frames, to_rgb

Kind = Literal["image", "video", "mask", "audio"]
# The others of Pillow run programs (EPS) or are no pictures that anybody would give; the others of FFmpeg are playlists
# that name further files and addresses, and text (tty) that it draws.
_PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,wav,mp3,flac,aac"
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # in the others, further pictures are pages or views
_SUFFIXES = {"jpeg": ".jpg", "mpo": ".jpg", "tiff": ".tif"}
_SERVES: dict[Kind, tuple[Kind, ...]] = {
    "image": ("image",),
    "video": ("video",),
    "mask": ("mask", "image", "video"),
    "audio": ("audio", "video"),
}
_REMEDY = "Give a PNG, JPEG, WebP, GIF, mp4, webm or wav that is complete"


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what decoders say about a damaged or oversized file into WanlabError."""
    import av
    from PIL import Image

    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise WanlabError(
            f"{name} has more pixels than a picture should: {error}", remedy="Make it smaller first"
        ) from None
    except WanlabError:
        raise
    except (av.FFmpegError, OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise WanlabError(f"{name} cannot be read: {error}", remedy=_REMEDY) from None


@contextmanager
def picture(path: Path, name: str) -> Iterator[Any]:
    """The open Pillow image, undecoded; None for a file that is no picture. Errors inside name the file."""
    from PIL import Image, UnidentifiedImageError

    with reading(name):
        Image.init()
        try:
            image = Image.open(path, formats=[form for form in _PICTURES if form in Image.OPEN])
        except UnidentifiedImageError:
            image = None
        if image is None:
            yield None
            return
        with image:
            yield image


@contextmanager
def container(path: Path, name: str) -> Iterator[Any]:
    """The open PyAV container of a file with video or sound. Errors inside name the file."""
    import av

    with reading(name):
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        absolute = os.path.abspath(path)  # "a:b.mp4" is no protocol
        try:
            opened = av.open(absolute, metadata_errors="replace", options=options)
        except (av.FFmpegError, OSError):
            raise WanlabError(f"{name} is no picture, video or sound that can be read", remedy=_REMEDY) from None
        with opened:
            yield opened


def is_animation(image: Any) -> bool:
    """Whether a picture file moves, and so is a video."""
    return image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1


def rgb(image: Any) -> Frames:
    """(H, W, 3) uint8 of a Pillow image: turned as its EXIF says, on white where it is transparent, 16 bits as 8."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65_535:
            raise WanlabError(f"A picture has grey values {grey.min()} to {grey.max()}", remedy="Give 8 or 16 bits")
        return np.repeat(((grey * 255 + 32_767) // 65_535).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise WanlabError("A picture holds floating-point numbers", remedy="Give one of 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def frame_rgb(frame: Any, size: tuple[int, int]) -> Frames:
    """(H, W, 3) uint8 of a PyAV frame, cut to (height, width): on white where it is transparent, turned as the file
    says."""
    from PIL import Image

    if any(component.is_alpha for component in frame.format.components):
        pixels = rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        pixels = to_rgb(frame)
    return np.ascontiguousarray(np.rot90(pixels[: size[0], : size[1]], round(frame.rotation / 90)))


def check_kind(found: Kind, wanted: Kind, name: str) -> None:
    """Raise `WanlabError` where media cannot serve as another kind; a mask may be a picture or a video."""
    if found not in _SERVES[wanted]:
        words = {"image": "a picture", "video": "a video", "audio": "sound", "mask": "a mask, picture or video"}
        raise WanlabError(f"{name} is {words[found]}, not {words[wanted]}", remedy=f"Give {words[wanted]}")


def recognise(path: Path, name: str) -> tuple[Kind, str]:
    """Kind and suffix from the content, of which the first picture or sound is decoded; what it is called says nothing.

    Raises WanlabError, naming `name`, for an empty file, for anything but media and for what cannot be decoded.
    """
    with reading(name):
        if path.stat().st_size == 0:
            raise WanlabError(f"{name} is empty", remedy=_REMEDY)
    with picture(path, name) as image:
        if image is not None:
            image.load()
            form = image.format.lower()
            return ("video" if is_animation(image) else "image"), _SUFFIXES.get(form, f".{form}")
    with container(path, name) as opened:
        forms = opened.format.name.split(",")
        suffix = ".mp4" if "mp4" in forms else f".{forms[0]}"
        for streams, kind in ((opened.streams.video, "video"), (opened.streams.audio, "audio")):
            # a cover picture is no video
            real = [s for s in streams if not s.disposition & s.disposition.attached_pic]
            if real and next(opened.decode(real[0]), None) is not None:
                return kind, suffix  # type: ignore[return-value]
            if real:
                raise WanlabError(f"{name} holds no {'frame' if kind == 'video' else 'sound'}", remedy=_REMEDY)
    raise WanlabError(f"{name} holds no picture, video or sound", remedy=_REMEDY)
