"""`generate`: the stages in order, timed, with the model held for one generation at a time."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from wanlab import caches, runs, stages
from wanlab.errors import WanlabError, shorten
from wanlab.models import Model
from wanlab.result import Result
from wanlab.sampling import OnStep
from wanlab.spec import GenerationSpec
from wanlab.stages import held
from wanlab.watch import Interrupts, Lines, Watch


def generate(
    model: Any, spec: GenerationSpec | None = None, /, *, on_step: OnStep | None = None, **changes: Any
) -> Result:
    """Make one sample: `generate(model, prompt="...", seed=7)`, or from a spec, or from a spec and changes to it.

    The spec alone decides the outcome. Waits while another thread uses the model. `on_step(step, sigma, latents,
    denoised)` is called after each step. On Ctrl-C or an error nothing stays attached and the next run equals a fresh
    one. A long run tells its progress on stderr, or in one line of a live notebook. Raises WanlabError for a setting
    the model cannot follow.
    """
    spec = full_spec(model, spec, **changes)
    with Watch(on_step, Lines()) as watch:
        return run(model, spec, watch)


def full_spec(model: Any, spec: GenerationSpec | None = None, /, **changes: Any) -> GenerationSpec:
    """The spec with `changes`; without a spec, the model's default with `changes`.

    Raises WanlabError for a model that is not loaded and for anything but a spec.
    """
    if not isinstance(model, Model):
        raise WanlabError(f"{shorten(model)} is not a loaded model", remedy="Pass what wanlab.load(...) returns")
    if spec is not None and not isinstance(spec, GenerationSpec):
        raise WanlabError(
            f"{shorten(spec)} is not a spec",
            remedy="Name what it is, generate(model, prompt=...), or pass a spec: model.spec(...), result.spec",
        )
    return model.canonical(model.spec(**changes) if spec is None else spec.with_(**changes))


def checked(model: Any, spec: GenerationSpec) -> GenerationSpec:
    """The resolved spec; raises WanlabError for whatever can be known to be wrong before the run."""
    if spec.memory.on_oom == "retry":
        raise WanlabError("memory.on_oom = 'retry' does not exist yet", choices=["fail"])
    resolved = spec.resolve(model)
    model.check_start(resolved)
    model.check_media(resolved)
    caches.check(model, resolved)
    return resolved


def run(model: Any, spec: GenerationSpec, watch: Watch) -> Result:
    """`generate` for a full spec and a watch that the caller has entered; raises `Cancelled` when the watch says so."""
    resolved = checked(model, spec)
    num_steps = len(model.experts(resolved))
    watch.expect((model.id, str(model.device), *model.latent_shape(resolved)), num_steps)
    started = runs.now()
    with (
        Interrupts() as interrupts,
        held(model, spec, interrupts, watch.check),
        model.checking(watch.check),
        Gauge(model.device, watch) as gauge,
        interrupts.let_through(),
    ):
        attachments = model.attachments()
        with gauge.stage("text"):
            text = stages.encode_text(model, spec)
        with gauge.stage("conditions"):
            conditions = stages.encode_conditions(model, spec)
        with gauge.stage("denoise", num_steps):
            latents, ran = stages.denoise_recorded(model, spec, text, conditions, on_step=watch.on_step)
        with gauge.stage("decode"):
            media = stages.decode(model, spec, latents, watch.part)
        with gauge.stage("post"):
            media = stages.post(spec, media, watch.part)
        latents = latents.to("cpu", torch.float32)
    ran |= {"text_tokens": model.count_tokens(spec), "attachments": attachments}
    record = record_of(model, spec, {"spec": resolved.to_dict(), "ran": ran}, gauge, started)
    return Result(media.frames, latents, spec, record, media.fps, audio=media.audio)


class Measured(Protocol):
    """What a generation took."""

    seconds: dict[str, float]
    peak_bytes: int


def record_of(
    model: Any, spec: GenerationSpec, what: dict[str, Any], measured: Measured, started: str
) -> runs.RunRecord:
    """What run.json will hold of a generation that has just ended well; `what` is its resolved spec and what ran."""
    return runs.RunRecord(
        id=runs.run_id(spec.id, model.fingerprint),
        status="ok",
        spec=spec.to_dict(),
        resolved=what,
        seeds=[spec.sampling.seed],
        fingerprint=model.fingerprint,
        timings=measured.seconds,
        peak_bytes=measured.peak_bytes,
        env=runs.environment(),
        started=started,
        ended=runs.now(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )


class Gauge:
    """Seconds of each stage and the peak of memory; entered around a generation, `stage(name)` around its parts."""

    def __init__(self, device: torch.device, watch: Watch) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes = 0
        self._device, self._watch = device, watch
        self._started = 0.0

    def __enter__(self) -> Gauge:
        self._started = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds["total"] = time.perf_counter() - self._started
        self.peak_bytes = peak_bytes(self._device)

    @contextmanager
    def stage(self, name: str, num_steps: int = 0) -> Iterator[None]:
        """Time a stage, the device's queue included; raises `Cancelled` before it if the watcher asked for that."""
        self._watch.enter(name, num_steps)
        started = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] = time.perf_counter() - started


def peak_bytes(device: torch.device) -> int:
    """Peak bytes allocated on a GPU since its last reset; on the CPU, the process's largest resident size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
