"""Check a spec against a loaded model and make every `auto` and None concrete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wanlab.attention import resolve as resolve_attention
from wanlab.errors import WanlabError
from wanlab.registry import GUIDANCE, SAMPLERS

if TYPE_CHECKING:
    from wanlab.models.base import Model
    from wanlab.spec import GenerationSpec

STRENGTHS = ("denoising_strength", "masking_strength")
"""Settings that only models which start from a video follow."""
FORCING = ("ar_step", "causal_block_size")
"""Settings that only models whose frames may be at different steps follow."""


def resolve(model: Model, spec: GenerationSpec) -> GenerationSpec:
    """The concrete spec. Raises WanlabError for another model, other weights, a size that is not legal, guidance of
    another kind, unused settings."""
    spec = model.canonical(spec)
    changes: dict[str, Any] = {
        "weights.dtype": _agree("dtype", spec.weights.dtype, model.dtype),
        "weights.vae_dtype": _agree("vae_dtype", spec.weights.vae_dtype, model.vae_dtype),
        "weights.stored_as": _stored_as(model, spec),
        **_size(model, spec),
        "text.max_text_tokens": spec.text.max_text_tokens or model.text_tokens,
        "sampling.expert_boundary": _boundary(model, spec),
    }
    if spec.attention.method == "auto":
        changes["attention"] = resolve_attention("auto", model.device)
    _check_guidance(model, spec)
    _check_sampler(model, spec)
    _check_strength(model, spec)
    _refuse_unused(model, spec)
    flat = {name: value for name, value in changes.items() if _get(spec, name) != value}
    return spec.with_(**flat) if flat else spec


def _get(spec: GenerationSpec, dotted: str) -> Any:
    part, _, leaf = dotted.partition(".")
    return getattr(getattr(spec, part), leaf) if leaf else getattr(spec, part).method


def _agree(name: str, asked: str, loaded: torch.dtype) -> str:
    word = str(loaded).removeprefix("torch.")
    if asked not in ("auto", word):
        raise WanlabError(
            f"{name} is {asked} in the spec, and the model is loaded as {word}",
            remedy=f"wanlab.load(..., {name}={asked!r})",
        )
    return word


def _stored_as(model: Model, spec: GenerationSpec) -> str:
    asked = spec.weights.stored_as
    if asked not in ("auto", model.stored_as):
        raise WanlabError(
            f"stored_as is {asked} in the spec, and the model was read from {model.stored_as} weights",
            remedy=f"wanlab.load(..., stored_as={asked!r})",
        )
    return model.stored_as


def _boundary(model: Model, spec: GenerationSpec) -> float | None:
    """Where the second expert takes over; None for a model with one expert."""
    boundary = spec.sampling.expert_boundary
    if len(model.experts_present) == 1:
        for name, value in {"expert_boundary": boundary, "guidance_scale_2": spec.guidance.guidance_scale_2}.items():
            if value is not None:
                raise WanlabError(f"{name} = {value}, but {model.id} has one expert", remedy=f"Leave {name} out")
        return None
    if boundary is None:
        raise WanlabError(f"{model.id} has two experts and no expert_boundary", remedy="Give one, e.g. 0.875")
    return boundary


def _size(model: Model, spec: GenerationSpec) -> dict[str, Any]:
    """Concrete sizes. Raises WanlabError with the nearest legal ones."""
    geometry, size = model.geometry, spec.size
    found: dict[str, Any] = {}
    for name in ("width", "height", "num_frames", "fps"):
        value = getattr(size, name)
        if value is None:
            raise _no_size(model, name)
        found[f"size.{name}"] = value
    for name in ("width", "height"):
        _check(name, getattr(size, name), geometry.pixel_multiple, 0, geometry.max_pixels)
    _check("num_frames", size.num_frames, geometry.frame_stride, 1, geometry.max_frames)
    return found


def _no_size(model: Model, name: str) -> WanlabError:
    """Sizes are concrete in a full spec; a bare GenerationSpec(...) has none of the model's defaults."""
    default = getattr(model.default_spec.size, name)
    if default is None:
        return WanlabError(f"{name} is not given and {model.id} has no default for it", remedy=f"Give {name}")
    return WanlabError(
        f"{name} is not given: this spec was not made from the defaults of {model.id}, where it is {default:g}",
        remedy="Make specs with model.spec(prompt=...); GenerationSpec(...) knows no model's defaults",
    )


def _check_guidance(model: Model, spec: GenerationSpec) -> None:
    """Raise for a rule that this model's network cannot follow, and for options of it that do nothing."""
    name = spec.guidance.method
    rule = GUIDANCE.get(name)
    if reason := rule.unfit(model):
        legal = [n for n in GUIDANCE.names() if not GUIDANCE.get(n).unfit(model)]
        raise WanlabError(f"guidance {name!r} does not fit {model.id}, whose network {reason}", choices=legal)
    options = spec.guidance.bind()
    rule(spec.guidance, options).check(spec)
    _check_layers(model, getattr(options, "layers", ()))
    _check_scales(model, spec)


