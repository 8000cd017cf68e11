"""What a generation will cost, before anything is loaded: operations, floors of time, memory of weights and cache."""

from __future__ import annotations

import functools
import html
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wanlab import caches, catalog, stages, weights
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError
from wanlab.models import Model, describe
from wanlab.models._workload import Workload
from wanlab.pipeline import full_spec
from wanlab.registry import GUIDANCE
from wanlab.sites import NO_CONDITIONS, Branch, StepContext
from wanlab.spec import GenerationSpec
from wanlab.study._cards import Card, chosen_card

Count = Callable[[str, Branch], Workload]
"""`count(expert, branch)`: the workload of such a forward."""
_DTYPE = "bfloat16"  # what a model is loaded as on the cards of the table, unless the spec says otherwise


@dataclass(frozen=True)
class Floor:
    """Operations over a rate, all else at no cost: below the peak's no card can be, below the measured one's it was not
    in a row of large matrix products."""

    rate: float
    """Operations a second."""
    source: str
    forward: float
    step: float
    """Mean over the steps."""
    run: float
    """Of all forwards; text, VAE and the sampler are not in it."""


@dataclass(frozen=True)
class CachePrediction:
    """What a cache will do in a run, as far as it is known beforehand; None where it is not."""

    state_bytes: int | None = None
    computed_forwards: int | None = None
    ideal_speedup: float | None = None
    """Forwards over computed ones."""


