"""Pictures and videos for both sides, held in memory: what is measured starts at pixels, not at files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from wanlab import media
from wanlab.spec import MediaRef


class Inputs:
    """Smooth random media of a row's size: `kind` is none, image or control."""

    def __init__(self, kind: str, size: tuple[int, int, int]) -> None:
        self.kind = kind
        height, width, num_frames = size
        count = {"none": 0, "image": 1, "control": num_frames}[kind]
        first, last = (self._picture(seed, width, height) for seed in (1, 2))
        blends = (Image.blend(first, last, i / max(count - 1, 1)) for i in range(count))
        self.frames = np.stack([np.asarray(b) for b in blends]) if count else np.empty((0, height, width, 3), np.uint8)

    @staticmethod
    def _picture(seed: int, width: int, height: int) -> Image.Image:
        small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    def for_wanlab(self) -> dict[str, Any]:
        """Settings of a spec; to be read inside `readable`."""
        if self.kind == "image":
            return {"image": MediaRef(sha256="1" * 64, kind="image")}
        return {"video": MediaRef(sha256="2" * 64, kind="video")} if self.kind == "control" else {}

    def for_diffusers(self) -> dict[str, Any]:
        """Arguments of a pipeline's call."""
        if self.kind == "image":
            return {"image": Image.fromarray(self.frames[0])}
        return {"video": [Image.fromarray(frame) for frame in self.frames]} if self.kind == "control" else {}

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Let wanlab read these media without files."""
        with mock.patch.multiple(media, read_image=self._image, read_video=self._video):
            yield

    def _image(self, ref: MediaRef) -> np.ndarray:
        return self.frames[0]

    def _video(self, ref: MediaRef, fps: float, num_frames: int) -> np.ndarray:
        return self.frames[:num_frames]
