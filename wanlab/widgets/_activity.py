"""What a panel shows of its jobs: stages with times, a bar, a look at the latents, the queue."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from PIL import Image

from wanlab.inline import ellipsis, enlargement

if TYPE_CHECKING:
    from wanlab.jobs import Job

_WORTH_SAYING = 0.05  # seconds of a stage
_QUALITY = 80  # of the animated WebP; it lives for a fifth of a second


class Activity(widgets.VBox):
    """Progress of the running job, previews of its clip, and the jobs that wait. Hidden while there is nothing."""

    def __init__(self, cancel: Callable[[Job], None]) -> None:
        self._cancel = cancel
        self._bar = widgets.FloatProgress(min=0, max=1, layout={"width": "100%", "margin": "2px 0"})
        self._text = widgets.HTML()
        self._stages = widgets.HTML()
        self._preview = widgets.Image(format="webp", layout={"display": "none"})
        self._preview.add_class("wanlab-preview")
        self._queue = widgets.VBox()
        self._waiting: list[Job] = []
        texts = widgets.VBox([self._text, self._bar, self._stages, self._queue], layout={"flex": "1 1 260px"})
        row = widgets.Box([texts, self._preview], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        row.add_class("wanlab-activity")
        super().__init__([row], layout={"display": "none"})

    def show(self, jobs: Sequence[Job]) -> None:
        """Show the unfinished jobs of the panel, the first of which runs or is the next to run."""
        if not jobs:
            self.clear()
            return
        self.layout.display = None
        progress = jobs[0].progress
        ahead = f", behind {jobs[0].ahead} other" if jobs[0].ahead else ""
        self._bar.value = progress.fraction
        self._text.value = f"<b>{html.escape(str(progress) + ahead)}</b>"
        stages = (f"{name} {seconds:.1f} s" for name, seconds, _ in progress.stages if (seconds or 0) >= _WORTH_SAYING)
        self._stages.value = f'<span class="wanlab-quiet">{html.escape(" · ".join(stages))}</span>'
        self._show_queue(list(jobs[1:]))

    def _show_queue(self, waiting: list[Job]) -> None:
        if waiting == self._waiting:
            return
        self._waiting = waiting
        self._queue.children = [self._queued(i, job) for i, job in enumerate(waiting, 1)]

    def _queued(self, place: int, job: Job) -> Any:
        text = f"{place}. {ellipsis(job.spec.text.prompt, 80)} · seed {job.spec.sampling.seed}"
        button = widgets.Button(icon="times", tooltip="Take this one out of the queue", layout={"width": "34px"})
        button.add_class("wanlab-small")
        button.on_click(lambda _: self._cancel(job))
        label = widgets.HTML(f'<span class="wanlab-quiet">{html.escape(text)}</span>', layout={"flex": "1 1 auto"})
        label.add_class("wanlab-text")
        return widgets.Box([button, label], layout={"align_items": "center"})

    def look(self, frames: np.ndarray, fps: float) -> None:
        """Show preview frames (T, h, w, 3) uint8 as a moving picture."""
        height, width = frames.shape[1:3]
        times = enlargement(height, width)
        self._preview.value = animated(frames, fps)
        self._preview.width, self._preview.height = str(width * times), str(height * times)
        self._preview.layout.display = None

    def clear(self) -> None:
        """Show nothing; the last preview is forgotten too, so that no notebook keeps it."""
        self.layout.display = "none"
        self._preview.layout.display = "none"
        self._preview.value = b""
        self._show_queue([])


def animated(frames: np.ndarray, fps: float) -> bytes:
    """Frames (T, h, w, 3) uint8 as an animated WebP that loops."""
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    duration = max(20, round(1000 / fps))  # browsers slow down what is faster
    options: dict[str, Any] = {"quality": _QUALITY, "method": 0}
    pictures[0].save(file, "webp", save_all=True, append_images=pictures[1:], duration=duration, loop=0, **options)
    return file.getvalue()
