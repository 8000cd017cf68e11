"""What the spec's tests share: a model's defaults, a picture, caches that live in the tests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wanlab.spec import Part

DEFAULT = {"model": "wan_tiny", "size": {"width": 96, "height": 96, "num_frames": 33, "fps": 16}, "num_steps": 20}
PICTURE = {"sha256": "ab" * 32, "kind": "image", "name": "kite.png"}


class Periodic:
    """A cache that lives in this test."""

    class Options(Part):
        period: Annotated[int, Field(ge=1)] = 2
        threshold: float = 0.1
        layers: tuple[int, ...] = ()


class Strict:
    """A cache whose option has no default."""

    class Options(Part):
        mask: tuple[bool, ...]
