"""A picture, video, mask or sound given to a model, known by its content."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from wanlab.spec.part import Part, Unhashed


class MediaRef(Part):
    """Names stored media by content; the file itself lies in a media store or in a result's folder."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the stored file's bytes, in lower-case hexadecimal."""
    name: Annotated[str, Field(max_length=255), Unhashed()] = ""
    """The file's name when it was given; for people, it changes no result."""
    kind: Literal["image", "video", "mask", "audio"]
    """What the file holds."""
    start: Annotated[float, Field(ge=0)] | None = None
    """First second used; None is the beginning."""
    end: PositiveFloat | None = None
    """Second at which the used part ends; None is the end."""
    fps: PositiveFloat | None = None
    """Frames a second to read a video at; None is the file's own."""
