"""How long a generation takes: every stage and step, repeated, warm-up apart, two specs in turns where they compare."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wanlab import runs, stages
from wanlab.details import in_words, telling
from wanlab.errors import WanlabError, shorten
from wanlab.models import Model
from wanlab.pipeline import checked, full_spec
from wanlab.sites import StepContext
from wanlab.spec import GenerationSpec
from wanlab.stages import held
from wanlab.study._clock import Clock, Peaks, gpu_state
from wanlab.watch import Interrupts

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("text", "conditions", "denoise", "decode", "post")


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one thing, in the order they were made."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, between samples where they fall there."""
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)

    @property
    def iqr(self) -> float:
        """From the first quartile to the third."""
        low, high = self.quartiles
        return high - low


@dataclass(frozen=True)
class Repeat:
    """One generation: seconds of each stage, and of each step from its first forward to the next one's."""

    stages: Mapping[str, float]
    steps: Mapping[int, float]
    """By number; a step that runs no forward is not here, and its time counts for the one before."""
    peak_allocated: int
    """Bytes that tensors took on the GPU at most; on the CPU, the process's largest size so far."""
    peak_reserved: int | None
    """Bytes that PyTorch held on the GPU at most, unused ones included; None on the CPU."""
    ran: Mapping[str, Any]
    """What really ran, as `Result.ran` has it."""


@dataclass(frozen=True)
class Speedup:
    """How much faster denoising is than under another spec, pair by pair of neighbouring runs."""

    realised: Samples
    """Seconds of the other spec over this one's."""
    ideal: float | None
    """What the caches' skipped forwards would give at no cost; None where no cache ran, or forwards differ too."""

    @property
    def efficiency(self) -> float | None:
        """Realised over ideal."""
        return None if self.ideal is None else self.realised.median / self.ideal

    def __str__(self) -> str:
        low, high = self.realised.quartiles
        text = f"{self.realised.median:.3f}x, quartiles {low:.3f} to {high:.3f}"
        if self.ideal is None:
            return text
        return f"{text}; ideal {self.ideal:.3f}x, efficiency {self.efficiency:.1%}"


