"""Families that make a long video in windows of a fixed length, of which one can be made for now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab.spec import GenerationSpec


def check_window(model: str, spec: GenerationSpec, longest: int) -> None:
    """Raise WanlabError for a spec of more frames than one window of the model has."""
    asked = spec.size.num_frames
    if asked is not None and asked > longest:
        raise WanlabError(
            f"num_frames = {asked}, and one window of {model} has {longest}: several cannot be joined yet",
            remedy=f"Give at most {longest}",
        )
