"""What of a spec a loaded model can follow, so that a form shows only that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wanlab.models._resolve import STRENGTHS
from wanlab.registry import ATTENTION, GUIDANCE
from wanlab.spec import PARTS

if TYPE_CHECKING:
    from wanlab.models.base import Model


@dataclass(frozen=True)
class Offers:
    """Settings by dotted name ("size.width", "guidance.method"); what is not named has no limits but the spec's own."""

    unused: frozenset[str] = frozenset()
    """Settings that the model has no use for: `resolve` refuses all but their defaults."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Legal words, where they are fewer than the spec knows."""
    bounds: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """(smallest, largest, step) of whole numbers."""


def offers(model: Model) -> Offers:
    """The model's offers, from its configurations alone; agrees with what `resolve` refuses."""
    geometry = model.geometry
    unused = {f"media.{name}" for name in PARTS["media"].model_fields if name not in model.accepts}
    unused |= {f"weights.{name}" for name in PARTS["weights"].model_fields}  # chosen when the model is loaded
    if len(model.experts_present) == 1:
        unused |= {"sampling.expert_boundary", "guidance.guidance_scale_2"}
    if geometry.max_frames == 1:
        unused |= {"size.num_frames", "size.fps", "sampling.riflex"}
    if not model.starts_from_video:
        unused |= {f"sampling.{name}" for name in STRENGTHS}
    rules = tuple(n for n in GUIDANCE.names() if not GUIDANCE.get(n).unfit(model))
    pixels = (geometry.pixel_multiple, geometry.max_pixels, geometry.pixel_multiple)
    bounds = {
        "size.width": pixels,
        "size.height": pixels,
        "size.num_frames": (1, geometry.max_frames, geometry.frame_stride),
        "text.max_text_tokens": (1, model.max_text_tokens, 1),
    }
    choices = {
        "guidance.method": rules,
        "attention.method": ("auto", *ATTENTION.names()),
        "memory.on_oom": ("fail",),
    }
    return Offers(frozenset(unused | model.unused_settings), choices, bounds)
