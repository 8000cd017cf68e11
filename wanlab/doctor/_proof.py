"""The last word: a clip is made, twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wanlab.doctor._report import Fact, size
from wanlab.errors import WanlabError

_PROMPT = "a red circle moves right on a black background"


def proof() -> Iterator[Fact]:
    """4 steps and 9 frames of wan_tiny: finite, not one colour, and the same again from the same spec."""
    import numpy as np

    import wanlab

    model = wanlab.load("wan_tiny")
    spec = model.default_spec.with_(prompt=_PROMPT, seed=7, num_steps=4, num_frames=9)
    clip = wanlab.generate(model, spec)
    yield _made(clip, f"{model.device} in {str(model.dtype).removeprefix('torch.')}")
    again = wanlab.generate(model, spec)
    if not np.array_equal(again.frames, clip.frames) or not bool((again.latents == clip.latents).all()):
        raise WanlabError(
            "The same spec gave another clip",
            remedy="Something makes this device's arithmetic vary: compare drivers and versions with a machine where "
            "it does not",
        )
    seconds = again.seconds["total"]
    text = f"the same spec gave the same frames and latents in {seconds:.1f} s"
    yield Fact("repeated", "ok", text, data={"seconds": seconds})


def _made(clip: Any, where: str) -> Fact:
    """The first clip as a fact; raises WanlabError if it is no picture."""
    remedy = "Compare the attention backends above; try `wanlab generate wan_tiny --device cpu`"
    if not bool(clip.latents.isfinite().all()):
        raise WanlabError("The latents hold NaN or infinity", remedy=remedy)
    if clip.frames.std() < 1:
        raise WanlabError("The frames are of one colour", remedy=remedy)
    frames, height, width = clip.frames.shape[:3]
    seconds = clip.seconds
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("text", "denoise", "decode"))
    text = (
        f"wan_tiny made {frames} frames of {width}x{height} in {seconds['total']:.1f} s on {where} ({stages}; peak "
        f"{size(clip.peak_bytes)}); spec {clip.spec.id}, run {clip.run_id}"
    )
    return Fact("generated", "ok", text, data={**seconds, "spec": clip.spec.id, "run": clip.run_id})
