"""The stages of a generation, each a line that a notebook may stop at; `pipeline.generate` is these lines plus timing.

text = encode_text(model, spec)
conditions = encode_conditions(model, spec)
latents = denoise(model, spec, text, conditions)
media = post(spec, decode(model, spec, latents))
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wanlab import attention, caches
from wanlab.errors import WanlabError, shorten
from wanlab.guidance import predict
from wanlab.models.base import Check
from wanlab.registry import GUIDANCE, SAMPLERS
from wanlab.sampling import OnStep, Remembering, Sampler, SamplerState, Staggered, Velocity, draw, sample
from wanlab.sites import NO_CONDITIONS, Conditions, StepContext, compiling
from wanlab.spec import GenerationSpec
from wanlab.watch import Interrupts

TextEmbeddings = Mapping[str, Mapping[str, Tensor]]


@torch.no_grad()
def encode_text(model: Any, spec: GenerationSpec) -> TextEmbeddings:
    """Text embeddings {"prompt": {...}, "negative_prompt": {...}}; the latter only where the guidance needs it."""
    with model.unloading(spec.memory.unload):
        return model.encode_text(spec.resolve(model))


@torch.no_grad()
def encode_conditions(model: Any, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
    """What else steers the network: images, masks, audio, the previous window. Empty for text-to-video."""
    with model.unloading(spec.memory.unload):
        return model.encode_conditions(spec.resolve(model), window=window, previous=previous)


def denoise(
    model: Any,
    spec: GenerationSpec,
    text: TextEmbeddings,
    conditions: Conditions,
    latents: Tensor | SamplerState | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Run the sampler; the spec's attention, cache and compile are attached for its duration only.

    `latents`: pure noise (B, C, T, H, W) of any batch, text of batch 1 is shared; or a `SamplerState` to go on from;
    None draws the noise of the spec's seed. A cache goes on with what the state holds of it (`denoise_to` puts it
    there); with nothing it begins empty: whatever it plans, the first step computes. Returns the clean latents
    (B, C, T, H, W), float32 on the model's device. Raises WanlabError for conditions and latents of another spec, for
    a state of another cache, and naming the step when a prediction is not finite.
    """
    return denoise_recorded(model, spec, text, conditions, latents, on_step)[0]