def _check_layers(model: Model, layers: tuple[int, ...]) -> None:
    """Raise for blocks to leave out that the (first) network does not have."""
    expert = model.experts_present[0]
    network = model.config(expert)
    num_blocks = network["num_layers"] + network.get("num_single_layers", 0)
    if beyond := [layer for layer in layers if layer >= num_blocks]:
        raise WanlabError(
            f"guidance.layers: there is no block {beyond[0]}; {model.id}'s {expert} has {num_blocks}",
            remedy=f"Give blocks from 0 to {num_blocks - 1}",
        )


def _check_scales(model: Model, spec: GenerationSpec) -> None:
    """Raise for guidance scales that were set and that the phases' replace; the first phase's own may be."""
    guidance, usual = spec.guidance, model.default_spec.guidance
    if not guidance.phase_scales:
        return
    idle = {
        "guidance_scale": (usual.guidance_scale, guidance.phase_scales[0]),
        "guidance_scale_2": (usual.guidance_scale_2, None),
    }
    for name, silent in idle.items():
        if (value := getattr(guidance, name)) not in silent:
            raise WanlabError(
                f"{name} = {value:g} has no effect: phase_scales {list(guidance.phase_scales)} replace it",
                remedy=f"Change phase_scales, or leave them and phase_boundaries empty to use {name}",
            )


def _check_sampler(model: Model, spec: GenerationSpec) -> None:
    """Raise for a sampler with noise levels of its own that has too few of them, or is given a flow_shift."""
    sampling, default = spec.sampling, model.default_spec.sampling.flow_shift
    levels = SAMPLERS.get(sampling.sampler).fixed_levels
    if not levels or sampling.sigmas is not None:
        return
    if sampling.num_steps > len(levels):
        raise WanlabError(
            f"num_steps = {sampling.num_steps}, and sampler {sampling.sampler!r} has noise levels for {len(levels)}",
            remedy=f"Give num_steps from 1 to {len(levels)}, or another sampler",
        )
    if sampling.flow_shift != default:
        raise WanlabError(
            f"flow_shift = {sampling.flow_shift:g} has no effect: the noise levels of {sampling.sampler!r} are fixed",
            remedy=f"Leave flow_shift at {default:g}, or use the sampler 'euler'",
        )


def _check(name: str, value: int, step: int, offset: int, largest: int) -> None:
    """Raise unless `value` is `offset` plus a multiple of `step`, between the smallest such number and `largest`."""
    smallest = offset or step
    if smallest <= value <= largest and (value - offset) % step == 0:
        return
    below = offset + (value - offset) // step * step
    near = sorted({min(max(n, smallest), largest) for n in (below, below + step)})
    rule = f"a multiple of {step}" if not offset else f"1 more than a multiple of {step}"
    rule = "1" if smallest == largest else f"{rule}, {smallest} to {largest}"
    nearest = " or ".join(map(str, near))
    raise WanlabError(f"{name} = {value} is not legal: it must be {rule}", remedy=f"The nearest: {nearest}")


def _check_strength(model: Model, spec: GenerationSpec) -> None:
    """Raise for strengths that mean nothing here: without a video or mask, with explicit sigmas, or without a step."""
    sampling = spec.sampling
    for name in STRENGTHS:
        if getattr(sampling, name) != 1 and not model.starts_from_video:
            raise WanlabError(f"{model.id} does not start from a video, so {name} means nothing", remedy="Leave it out")
    if sampling.riflex != "off" and model.geometry.max_frames == 1:
        raise WanlabError(f"{model.id} makes pictures: riflex means nothing", remedy="Leave it out")
    if sampling.denoising_strength != 1:
        if spec.media.video is None:
            raise WanlabError("denoising_strength is how far a video is taken back to noise", remedy="Give video too")
        if sampling.sigmas is not None:
            raise WanlabError(
                "sigmas say where to start, and so does denoising_strength", remedy="Leave one of them out"
            )
        if sampling.num_run == 0:
            least = 1 / sampling.num_steps
            raise WanlabError(
                f"denoising_strength = {sampling.denoising_strength:g} leaves none of {sampling.num_steps} steps",
                remedy=f"Give at least {least:.3g}",
            )
    if sampling.masking_strength != 1 and spec.media.mask is None:
        raise WanlabError("masking_strength is how long a mask holds, and there is none", remedy="Give mask too")


def _refuse_unused(model: Model, spec: GenerationSpec) -> None:
    """Raise for media that this model does not take: an ignored setting is an error."""
    for name, field in type(spec.media).model_fields.items():
        if getattr(spec.media, name) != field.default and name not in model.accepts:
            takes = ", ".join(model.accepts) or "text only"
            raise WanlabError(f"{model.id} takes no {name}", remedy=f"It takes {takes}")
    for name in () if model.forces_frames else FORCING:
        if getattr(spec.sampling, name):
            raise WanlabError(f"{model.id} steps all frames together, so {name} means nothing", remedy="Leave it out")
    if spec.text.max_text_tokens is not None and spec.text.max_text_tokens > model.max_text_tokens:
        tokens = spec.text.max_text_tokens
        raise WanlabError(f"max_text_tokens = {tokens} is more than {model.id} reads", choices=[model.max_text_tokens])
