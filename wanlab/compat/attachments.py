"""The files that WanGP's settings name, and which of a spec's media they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wanlab.compat.grammars import Windows, parse_positions, place
from wanlab.compat.keys import ATTACHMENTS
from wanlab.compat.letters import ImagePrompt, VideoPrompt
from wanlab.errors import WanlabError, shorten

_RANGE = re.compile(r"(start_frame|end_frame|audio_track_no)=(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Attachment:
    """One file, or a part of it."""

    path: str
    """As the settings have it: relative to WanGP's folder, or inside a queue's zip."""
    start_frame: int | None = None
    """First frame used, from 0."""
    end_frame: int | None = None
    """Last frame used."""
    audio_track: int | None = None

    @classmethod
    def parse(cls, text: str) -> Attachment:
        """A path, with `|start_frame=0,end_frame=480,audio_track_no=2` behind it or not."""
        path, bar, suffix = text.rpartition("|")
        found = [_RANGE.fullmatch(word.strip()) for word in suffix.split(",")]
        if not bar or not all(found):
            return cls(text)
        values = {match[1].removesuffix("_no"): int(match[2]) for match in found if match}
        return cls(path, **values)


def attachments(settings: Mapping[str, Any]) -> dict[str, tuple[Attachment, ...]]:
    """The files of each key that names some. Raises WanlabError for what is no path."""
    found = {}
    for key in ATTACHMENTS:
        value = settings.get(key)
        if not value:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise WanlabError(f"{key} = {shorten(value, 60)} is no path", remedy="Give a path or a list of paths.")
        found[key] = tuple(Attachment.parse(text) for text in texts if text)
    return found


def media_leaves(settings: Mapping[str, Any], num_frames: int | None = None) -> dict[str, Any]:
    """The spec's media settings that the attachments are, as far as the letters ask for them.

    Attachments by leaf (`image`, `video`, ...), those that hold several as tuples, and `keyframe_positions` as frames
    from 0 where the number of frames is given. A video to continue (V) and sound are not among them.
    """
    files = attachments(settings)
    start, follow = (kind.parse(settings.get(key)) for kind, key in _KINDS.items())
    asked = {
        "image": "first_frame" in start and files.get("image_start"),
        "last_image": "last_frame" in start and files.get("image_end"),
        "video": "control_video" in follow and (files.get("video_guide") or files.get("image_guide")),
        "mask": "mask" in follow and (files.get("video_mask") or files.get("image_mask")),
        "video_2": "+" in follow and files.get("video_guide2"),
    }
    found: dict[str, Any] = {leaf: given[0] for leaf, given in asked.items() if given}
    references = files.get("image_refs", ()) if "references" in follow or "positioned_frames" in follow else ()
    if "positioned_frames" in follow and num_frames is not None and references:
        positions = place(parse_positions(settings.get("frames_positions") or ""), num_frames, _windows(settings))
        positions = positions[: len(references)]
        found |= {"keyframes": references[: len(positions)], "keyframe_positions": positions} if positions else {}
        references = references[len(positions) :]
    return found | ({"references": references} if references else {})


_KINDS = {ImagePrompt: "image_prompt_type", VideoPrompt: "video_prompt_type"}


def _windows(settings: Mapping[str, Any]) -> Windows:
    names = ("sliding_window_size", "sliding_window_overlap", "sliding_window_discard_last_frames")
    size, overlap, discard = (int(settings.get(name) or usual) for name, usual in zip(names, (129, 0, 0), strict=True))
    return Windows(size, overlap, discard)