@dataclass(frozen=True)
class Estimate:
    """What `estimate` returns; shows itself as a table. A multiply and its addition are 2 operations (FLOPs)."""

    spec: GenerationSpec
    """Resolved."""
    num_steps: int
    forward: Workload
    """The run's first forward."""
    forwards: dict[str, dict[str, int]]
    """How many the run has, by expert and guidance branch, with no cache."""
    branch_flops: dict[str, dict[str, int]]
    """Operations of all of them."""
    weight_bytes: dict[str, int]
    """Of each network in memory."""
    card: Card | None
    floors: dict[str, Floor]
    """By the "measured" and the "peak" rate of the card, as far as they are known."""
    cache: CachePrediction
    notes: tuple[str, ...] = ()
    """What to know about the figures."""

    @property
    def num_forwards(self) -> int:
        return sum(n for branches in self.forwards.values() for n in branches.values())

    @property
    def total_flops(self) -> int:
        """Operations of the networks in all steps, with no cache."""
        return sum(n for branches in self.branch_flops.values() for n in branches.values())

    @property
    def cache_state_bytes(self) -> int | None:
        """Bytes that the spec's cache will hold; None where they are not known."""
        return self.cache.state_bytes

    @property
    def computed_forwards(self) -> int | None:
        """Forwards whose blocks run under the spec's cache, those of one batch one by one; None where not known."""
        return self.cache.computed_forwards

    @property
    def ideal_speedup(self) -> float | None:
        """Forwards over computed ones; None where they are not known."""
        return self.cache.ideal_speedup

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data; the spec in full."""
        work = self.forward
        return {
            "spec": self.spec.to_dict(),
            "num_steps": self.num_steps,
            "forward": {
                "linear": work.linear,
                "attention": work.attention,
                "total": work.total,
                "attention_share": work.attention_share,
                "tokens": {name: list(size) for name, size in work.tokens.items()},
            },
            "forwards": self.forwards,
            "num_forwards": self.num_forwards,
            "branch_flops": self.branch_flops,
            "total_flops": self.total_flops,
            "weight_bytes": self.weight_bytes,
            "card": None if self.card is None else asdict(self.card),
            "floors": {name: asdict(floor) for name, floor in self.floors.items()},
            "cache": asdict(self.cache),
            "notes": list(self.notes),
        }

    def _rows(self) -> Iterator[tuple[str, str]]:
        work, size = self.forward, self.spec.size
        yield "size", f"{size.width} x {size.height}, {size.num_frames} frames"
        yield "tokens", ", ".join(f"{name} {length:,} x {width:,}" for name, (length, width) in work.tokens.items())
        yield "a forward", f"{_flops(work.total)}: {_flops(work.linear)} linear, {_flops(work.attention)} attention"
        yield "attention's share", f"{work.attention_share:.1%}"
        for expert, branches in self.forwards.items():
            listed = ", ".join(f"{n} {name}" for name, n in branches.items())
            yield f"forwards of {expert}", f"{listed} in {self.num_steps} steps"
        yield "the run", _flops(self.total_flops)
        for name, floor in self.floors.items():
            assert self.card is not None, "floors are a card's"
            times = f"{floor.forward:.3g} s a forward, {floor.step:.3g} s a step, {floor.run:.4g} s the run"
            if self.spec.cache.method != "none":
                saved = self.cache.ideal_speedup
                times += " with no cache" if saved is None else f", {floor.run / saved:.4g} s with the cache"
            yield f"floor on {self.card.name}", f"{times} at {floor.rate / 1e12:,.4g} TFLOP/s ({name}; {floor.source})"
        parts = ", ".join(f"{name} {_bytes(n)}" for name, n in self.weight_bytes.items())
        yield "weights", f"{_bytes(sum(self.weight_bytes.values()))} as {self.spec.weights.dtype}: {parts}"
        if self.spec.cache.method != "none":
            yield f"cache {self.spec.cache.method}", self._cache_words()
        yield from (("note", note) for note in self.notes)

    def _cache_words(self) -> str:
        held = "" if self.cache.state_bytes is None else f", holds {_bytes(self.cache.state_bytes)}"
        if self.cache.ideal_speedup is None:
            return f"what it saves is not known before the run{held}"
        computed = f"{self.cache.computed_forwards} of {self.num_forwards} forwards computed"
        return f"{computed}, at best {self.cache.ideal_speedup:.2f}x{held}"

    def __str__(self) -> str:
        rows = list(self._rows())
        longest = max(len(name) for name, _ in rows)
        return "\n".join([self.spec.model, *(f"  {name:<{longest}}  {value}" for name, value in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left">'
        rows = "".join(f"<tr>{cell}{html.escape(a)}</td>{cell}{html.escape(b)}</td></tr>" for a, b in self._rows())
        return f"<b>{html.escape(self.spec.model)}</b><table>{rows}</table>"


def estimate(
    what: Any, spec: GenerationSpec | None = None, *, card: str | Card | None = None, **changes: Any
) -> Estimate:
    """What a generation will cost, with nothing loaded: estimate("wan_t2v_14b", num_frames=81).

    `what`: an id or alias, a definition, a spec, or a loaded model; `spec` and `changes` as for `generate`. `card`:
    the GPU that floors of time are for, e.g. "H100"; None is the present one. Media that the model needs may be
    missing. Attention counts as dense, whatever its method. Raises WanlabError as `load` and `generate` do for a spec
    that the model cannot follow.
    """
    if isinstance(what, GenerationSpec):
        if spec is not None:
            raise WanlabError("estimate got two specs", remedy="Give the second one's model first, or leave one out")
        spec = what
    chosen, note = chosen_card(card, what.device if isinstance(what, Model) else torch.device("cpu"))
    model, resolved = _prepared(what, spec, chosen, changes)
    caches.check(model, resolved)
    forwards = list(_forwards(model, resolved))
    if not forwards:
        raise WanlabError("This run asks the network for nothing", remedy="Give more steps than zero_steps")
    work = _counted(model, resolved)
    counts, flops = _tables(forwards, work)
    num_steps = len(model.experts(resolved))
    first = work(*forwards[0])
    return Estimate(
        spec=resolved,
        num_steps=num_steps,
        forward=first,
        forwards=counts,
        branch_flops=flops,
        weight_bytes={
            name: weights.loaded_bytes(model.component_class(name), part.component, part.dtype)
            for name, part in model.parts.items()
        },
        card=chosen,
        floors=_floors(chosen, first.total, sum(n for by in flops.values() for n in by.values()), num_steps),
        cache=_predicted(model, resolved, len(forwards)),
        notes=tuple(_notes(resolved, chosen, note)),
    )


def _flops(count: int) -> str:
    """A number of operations in words, four digits: "283.0 TFLOPs"."""
    power = max(0, min(5, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:,.4g} {('', 'k', 'M', 'G', 'T', 'P')[power]}FLOPs"


def _bytes(count: int) -> str:
    """A number of bytes in words, three digits: "201 MB"."""
    power = max(0, min(3, (len(str(count)) - 1) // 3))
    digits = f"{count / 1000**power:,.3g}" if count < 1e12 else f"{count / 1e9:,.0f}"
    return f"{digits} {('bytes', 'kB', 'MB', 'GB')[power]}"


def _prepared(
    what: Any, spec: GenerationSpec | None, card: Card | None, changes: dict[str, Any]
) -> tuple[Model, GenerationSpec]:
    """The model, described as the spec's weights say unless it is given, and the resolved spec."""
    if isinstance(what, Model):
        asked = full_spec(what, spec, **changes)
        return what, what.resolve(asked)
    definition = catalog.find(what)
    asked = full_spec(describe(definition), spec, **changes)
    leaves = {name: getattr(asked.weights, name) for name in type(asked.weights).model_fields}
    for name in ("dtype", "vae_dtype") if card is not None else ():
        leaves[name] = _DTYPE if leaves[name] == "auto" else leaves[name]
    model = describe(definition, **leaves)
    return model, model.resolve(asked)