@dataclass(frozen=True, eq=False)
class Timing:
    """What `measure` returns; shows itself as a table."""

    spec: GenerationSpec
    """Resolved."""
    repeats: tuple[Repeat, ...]
    warmup: tuple[Repeat, ...]
    """Runs before them, which count for nothing: loading, compiling, and the clock going up."""
    env: Mapping[str, Any]
    """Versions, device, and "clocks": the GPU's state before and after the measured runs."""
    against: Timing | None = None
    speedup: Speedup | None = None
    _label: str = field(default="", repr=False)

    @property
    def stages(self) -> dict[str, Samples]:
        """Seconds of each stage, and "total", their sum."""
        found = {name: Samples(tuple(r.stages[name] for r in self.repeats)) for name in STAGES}
        return {**found, "total": Samples(tuple(sum(r.stages.values()) for r in self.repeats))}

    @property
    def steps(self) -> dict[int, Samples]:
        """Seconds of each step, by number."""
        return {i: Samples(tuple(r.steps[i] for r in self.repeats)) for i in self.repeats[0].steps}

    @property
    def step(self) -> Samples:
        """Seconds of a step: all steps of all repeats."""
        return Samples(tuple(seconds for r in self.repeats for seconds in r.steps.values()))

    @property
    def peak_allocated(self) -> int:
        """Bytes, the most of all measured runs; see `Repeat`."""
        return max(r.peak_allocated for r in self.repeats)

    @property
    def peak_reserved(self) -> int | None:
        """Bytes, the most of all measured runs; None on the CPU."""
        held = [r.peak_reserved for r in self.repeats if r.peak_reserved is not None]
        return max(held, default=None)

    @property
    def kernels(self) -> str:
        """The attention functions that ran, joined by "+"."""
        return str(self.repeats[-1].ran["attention"])

    @property
    def frame(self) -> pd.DataFrame:
        """One line a sample: run, phase (warmup, measured), repeat, stage, step (-1 for a whole stage), seconds."""
        import pandas as pd

        lines = [line for timing in (self, self.against) if timing is not None for line in timing._lines()]
        return pd.DataFrame(lines, columns=["run", "phase", "repeat", "stage", "step", "seconds"])

    def _lines(self) -> Iterator[tuple[str, str, int, str, int, float]]:
        for phase, done in (("warmup", self.warmup), ("measured", self.repeats)):
            for i, repeat in enumerate(done):
                yield from ((self._label, phase, i, name, -1, value) for name, value in repeat.stages.items())
                yield from ((self._label, phase, i, "denoise", step, value) for step, value in repeat.steps.items())

    def to_dict(self) -> dict[str, Any]:
        """All samples as JSON data."""
        keys = ("stages", "steps", "peak_allocated", "peak_reserved", "ran")
        phases = {"repeats": self.repeats, "warmup": self.warmup}
        found = {
            "spec": self.spec.to_dict(),
            **{name: [{key: getattr(r, key) for key in keys} for r in done] for name, done in phases.items()},
            "env": dict(self.env),
            "against": None if self.against is None else self.against.to_dict(),
            "speedup": None
            if self.speedup is None
            else {
                "realised": self.speedup.realised.values,
                "ideal": self.speedup.ideal,
                "efficiency": self.speedup.efficiency,
            },
        }
        return dict(json.loads(json.dumps(found)))

    def _rows(self) -> Iterator[tuple[str, ...]]:
        timings = [timing for timing in (self, self.against) if timing is not None]
        yield ("median (IQR)", *(timing._label for timing in timings))
        for name in (*STAGES, "total"):
            yield (name, *(_seconds(timing.stages[name]) for timing in timings))
        yield ("a step", *(_seconds(timing.step) for timing in timings))
        yield ("peak allocated", *(f"{timing.peak_allocated / 1e9:.2f} GB" for timing in timings))
        if self.peak_reserved is not None:
            yield ("peak reserved", *(f"{(timing.peak_reserved or 0) / 1e9:.2f} GB" for timing in timings))
        yield ("attention", *(timing.kernels for timing in timings))

    def _facts(self) -> str:
        """The speed-up, and what was measured where."""
        env = self.env
        where = ", ".join(
            f"{name} {env[name]}" for name in ("gpu", "torch", "cuda", "diffusers", "wanlab") if env.get(name)
        )
        runs_made = f"{len(self.repeats)} runs after {len(self.warmup)} of warm-up; {where}"
        faster = "" if self.speedup is None else f"Denoising against the other spec: {self.speedup}. "
        return f"{faster}{runs_made}"

    def __str__(self) -> str:
        rows = list(self._rows())
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, self._facts()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = self._rows()
        heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        return f"<table><tr>{heads}</tr>{lines}</table><p>{html.escape(self._facts())}</p>"


