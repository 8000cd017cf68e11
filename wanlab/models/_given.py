"""Does a spec have the media that its model needs, and do conditions and latents handed to a run belong to it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.media import wanted_kind
from wanlab.sites import NO_CONDITIONS, Conditions

if TYPE_CHECKING:
    from wanlab.models.base import Model
    from wanlab.spec import GenerationSpec


def check_given(model: Model, spec: GenerationSpec, conditions: Conditions, latents: Tensor) -> None:
    """Raise WanlabError for conditions that were not encoded, and for them or latents of another size.

    `spec` is resolved; `latents` (B, C, T, H, W) are the noise or a state's.
    """
    if conditions is NO_CONDITIONS and model.needs_conditions(spec):
        raise WanlabError(
            "The spec asks for more than text, and its conditions were not encoded",
            remedy="Pass what encode_conditions(model, spec) returns",
        )
    wanted = model.latent_shape(spec)
    if tuple(latents.shape[1:]) != wanted:
        raise WanlabError(
            f"The latents are {tuple(latents.shape)}, and the spec makes (B, {', '.join(map(str, wanted))})",
            remedy="model.initial_noise(spec, batch) has the shape of this spec",
        )
    for name in ("channels", "known"):
        given = getattr(conditions, name)
        if given is not None and tuple(given.shape[2:]) != wanted[1:]:
            raise WanlabError(
                f"The conditions are for latents of {tuple(given.shape[2:])}, and the spec makes {wanted[1:]}",
                remedy="Encode the conditions with the spec that denoises",
            )
    if model.starts_from_video and spec.media.video is not None and conditions.known is None:
        raise WanlabError(
            "The spec starts from a video, and the conditions were encoded without it",
            remedy="Encode the conditions with the spec that denoises",
        )


def check_needs(model: Model, spec: GenerationSpec) -> None:
    """Raise WanlabError, with an example of each, for media that the model needs and the spec does not have."""
    missing = [name for name in model.needs if not getattr(spec.media, name)]
    if missing:
        remedy = f"Give {'it' if len(missing) == 1 else 'them'}: {', '.join(map(_example, missing))}"
        raise WanlabError(f"{model.id} needs {' and '.join(missing)}", remedy=remedy)


def _example(name: str) -> str:
    if wanted_kind(name) != "image":
        return f"{name}='path'"
    return f"{name}=['path']" if name == "references" else f"{name}='path' or a PIL image"
