"""Constants of TeaCache and MagCache for a model, measured on its own runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanlab import caches, stages
from wanlab.caches.teacache import changes, step_timesteps
from wanlab.errors import WanlabError, shorten, unknown
from wanlab.files import atomic_write
from wanlab.sites import Handle, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec
from wanlab.study._calibration import METHODS, Calibration
from wanlab.watch import Interrupts

ENOUGH = 50
"""Prompts from which on a polynomial of TeaCache no longer moves much, by what its users tell."""
_DEGREE = 4
Floats = NDArray[np.float64]


def calibrate(  # noqa: PLR0913 - a method's own settings are none of the spec's
    model: Any,
    prompts: Sequence[str],
    method: str,
    *,
    seeds: Sequence[int] = (0,),
    spec: GenerationSpec | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    save: str | Path | None = None,
) -> Calibration:
    """Run every prompt with every seed, uncached, and measure what `method` needs: "magcache" or "teacache".

    magcache: for each step and branch the mean over tokens of ||r_t|| / ||r_(t-1)||, r what the blocks add; over both
    experts, as published. teacache: for each expert the least-squares polynomial of degree 4 of the residual's relative
    L1 change by that of the time embedding, and one by that of its projection; where the signal depends on content, by
    the first block's modulated input. All in float32, whatever the model's dtype.
    spec: its settings, the model's own by default; no cache and branches one after another.
    on_progress(done, total) after every clip. `save`: a JSON file, written when all is done. Costs a generation
    without decoding for every prompt and seed. Interrupted, nothing stays attached and nothing is written.
    Raises WanlabError where a branch does not run at every step, for too few steps, and under a cache.
    """
    if method not in METHODS:
        raise unknown("method to calibrate", method, METHODS)
    if isinstance(prompts, str) or not prompts or not seeds:
        raise WanlabError(
            f"prompts = {shorten(prompts, 60)}, seeds = {shorten(seeds, 60)}", remedy="Give a list of each"
        )
    if cached := [name for name in model.attachments() if name.endswith(": cache")]:
        raise WanlabError(
            f"A cache is attached to {model.id} ({cached[0]}), and constants are measured without one",
            remedy="Leave its `with` block first, or call its handle's remove()",
        )
    base = (model.spec() if spec is None else spec).with_(cache="none", batch_branches=False)
    run = caches.Run.of(model, base.resolve(model))
    names = _branches(run, method)
    if method == "teacache" and len(prompts) < ENOUGH:
        warnings.warn(f"{len(prompts)} prompts: polynomials of fewer than {ENOUGH} are unstable", stacklevel=2)
    clips = []
    for prompt in prompts:
        for seed in seeds:
            clips.append(_measure(model, base.with_(prompt=prompt, seed=seed), names, method))
            if on_progress is not None:
                on_progress(len(clips), len(prompts) * len(seeds))
    found = _calibration(run, names, method, clips, (len(prompts), len(seeds)))
    if save is not None:
        atomic_write(save, found.to_json())
    return found


def _branches(run: caches.Run, method: str) -> tuple[str, ...]:
    """The branches that are measured: the first two of the run."""
    names = run.branch_names[:2]
    for name in names:
        if not all(name in step for step in run.branches):
            raise WanlabError(
                f"The branch {name} does not run at every step, and constants are measured from step to step",
                remedy="Calibrate with plain guidance: spec=model.spec(guidance='cfg')",
            )
    least = 2 if method == "magcache" else _DEGREE + 2
    for expert in dict.fromkeys(run.experts):
        if method == "teacache" and not run.model.cache_signal:
            raise WanlabError(f"What TeaCache's signal is for {run.model.id} is not known", choices=["magcache"])
        if (num := len(run.steps_of(expert))) < least:
            raise WanlabError(f"{expert} runs {num} steps, and {method} needs {least}", remedy="Give more num_steps")
    return names


@dataclass
class _Recorder:
    """Numbers of one clip by branch and step, kept on the device until the clip is done."""

    model: Any
    names: tuple[str, ...]
    by_content: bool
    ctx: StepContext | None = None
    residuals: dict[str, Tensor] = field(default_factory=dict)
    signals: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """(branch, step) -> (ratio, residual's change, signal's change)."""

    def begin(self, ctx: StepContext) -> None:
        self.ctx = ctx

    def around(self, stack: Stack, call: Callable[..., Streams], streams: Streams, span: dict[str, Any]) -> Streams:
        after, ctx = call(streams, **span), self.ctx
        if ctx is None or ctx.branch not in self.names or span.get("stop") is not None or span.get("start"):
            return after
        name, stream = ctx.branch, stack.outputs[0]
        residual = after.tokens[stream].float() - streams.tokens[stream].float()
        signal = self.model.modulated_input(streams, ctx.expert).float() if self.by_content else None
        before = self.residuals.get(name)
        if before is not None:
            ratio = (residual.norm(dim=-1) / before.norm(dim=-1)).mean()
            moved = _relative(signal, self.signals[name]) if signal is not None else torch.zeros_like(ratio)
            self.rows[name, ctx.step] = torch.stack([ratio, _relative(residual, before), moved])
        self.residuals[name] = residual
        if signal is not None:
            self.signals[name] = signal
        return after


def _relative(now: Tensor, before: Tensor) -> Tensor:
    return (now - before).abs().mean() / before.abs().mean()


@contextmanager
def _recording(model: Any, recorder: _Recorder) -> Iterator[None]:
    """The recorder outside the cache layer of every expert's stack while inside."""
    handles: list[Handle] = []
    handle = Handle.join(handles)
    with Interrupts() as interrupts:
        try:
            handles.append(model.on_begin(recorder.begin))
            for stack in model.stacks.values():
                handles.append(stack.site.wrap(_wrapper(recorder, stack), "recorder"))
            with interrupts.let_through():
                yield
        finally:
            handle.remove()