def measure(
    model: Any,
    spec: GenerationSpec | None = None,
    *,
    repeats: int = 5,
    warmup: int = 2,
    against: GenerationSpec | None = None,
) -> Timing:
    """Generate `warmup` + `repeats` times and keep the seconds of every stage and step; the samples are thrown away.

    On a GPU by CUDA events, on the CPU by the clock. `against`: another spec of this model, run in turns with the
    first, which goes first every other time; `.speedup` then says how much faster denoising is than under it. Without
    warm-up, loading counts. Nothing else may use the device meanwhile; the model is held throughout.
    Raises WanlabError for counts that make no measurement, and as `generate` does; on Ctrl-C nothing stays attached.
    """
    _check_count("repeats", repeats, 1)
    _check_count("warmup", warmup, 0)
    asked = [full_spec(model, spec)]
    if against is not None:
        asked.append(full_spec(model, against))
    resolved = [checked(model, one) for one in asked]
    done: list[list[Repeat]] = [[] for _ in asked]
    clocks = {}
    with Interrupts() as interrupts, held(model, asked[0], interrupts), interrupts.let_through():
        for i in range(warmup + repeats):
            if i == warmup:
                clocks["before"] = gpu_state(model.device)
            for j in range(len(asked)) if i % 2 == 0 else reversed(range(len(asked))):
                done[j].append(_generation(model, asked[j]))
        clocks["after"] = gpu_state(model.device)
    env = {**runs.environment(), "device": str(model.device), "clocks": clocks}
    labels = _labels(asked)
    timings = [
        Timing(one, tuple(made[warmup:]), tuple(made[:warmup]), env, _label=label)
        for one, made, label in zip(resolved, done, labels, strict=True)
    ]
    if against is None:
        return timings[0]
    first, other = timings
    speedup = _speedup(first, other)
    return Timing(first.spec, first.repeats, first.warmup, env, other, speedup, first._label)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WanlabError(f"{name} = {shorten(value)} is no number of runs", remedy=f"Give {least} or more")


def _labels(specs: Sequence[GenerationSpec]) -> list[str]:
    """The settings in which two specs differ, each with its own values."""
    if len(specs) == 1:
        return ["spec"]
    differ = specs[0].diff(specs[1])
    found = [in_words({name: differ[name][i] for name in telling(set(differ), specs)}) for i in range(2)]
    return [found[0] or "spec", found[1] or "against"]


def _generation(model: Model, spec: GenerationSpec) -> Repeat:
    """One generation, timed."""
    clock, peaks = Clock(model.device), Peaks(model.device)
    steps: dict[int, Any] = {}

    def note(ctx: StepContext) -> None:
        if ctx.step not in steps:
            steps[ctx.step] = clock.mark()

    marks = [clock.mark()]
    text = stages.encode_text(model, spec)
    marks.append(clock.mark())
    conditions = stages.encode_conditions(model, spec)
    marks.append(clock.mark())
    with Interrupts() as interrupts, model.on_begin(note), interrupts.let_through():
        latents, ran = stages.denoise_recorded(model, spec, text, conditions)
    marks.append(clock.mark())
    media = stages.decode(model, spec, latents)
    marks.append(clock.mark())
    stages.post(spec, media)
    marks.append(clock.mark())
    clock.settle()
    ends = [*list(steps.values())[1:], marks[3]]
    allocated, reserved = peaks.read()
    return Repeat(
        stages={name: clock.seconds(*marks[i : i + 2]) for i, name in enumerate(STAGES)},
        steps={i: clock.seconds(start, end) for (i, start), end in zip(steps.items(), ends, strict=True)},
        peak_allocated=allocated,
        peak_reserved=reserved,
        ran=ran,
    )


def _speedup(first: Timing, other: Timing) -> Speedup:
    pairs = zip(first.repeats, other.repeats, strict=True)
    realised = Samples(tuple(theirs.stages["denoise"] / ours.stages["denoise"] for ours, theirs in pairs))
    return Speedup(realised, _ideal(first.repeats[-1].ran, other.repeats[-1].ran))


def _ideal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    """The ratio of both caches' ideal speed-ups; None without a cache, or where guidance asks for other forwards."""
    if ("cache" not in ours and "cache" not in theirs) or ours["forwards"] != theirs["forwards"]:
        return None
    mine, other = (float(ran["cache"]["ideal_speedup"]) if "cache" in ran else 1.0 for ran in (ours, theirs))
    return mine / other


def _seconds(samples: Samples) -> str:
    """The median in the largest unit that leaves it 1 or more, and the spread in the same."""
    unit, scale = next((u, s) for u, s in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if samples.median * s >= 1 or u == "µs")
    return f"{samples.median * scale:.4g} {unit} ({samples.iqr * scale:.2g})"
