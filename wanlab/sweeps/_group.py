"""Run points that may share work: encode, denoise together, decode and save each as soon as it is there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from wanlab import pipeline, stages
from wanlab.models import Model
from wanlab.result import Result
from wanlab.sweeps._checkpoint import Checkpoints
from wanlab.sweeps._claimed import Claimed
from wanlab.sweeps._models import Models
from wanlab.sweeps._together import Finished, denoise_together
from wanlab.sweeps._watching import Watching
from wanlab.watch import Cancelled


class Measured:
    """Seconds of a run's stages and the peak of memory, as `pipeline.record_of` reads them."""

    def __init__(self, seconds: dict[str, float], peak_bytes: int) -> None:
        self.seconds = seconds
        self.peak_bytes = peak_bytes


class Group:
    """Claimed points of one group key on their model.

    `run` ends each of them in some way. What one of them does wrong ends it alone: the others go on. Raises what stops
    all: KeyboardInterrupt, `Cancelled`.
    """

    def __init__(
        self, model: Model, models: Models, watch: Watching, checkpoints: Path, checkpoint_steps: int | None
    ) -> None:
        self._model, self._models, self._watch = model, models, watch
        self._folder, self._every = checkpoints, checkpoint_steps
        self._seconds: dict[str, float] = {}

    def run(self, members: Sequence[Claimed]) -> None:
        """Run claimed points; all of them are in hand before and none after."""
        left = {member.task.run: member for member in members}
        try:
            self._run(left)
        except (KeyboardInterrupt, Cancelled) as stop:
            why = stop if isinstance(stop, Cancelled) else Cancelled("Interrupted.")
            for member in left.values():
                member.fail(why)
            raise
        except Exception as error:  # noqa: BLE001 - of encoding, or a slip of ours: every run's record tells it
            for member in left.values():
                member.fail(error)

    def _run(self, left: dict[str, Claimed]) -> None:
        specs = {run: member.task.spec for run, member in left.items()}
        if self._model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._model.device)
        with self._timed("text"):
            text = self._models.text(self._model, list(specs.values()))
        with self._timed("conditions"):
            conditions = self._models.conditions(self._model, next(iter(specs.values())))
        checkpoint = Checkpoints(self._folder, self._model.fingerprint, self._every)
        together = denoise_together(self._model, specs, text, conditions, watch=self._watch, checkpoint=checkpoint)
        done = self._watch.forwards()
        self._watch.forwards = lambda: done + together.executed
        while left:
            try:
                found = next(together, None)
            except Exception as error:
                for run in together.lost:
                    left.pop(run).fail(error)
                if not together.lost:
                    raise
                continue
            if found is None:
                break
            self._finish(left.pop(found[0]), found)
        checkpoint.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _finish(self, member: Claimed, found: Finished) -> None:
        """Decode and save a point; it is in hand no more, in whatever way that ends."""
        try:
            member.save(self._result(member, found))
        except (KeyboardInterrupt, Cancelled) as stop:
            member.fail(stop if isinstance(stop, Cancelled) else Cancelled("Interrupted."))
            raise
        except Exception as error:  # noqa: BLE001 - told in the run's record
            member.fail(error)

    def _result(self, member: Claimed, found: Finished) -> Result:
        model, spec, (_, latents, ran) = self._model, member.task.spec, found
        took = ran.pop("seconds")
        seconds = {**self._seconds, "denoise": took["denoise"]}
        with self._timed("decode", seconds):
            media = stages.decode(model, spec, latents, self._watch.part)
        with self._timed("post", seconds):
            media = stages.post(spec, media, self._watch.part)
        seconds["total"] = sum(seconds.values())
        seconds["shared"] = took["shared"]
        ran |= {"text_tokens": model.count_tokens(spec), "attachments": []}
        what = {"spec": spec.resolve(model).to_dict(), "ran": ran}
        measured = Measured(seconds, pipeline.peak_bytes(model.device))
        record = pipeline.record_of(model, spec, what, measured, member.started)
        return Result(media.frames, latents.to("cpu", torch.float32), spec, record, media.fps, audio=media.audio)

    @contextmanager
    def _timed(self, stage: str, seconds: dict[str, float] | None = None) -> Iterator[None]:
        """Time a stage, the device's queue included; `seconds` is by default what all points of the group have."""
        self._watch.check()
        started = time.perf_counter()
        with self._model.checking(self._watch.check):
            yield
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        (self._seconds if seconds is None else seconds)[stage] = time.perf_counter() - started
