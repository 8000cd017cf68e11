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
from wanlab.widgets._closing import close

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
        self._rows: dict[Job, Any] = {}  # of the jobs that wait
        texts = widgets.VBox([self._text, self._bar, self._stages, self._queue], layout={"flex": "1 1 260px"})
        row = widgets.Box([texts, self._preview], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        row.add_class("wanlab-activity")
        super().__init__([row], layout={"display": "none"})

    def show(self, jobs: Sequence[Job]) -> None:
        """Show the unfinished jobs of the panel, the first of which runs or is the next to run."""
        if not jobs:
            self.clear()
            return
        progress = jobs[0].progress
        ahead = f", behind {jobs[0].ahead} other" if jobs[0].ahead else ""
        self._bar.value = progress.fraction
        self._text.value = f"<b>{html.escape(str(progress) + ahead)}</b>"
        stages = (f"{name} {seconds:.1f} s" for name, seconds, _ in progress.stages if (seconds or 0) >= _WORTH_SAYING)
        self._stages.value = f'<span class="wanlab-quiet">{html.escape(" · ".join(stages))}</span>'
        self._show_queue(list(jobs[1:]))
        self.layout.display = None  # last, or the times of the job before would be seen for a moment

    def _show_queue(self, waiting: list[Job]) -> None:
        if waiting == list(self._rows):
            return
        earlier, self._rows = self._rows, {job: self._rows.get(job) or self._row(job) for job in waiting}
        for place, (job, row) in enumerate(self._rows.items(), 1):
            text = f"{place}. {ellipsis(job.spec.text.prompt, 80)} · seed {job.spec.sampling.seed}"
            row.children[1].value = f'<span class="wanlab-quiet">{html.escape(text)}</span>'
        self._queue.children = list(self._rows.values())
        close(*(row for job, row in earlier.items() if job not in self._rows))

    def _row(self, job: Job) -> Any:
        button = widgets.Button(icon="times", tooltip="Take this one out of the queue", layout={"width": "34px"})
        button.add_class("wanlab-small")
        button.on_click(lambda _: self._cancel(job))
        label = widgets.HTML(layout={"flex": "1 1 auto"})
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
