"""Run points that may share work: encode, denoise together, decode and save each as soon as it is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from wanlab import pipeline, stages
from wanlab.models import Model
from wanlab.result import Result
from wanlab.spec import GenerationSpec
from wanlab.sweeps._batch import denoise_batch
from wanlab.sweeps._checkpoint import Checkpoints
from wanlab.sweeps._claimed import Claimed
from wanlab.sweeps._models import Models
from wanlab.sweeps._together import Finished, Together, denoise_together
from wanlab.sweeps._watching import Watching
from wanlab.watch import Interrupts


class Measured:
    """Seconds of a run's stages and the peak of memory, as `pipeline.record_of` reads them."""

    def __init__(self, seconds: dict[str, float], peak_bytes: int) -> None:
        self.seconds = seconds
        self.peak_bytes = peak_bytes


class Group:
    """Claimed points of one group key on their model.

    What one of them does wrong ends it alone: the others go on. `interrupts`, which the caller entered before it
    claimed anything, act in the stages only, so that what ended is also noted. With `every`, states are saved in
    `folder` each so many steps.
    """

    def __init__(
        self, model: Model, models: Models, watch: Watching, interrupts: Interrupts, folder: Path, every: int | None
    ) -> None:
        self._model, self._models, self._watch, self._interrupts = model, models, watch, interrupts
        self._folder, self._every = folder, every
        self._seconds: dict[str, float] = {}

    def run(self, left: dict[str, Claimed]) -> None:
        """Run claimed points, by their run ids; each is taken out as it ends. Raises what ends all that are left."""
        specs, text, conditions = self._encoded(left)
        checkpoint = Checkpoints(self._folder, self._model.fingerprint, self._every)
        together = denoise_together(self._model, specs, text, conditions, watch=self._watch, checkpoint=checkpoint)
        done = self._watch.forwards()
        self._watch.forwards = lambda: done + together.executed
        try:
            self._denoise(left, together)
        finally:
            executed = done + together.executed
            self._watch.forwards = lambda: executed  # without the states of what was stopped
        shutil.rmtree(self._folder, ignore_errors=True)  # all have ended: nobody goes on from there

    def run_batch(self, left: dict[str, Claimed]) -> None:
        """As `run`, for points that differ in the seed alone, as one batch."""
        specs, text, conditions = self._encoded(left)
        done = self._watch.forwards()
        with self._interrupts.let_through():
            found = denoise_batch(self._model, specs, text, conditions, self._watch)
        self._watch.forwards = lambda: done + sum(sum(ran["forwards"].values()) for _, _, ran in found)
        for one in found:
            self._finish(left[one[0]], one)
            del left[one[0]]

    def _encoded(self, left: Mapping[str, Claimed]) -> tuple[dict[str, GenerationSpec], Any, Any]:
        """The specs, and what they are all steered by."""
        specs = {run: member.task.spec for run, member in left.items()}
        first = next(iter(specs.values()))
        if self._model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._model.device)
        with self._timed("text", first):
            text = self._models.text(self._model, list(specs.values()))
        with self._timed("conditions", first):
            conditions = self._models.conditions(self._model, first)
        return specs, text, conditions

    def _denoise(self, left: dict[str, Claimed], together: Together) -> None:
        while left:
            try:
                with self._interrupts.let_through():
                    found = next(together, None)
            except Exception as error:
                if not together.lost:
                    raise
                for run in together.lost:
                    left[run].fail(error)
                    del left[run]
                continue
            if found is None:
                return
            self._finish(left[found[0]], found)
            del left[found[0]]

    def _finish(self, member: Claimed, found: Finished) -> None:
        """Decode and save a point. Raises what stops all, and the point is in hand then."""
        try:
            member.save(self._result(member, found), self._interrupts)
        except Exception as error:  # noqa: BLE001 - told in the run's record
            member.fail(error)

    def _result(self, member: Claimed, found: Finished) -> Result:
        model, spec, (_, latents, ran) = self._model, member.task.spec, found
        took = ran["shared"].pop("seconds")
        seconds = {**self._seconds, "denoise": took["denoise"]}
        with self._timed("decode", spec, seconds):
            media = stages.decode(model, spec, latents, self._watch.part)
        with self._timed("post", spec, seconds):
            media = stages.post(spec, media, self._watch.part)
        seconds["total"] = sum(seconds.values())
        seconds["shared"] = took["shared"]
        ran |= {"text_tokens": model.count_tokens(spec), "attachments": []}
        what = {"spec": spec.resolve(model).to_dict(), "ran": ran}
        measured = Measured(seconds, pipeline.peak_bytes(model.device))
        record = pipeline.record_of(model, spec, what, measured, member.started)
        return Result(media.frames, latents.to("cpu", torch.float32), spec, record, media.fps, audio=media.audio)

    @contextmanager
    def _timed(self, stage: str, spec: GenerationSpec, seconds: dict[str, float] | None = None) -> Iterator[None]:
        """Time a stage, the device's queue included; `seconds` is by default what all points of the group have."""
        self._watch.check()
        with (
            stages.held(self._model, spec, self._interrupts, self._watch.check),
            self._model.checking(self._watch.check),
            self._interrupts.let_through(),
        ):
            started = time.perf_counter()
            yield
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)
            (self._seconds if seconds is None else seconds)[stage] = time.perf_counter() - started