@torch.no_grad()
def denoise_recorded(
    model: Any,
    spec: GenerationSpec,
    text: TextEmbeddings,
    conditions: Conditions,
    latents: Tensor | SamplerState | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`denoise` that also returns what really ran: attention kernel, the cache's hit map, compilation."""
    state, ran = _run(model, spec, text, conditions, latents, on_step)
    return model.finish(state.latents, conditions), ran


@torch.no_grad()
def denoise_to(  # noqa: PLR0913 - `denoise` with its end
    model: Any,
    spec: GenerationSpec,
    text: TextEmbeddings,
    conditions: Conditions,
    stop: int,
    latents: Tensor | SamplerState | None = None,
    on_step: OnStep | None = None,
) -> SamplerState:
    """`denoise` up to before step `stop`: the state there, with all that sampler, guidance and cache remember.

    `denoise` goes on from it, in this process or another one (`sampling.save_state`), to the bits of a run that was
    not interrupted; so may other specs, from the same state: a fork. Raises WanlabError as `denoise` does, and for a
    `stop` that the run does not reach.
    """
    return _run(model, spec, text, conditions, latents, on_step, stop)[0]


def _run(  # noqa: PLR0913 - as `denoise_to`
    model: Any,
    asked: GenerationSpec,
    text: TextEmbeddings,
    conditions: Conditions,
    latents: Tensor | SamplerState | None,
    on_step: OnStep | None,
    stop: int | None = None,
) -> tuple[SamplerState, dict[str, Any]]:
    """The state before step `stop`, and what ran."""
    spec = asked.resolve(model)
    sampler = make_sampler(model, spec)
    state = begun(model, spec, sampler, conditions, latents)
    velocity = velocity_of(model, spec, sampler, shared_text(text, state), conditions)
    cache = caches.prepared(model, asked)
    _recall(cache, state)
    with (
        Interrupts() as interrupts,
        held(model, spec, interrupts),
        model.lock.sampling(),
        model.unloading(spec.memory.unload),
        attached(model, asked, cache) as ran,
        interrupts.let_through(),
    ):
        state = sample(sampler, velocity, state, stop=stop, on_step=finished(model, conditions, on_step))
    return replace(state, cache={} if cache is None else cache.state()), ran


def begun(
    model: Any, spec: GenerationSpec, sampler: Sampler, conditions: Conditions, latents: Tensor | SamplerState | None
) -> SamplerState:
    """The state that a run of a resolved spec begins with, on the model's device; `latents` as `denoise` takes them.

    Raises WanlabError for conditions and latents of another spec.
    """
    if isinstance(latents, SamplerState):
        model.check_given(spec, conditions, latents.latents)
        return latents.to(model.device)
    noise = model.initial_noise(spec) if latents is None else latents
    model.check_given(spec, conditions, noise)
    return sampler.init(model.start(spec, conditions, noise.to(model.device, torch.float32)))


def _recall(cache: caches.Cache | None, state: SamplerState) -> None:
    """Give the cache what the state holds of it."""
    if cache is not None and state.cache:
        cache.load_state(state.cache)
    elif state.cache:
        raise WanlabError(
            "This state holds what a cache remembers, and the spec has none",
            remedy="Go on with the cache it was made with, or without its memory: replace(state, cache={})",
        )


def finished(model: Any, conditions: Conditions, on_step: OnStep | None) -> OnStep | None:
    """`on_step` told of the clean estimate as the result would have it: with what is kept, without references."""
    if on_step is None or conditions is NO_CONDITIONS:
        return on_step

    def told(step: int, sigma: float, latents: Tensor, denoised: Tensor) -> None:
        on_step(step, sigma, latents, model.finish(denoised, conditions))

    return told


@torch.no_grad()
def decode(model: Any, spec: GenerationSpec, latents: Tensor, check: Check | None = None) -> Any:
    """Media of one sample: frames (T, H, W, 3) uint8, audio, fps.

    `check(share)` is called between parts with the share of the work that is done, and may raise to stop.
    """
    with model.unloading(spec.memory.unload):
        return model.decode(spec.resolve(model), latents, check)


def post(spec: GenerationSpec, media: Any, check: Check | None = None) -> Any:
    """Postprocess as the spec's part `post` says; it has no methods yet, so the media comes back as it is.

    `check` as in `decode`.
    """
    if check is not None:
        check(0.0)
    assert not spec.post.model_dump(), "a post method without a runner"
    return media


def make_sampler(model: Any, spec: GenerationSpec) -> Sampler:
    """The spec's sampler over the model's noise levels; its later draws depend on seed and step alone.

    Where the model's frames do not step together it is `Staggered`, whose steps are the rows of the model's plan.
    """
    noise = partial(_draw_step, spec.sampling.seed)
    sampler: Sampler = SAMPLERS.get(spec.sampling.sampler)(model.sigmas(spec), noise)
    plan = model.frame_steps(spec)
    return sampler if plan is None else Staggered(sampler, plan)


@contextmanager
def held(
    model: Any, spec: GenerationSpec, interrupts: Interrupts, check: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the model's lock, which its holder may take again; while another thread has it, wait and say for what.

    Ctrl-C ends the wait, and so does `check`, which is called meanwhile and may raise.
    """
    told = False

    def waiting(owner: str) -> None:
        nonlocal told
        interrupts.check()
        if check is not None:
            check()
        if not told:
            told = True
            sys.stderr.write(f"Waiting for {model.id}, which is busy with {owner}.\n")

    what = f"generate(prompt={shorten(spec.text.prompt, 60)}, seed={spec.sampling.seed})"
    with model.lock.hold(what, waiting):
        yield


@contextmanager
def attached(model: Any, spec: GenerationSpec, cache: caches.Cache | None) -> Iterator[dict[str, Any]]:
    """Attach what the spec asks for, with the cache that executes it, and detach it on any way out.

    The dict says, afterwards, what really ran.
    """
    ran: dict[str, Any] = {}
    note = Note(model)
    with ExitStack() as stack:
        stack.enter_context(equipped(model, spec))
        if cache is not None:
            stack.enter_context(cache.attach(model))
        stack.enter_context(model.on_begin(note))
        yield ran
        ran |= note.ran(spec, cache)


@contextmanager
def equipped(model: Any, spec: GenerationSpec) -> Iterator[None]:
    """Attach the spec's attention and compilation while inside.

    Attention "auto" leaves in place what a surrounding `attention.using` put there.
    """
    with ExitStack() as stack:
        if spec.compile.compile_mode == "blocks":
            for blocks in model.stacks.values():
                stack.enter_context(compiling(blocks))
        if spec.attention.method != "auto":
            stack.enter_context(attention.using(model, spec.attention.method))
        yield


class Note:
    """What really runs: given to `model.on_begin`, it counts forwards and sees which attention is in place."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.kernels: set[str] = set()
        self.forwards: Counter[str] = Counter()

    def copy(self) -> Note:
        """Another one that has seen the same."""
        found = Note(self._model)
        found.kernels |= self.kernels
        found.forwards.update(self.forwards)
        return found

    def __call__(self, ctx: StepContext) -> None:
        self.forwards[ctx.expert] += 1
        sites = self._model.stacks[ctx.expert].attentions()
        self.kernels.update(getattr(site.fn, "__name__", "function") for site in sites)

    def ran(self, spec: GenerationSpec, cache: caches.Cache | None) -> dict[str, Any]:
        """What a result records; while compilation is still in place."""
        found: dict[str, Any] = {"attention": "+".join(sorted(self.kernels)), "forwards": dict(self.forwards)}
        if cache is not None:
            found["cache"] = _plain_report(cache.report())
        if spec.compile.compile_mode == "blocks":
            stacks = self._model.stacks.values()
            found["uncompiled"] = sorted(name for blocks in stacks for name in blocks.uncompiled)
        return found


def _plain_report(report: caches.CacheReport) -> dict[str, Any]:
    """The report as JSON data, whose keys are text."""
    by_step = ("hit_map", "shares", "signals")
    plain = asdict(report)
    return plain | {n: {k: {str(i): v for i, v in rows.items()} for k, rows in plain[n].items()} for n in by_step}


def velocity_of(
    model: Any, spec: GenerationSpec, sampler: Sampler, text: TextEmbeddings, conditions: Conditions
) -> Velocity:
    """The guided prediction as a function of latents and step, for the loop; its memory is the rule's."""
    rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
    experts = model.experts(spec)
    sigmas = tuple(sampler.sigmas.tolist())

    def velocity(latents: Tensor, step: int) -> Tensor:
        sigma, timestep = sampler.clock(step, len(latents))
        ctx = StepContext(
            step=step,
            num_steps=sampler.num_steps,
            sigma=sigma,
            sigmas=sigmas,
            timestep=timestep,
            expert=experts[step],
            latents=latents,
        )
        latents = model.place(latents, ctx, conditions)
        return predict(model, rule, latents, ctx, text, conditions)

    return Remembering(velocity, rule)


def _draw_step(seed: int, step: int, shape: torch.Size) -> Tensor:
    return draw(seed, "sampler", None, step, shape)


def shared_text(text: TextEmbeddings, state: SamplerState) -> TextEmbeddings:
    """Text of batch 1 for every sample of the state."""
    batch = len(state.latents)
    return {name: {key: _share(value, batch) for key, value in part.items()} for name, part in text.items()}


def _share(tensor: Tensor, batch: int) -> Tensor:
    """Text of batch 1 for every sample of the batch; other batches stay."""
    return tensor if tensor.shape[0] == batch else tensor.expand(batch, *tensor.shape[1:])
