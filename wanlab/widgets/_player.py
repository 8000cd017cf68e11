"""The live player of a comparison: the kernel's end of what `player/*.js` shows.

Pictures and numbers travel as custom messages, never as traits: a saved notebook holds none of them, and any number of
views may ask for them, after a reload too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from wanlab import metrics
from wanlab.study.side_by_side import Comparison
from wanlab.widgets._master import Cell, encode_master

_FOLDER = Path(__file__).parent / "player"
_SCRIPTS = ("source.js", "stage.js", "timeline.js", "controls.js", "player.js")  # one module, joined in this order


class Player(anywidget.AnyWidget):
    """Players of all clips of a comparison, drawn from one video; `send_media()` gives it what it shows.

    Messages from a view: {"type": "ready"} asks for the media; {"type": "pixel", "view", "frame", "x", "y"} for exact
    values, x and y from 0 to 1 as the clips may differ in size.
    """

    _esm = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    _css = (_FOLDER / "player.css").read_text("utf-8")
    key = traitlets.Unicode().tag(sync=True)
    """Names the plain video that stays in the notebook and is hidden while a view is there."""

    def __init__(self, comparison: Comparison, key: str) -> None:
        super().__init__(key=key)
        self._clips = [r.frames for r in comparison.results]
        master = encode_master(comparison)
        self._data = master.data
        self._facts = {
            "type": "media",
            "mime": master.mime,
            "fps": comparison.fps,
            "numFrames": master.num_frames,
            "scale": master.scale,
            "code": master.code,
            "clips": [
                _clip(comparison, i, cell, difference)
                for i, (cell, difference) in enumerate(zip(master.cells, master.differences, strict=True))
            ],
        }
        self.on_msg(self._on_message)

    def send_media(self) -> None:
        """Send the video and what is known about the clips to all views there are, or will be in a moment."""
        self.send(self._facts, [self._data])

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "ready":
            self.send_media()
        elif kind == "pixel":
            self.send({**content, "values": self._pixels(content)})

    def _pixels(self, asked: dict[str, Any]) -> list[list[int]]:
        """RGB of each clip at a place (x, y), from 0 to 1, of a frame; shorter clips hold their last."""
        values = []
        for clip in self._clips:
            frame, row, column = (
                min(max(int(value), 0), size - 1)
                for value, size in (
                    (asked["frame"], clip.shape[0]),
                    (float(asked["y"]) * clip.shape[1], clip.shape[1]),
                    (float(asked["x"]) * clip.shape[2], clip.shape[2]),
                )
            )
            values.append(clip[frame, row, column].tolist())
        return values

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["text/plain"] = ""  # the plain video is what other programs show
        return bundle


def _clip(comparison: Comparison, index: int, cell: Cell, difference: Cell | None) -> dict[str, Any]:
    frames = comparison.results[index].frames
    return {
        "label": comparison.labels[index],
        "numFrames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "cell": cell,
        "difference": difference,
        "distances": _numbers(comparison.per_frame[index]),
    }


def _numbers(distances: metrics.FrameDistances | None) -> dict[str, list[float | None]] | None:
    """Per frame, with what the screen shows; None stands for the infinite PSNR of an equal frame."""
    if distances is None:
        return None
    finite = np.isfinite(distances.psnr)
    return {
        "psnr": [round(float(v), 2) if known else None for v, known in zip(distances.psnr, finite, strict=True)],
        "mean": [round(float(v), 3) for v in distances.mean_abs_diff],
        "max": [int(v) for v in distances.max_abs_diff],
    }
