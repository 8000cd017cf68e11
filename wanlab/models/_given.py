"""Do conditions and latents that are handed to a run belong to its spec? Other ones would run, as something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from wanlab.errors import WanlabError
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