def _forwards(model: Model, spec: GenerationSpec) -> Iterator[tuple[str, Branch]]:
    """(expert, branch) of every forward of a run, in order, branches one by one whether or not they share a batch."""
    rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
    sampler, text = stages.make_sampler(model, spec), {"prompt": {}, "negative_prompt": {}}
    for step, expert in enumerate(model.experts(spec)):
        sigma, timestep = sampler.clock(step, 1)
        ctx = StepContext(step, sampler.num_steps, sigma, timestep=timestep, expert=expert)
        yield from ((expert, branch) for branch in rule.branches(ctx, text, NO_CONDITIONS))


def _counted(model: Model, spec: GenerationSpec) -> Count:
    """`work(expert, branch)`, which counts each kind of forward once."""

    @functools.cache
    def work(expert: str, skipped: tuple[int, ...], nag: Any) -> Workload:
        return model.workload(spec, Branch("", {}, skip_blocks=skipped, nag=nag), expert)

    return lambda expert, branch: work(expert, tuple(branch.skip_blocks), branch.nag)


def _tables(forwards: list[tuple[str, Branch]], work: Count) -> tuple[dict[str, Any], dict[str, Any]]:
    """How many forwards, and their operations, by expert and branch."""
    counts: dict[str, Counter[str]] = {}
    flops: dict[str, Counter[str]] = {}
    for expert, branch in forwards:
        counts.setdefault(expert, Counter())[branch.name] += 1
        flops.setdefault(expert, Counter())[branch.name] += work(expert, branch).total
    return {k: dict(v) for k, v in counts.items()}, {k: dict(v) for k, v in flops.items()}


def _floors(card: Card | None, forward: int, run: int, num_steps: int) -> dict[str, Floor]:
    if card is None:
        return {}
    rates = {"measured": (card.measured, card.measured_source), "peak": (card.peak, card.source)}
    return {
        name: Floor(rate, source, forward / rate, run / num_steps / rate, run / rate)
        for name, (rate, source) in rates.items()
        if rate is not None
    }


def _predicted(model: Model, spec: GenerationSpec, num_forwards: int) -> CachePrediction:
    """What the spec's cache will do: all of it where that is known before the run, else the bytes.

    This is the one place that asks the caches.
    """
    if spec.cache.method == "none":
        return CachePrediction(0, num_forwards, 1.0)
    num_bytes = caches.predict_bytes(model, spec)
    try:
        executor = caches.prepared(model, spec)
    except WanlabError:
        if not model.is_described:
            raise
        return CachePrediction(num_bytes)  # a plan that needs tensors of the weights, which are not here
    assert executor is not None, "none was answered above"
    computed, run = 0, caches.Run.of(model, spec)
    if (shares := executor.schedule(run)) is not None:
        weights = [branch.count("+") + 1 for _, _, branch in run.forwards]
        done = sum(weight * share for weight, share in zip(weights, shares, strict=True))
        whole = sum(weight for weight, share in zip(weights, shares, strict=True) if share >= 1)
        return CachePrediction(num_bytes, whole, num_forwards / done)
    if not isinstance(executor, Fixed):
        return CachePrediction(num_bytes)
    for step, expert, branch in run.forwards:
        ctx = StepContext(step, run.num_steps, run.sigmas[step], expert=expert, branch=branch)
        if executor.decide(ctx) or (step, branch) in run.begins:
            computed += branch.count("+") + 1
    return CachePrediction(num_bytes, computed, num_forwards / computed)


def _notes(spec: GenerationSpec, card: Card | None, note: str) -> Iterator[str]:
    if note:
        yield f"No floors of time. {note}"
    if card is not None and spec.weights.dtype == "float32":
        yield "The floors are of bfloat16, and this model is in float32, which is slower"
