"""Points that differ in the seed alone, denoised as one batch: quicker on a GPU, and not always to the same bits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from wanlab import stages
from wanlab.errors import WanlabError
from wanlab.registry import SAMPLERS
from wanlab.sites import Conditions
from wanlab.spec import GenerationSpec
from wanlab.stages import TextEmbeddings
from wanlab.sweeps._together import Finished
from wanlab.watch import Watch


def batch_key(spec: GenerationSpec) -> str:
    """Points of one model with equal keys may be one batch. Raises WanlabError where a seed does more than start."""
    if SAMPLERS.get(spec.sampling.sampler).needs_noise:
        raise WanlabError(
            f"The sampler {spec.sampling.sampler!r} draws noise by the seed at every step, and a batch has many seeds",
            remedy="Leave batch_seeds out, or take another sampler",
        )
    if spec.media.mask is not None:
        raise WanlabError(
            "What a mask keeps is brought to a step's noise by the seed, and a batch has many seeds",
            remedy="Leave batch_seeds out",
        )
    return spec.with_(seed=0).id


def denoise_batch(
    model: Any, specs: Mapping[str, GenerationSpec], text: TextEmbeddings, conditions: Conditions, watch: Watch
) -> list[Finished]:
    """Denoise specs of one `batch_key` at once; a cache decides by all samples.

    Of the seconds every point gets its share; "batch" in what ran says how many there were, and with whom.
    """
    first = next(iter(specs.values()))
    noise = torch.cat([model.initial_noise(spec.resolve(model)) for spec in specs.values()])
    started = time.perf_counter()
    with model.checking(watch.check):
        latents, ran = stages.denoise_recorded(model, first, text, conditions, noise, watch.on_step)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = (time.perf_counter() - started) / len(specs)
    found = []
    for i, key in enumerate(specs):
        batch = {"size": len(specs), "with": [other for other in specs if other != key]}
        shared = {"prefix_steps": 0, "with": [], "seconds": {"denoise": seconds, "shared": 0.0}}
        found.append((key, latents[i : i + 1], {**deepcopy(ran), "batch": batch, "shared": shared}))
    return found