def _wrapper(recorder: _Recorder, stack: Stack) -> Callable[..., Streams]:
    def record(call: Callable[..., Streams], streams: Streams, **span: Any) -> Streams:
        return recorder.around(stack, call, streams, span)

    return record


def _measure(model: Any, spec: GenerationSpec, names: tuple[str, ...], method: str) -> Floats:
    """(branches, num_steps - 1, 3) of one clip."""
    recorder = _Recorder(model, names, method == "teacache" and model.cache_signal == "content")
    text, conditions = stages.encode_text(model, spec), stages.encode_conditions(model, spec)
    with _recording(model, recorder):
        stages.denoise(model, spec, text, conditions)
    steps = sorted({step for _, step in recorder.rows})
    rows = torch.stack([torch.stack([recorder.rows[name, step] for step in steps]) for name in names])
    return np.asarray(rows.double().cpu().numpy())


def _calibration(
    run: caches.Run, names: tuple[str, ...], method: str, clips: list[Floats], counts: tuple[int, int]
) -> Calibration:
    every = np.stack(clips)  # (clips, branches, num_steps - 1, 3)
    spec = run.spec
    facts: dict[str, Any] = {
        "method": method,
        "model": run.model.id,
        "fingerprint": run.model.fingerprint,
        "sampler": spec.sampling.sampler,
        "num_steps": run.num_steps,
        "flow_shift": spec.sampling.flow_shift,
        "guidance": spec.guidance.method,
        "guidance_scale": spec.guidance.guidance_scale,
        "size": (spec.size.width, spec.size.height, spec.size.num_frames),
        "num_prompts": counts[0],
        "num_seeds": counts[1],
        "branches": names,
        "experts": run.experts,
        "ratios": _rounded(every[..., 0].mean(0)),
        "spread": _rounded(every[..., 0].std(0)),
        "residual_changes": _rounded(every[..., 1].mean((0, 1))),
    }
    if method == "teacache":
        facts |= _polynomials(run, every)
    return Calibration.of(facts)


def _rounded(values: Floats) -> Any:
    return np.round(values, 5).tolist()


def _polynomials(run: caches.Run, every: Floats) -> dict[str, Any]:
    """Coefficients by expert, and the changes of the signal that they are of."""
    if run.model.cache_signal == "content":
        return {
            "signal_changes": _rounded(every[..., 2].mean((0, 1))),
            "coefficients": {run.experts[0]: _fit(every[..., 2], every[..., 1])},
        }
    timesteps, found = step_timesteps(run), {}
    for name, projected in (("coefficients", False), ("ret_coefficients", True)):
        signals = np.zeros(run.num_steps)
        for expert in dict.fromkeys(run.experts):
            own = run.steps_of(expert)
            rows = run.model.time_embeddings(timesteps[own], expert, projected=projected)
            signals[own] = changes(rows, len(own))
            moved = every[:, :, np.array(own[1:]) - 1, 1]
            fit = _fit(np.broadcast_to(signals[own[1:]], moved.shape), moved)
            found.setdefault(name, {})[expert] = fit
        found[name.replace("coefficients", "signal_changes")] = signals[1:].tolist()
    return found


def _fit(signal: Floats, moved: Floats) -> list[float]:
    """Least squares over all clips, branches and steps, highest power first."""
    return [float(value) for value in np.polyfit(signal.ravel(), moved.ravel(), _DEGREE)]


def read_calibration(path: str | Path) -> Calibration:
    """A calibration that was saved. Raises WanlabError for a file that holds none."""
    file = Path(path)
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WanlabError(f"{file} cannot be read as a calibration: {error}", remedy="Give what `save` wrote") from None
    return Calibration.of(data, str(file))
