"""What a point will take on this machine, from what earlier runs took, else from what a card can do."""

from __future__ import annotations

import contextlib
import socket
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wanlab import caches, runs, study
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.spec import GenerationSpec
from wanlab.study._cards import Card, find_card

_CLIP = "video.mp4"


@dataclass(frozen=True)
class Cost:
    """A figure and where it comes from; None is unknown, and the words say why."""

    value: float | None
    words: str


@dataclass(frozen=True)
class _Past:
    """What one earlier run took."""

    kind: tuple[Any, ...]
    forward: float | None
    """Seconds of denoising for each forward that was computed, those of a batch as one."""
    clip_bytes: int | None


class History:
    """Runs that ended well in a folder, as far as they tell about others like them on one device."""

    def __init__(self, out: str | Path | None, model_device: torch.device | None, card: str | Card | None) -> None:
        """`card`: the GPU that is asked about; without one it is the device of a model, else the present one."""
        self._out, self._card = out, card
        on_gpu = torch.cuda.is_available() if model_device is None else model_device.type == "cuda"
        self._gpu = torch.cuda.get_device_name(model_device if model_device else None) if on_gpu else None
        self._runs = [] if out is None else list(self._read(Path(out)))

    def _read(self, out: Path) -> Iterator[_Past]:
        for file in sorted(out.glob(f"*/{runs.RUN_JSON}")):
            with contextlib.suppress(WanlabError, KeyError, TypeError, AttributeError):  # it may be foreign or torn
                record = runs.read_run(file.parent)
                if record.status == "ok" and self._is_here(record):
                    spec = GenerationSpec.from_json(record.resolved["spec"])
                    clip = next((a.bytes for a in record.artifacts if a.path == _CLIP), None)
                    yield _Past(kind_of(spec), _forward_seconds(record), clip)

    def _is_here(self, record: runs.RunRecord) -> bool:
        """Whether a run was on the device that is asked about; CPUs compare on one machine only."""
        gpu = record.env.get("gpu")
        if self._card is not None:
            wanted = self._card if isinstance(self._card, Card) else find_card(self._card)
            return isinstance(gpu, str) and wanted is not None and find_card(gpu) == wanted
        return bool(gpu == self._gpu and (gpu is not None or record.host == socket.gethostname()))

    def forward(self, model: Model, spec: GenerationSpec) -> Cost:
        """Seconds of a forward of a resolved spec: the median of earlier runs, else the card's floor, else unknown.

        Forwards of one batch count one by one, as forecasts do.
        """
        times = [past.forward for past in self._runs if past.kind == kind_of(spec) and past.forward is not None]
        if times:
            several = "an earlier run" if len(times) == 1 else f"the median of {len(times)} earlier runs"
            run = caches.Run.of(model, spec)
            batch = sum(map(len, run.branches)) / len(run.forwards)
            return Cost(statistics.median(times) / batch, f"{several} of this model, size, dtype and device")
        return _floor(model, spec, self._card)

    def clip(self, spec: GenerationSpec) -> Cost:
        """Bytes of the clip of a resolved spec: the mean of earlier runs of the same size, else unknown."""
        sizes = [past.clip_bytes for past in self._runs if past.kind == kind_of(spec) and past.clip_bytes is not None]
        if not sizes:
            return Cost(None, "unknown before a run of this size")
        return Cost(statistics.mean(sizes), f"guessed from {len(sizes)} earlier clip{'s' * (len(sizes) > 1)}")


def kind_of(spec: GenerationSpec) -> tuple[Any, ...]:
    """What resolved specs must have in common for their forwards to take about the same time."""
    size = spec.size
    shape = (size.width, size.height, size.num_frames)
    return (spec.model, *shape, spec.weights.dtype, spec.compile.compile_mode, spec.guidance.batch_branches)


def _forward_seconds(record: runs.RunRecord) -> float | None:
    ran = record.resolved["ran"]
    cache = ran.get("cache")
    count = cache["computed"] if isinstance(cache, Mapping) else sum(ran["forwards"].values())
    seconds = record.timings.get("denoise")
    return seconds / count if seconds and count else None


def _floor(model: Model, spec: GenerationSpec, card: str | Card | None) -> Cost:
    """The least time of a forward on a card, mean over the run; attention counts as dense."""
    found = study.estimate(model, spec.with_(cache="none"), card=card)
    name = next((name for name in ("measured", "peak") if name in found.floors), None)
    if name is None:
        why = next((note for note in found.notes if note.startswith("No floors")), "No floors of time.")
        return Cost(None, f"unknown: no earlier run of this model and size here. {why}")
    floor = found.floors[name]
    assert found.card is not None, "floors are a card's"
    words = f"a floor: {found.card.name} at its {name} rate ({floor.source}), everything else at no cost"
    return Cost(floor.run / found.num_forwards, words)
