"""What a user gives to a spec's media settings, stored in the workspace."""

from __future__ import annotations

from typing import Any

from wanlab.errors import WanlabError
from wanlab.media._files import check_kind
from wanlab.media._find import default_store
from wanlab.spec.media_ref import MediaRef
from wanlab.spec.parts import MediaSpec

_WANTED = {
    "image": "image", "last_image": "image", "references": "image", "keyframes": "image",
    "video": "video", "video_2": "video", "pose_video": "video", "face_video": "video",
    "mask": "mask", "mask_2": "mask", "audio": "audio",
}  # fmt: skip
_WORDS = {"image": "picture", "video": "video", "mask": "mask", "audio": "sound"}
_STILL = "Give a picture as image=..., a video as a file or an array of frames"
assert all("MediaRef" not in str(f.annotation) or n in _WANTED for n, f in MediaSpec.model_fields.items())


def wanted_kind(leaf: str) -> Any:
    """The kind of media that a setting of the spec's media part takes."""
    return _WANTED[leaf]


def store_given(leaf: str, what: Any, fps: float = 16.0, name: str = "") -> MediaRef:
    """Store `what` for a setting such as "image" or "references[1]". Raises `WanlabError` for another kind of media."""
    wanted = wanted_kind(leaf.partition("[")[0])
    if isinstance(what, list | tuple):
        raise WanlabError(f"{leaf} takes one {_WORDS[wanted]}, not a list", remedy="Give it without brackets")
    try:
        ref = default_store().put(what, kind="mask" if wanted == "mask" else None, fps=fps, name=name)
    except WanlabError as error:
        raise WanlabError(f"media.{leaf}: {error.problem}", choices=error.choices, remedy=error.remedy) from None
    check_serves(leaf, ref)
    return ref


def check_serves(leaf: str, ref: MediaRef) -> None:
    """Raise `WanlabError` for a picture given as a video, a video as a picture, sound as either."""
    wanted = wanted_kind(leaf.partition("[")[0])
    try:
        check_kind(ref.kind, wanted, ref.name or "What is given")
    except WanlabError as error:
        is_still = (ref.kind, wanted) == ("image", "video")
        raise WanlabError(f"media.{leaf}: {error.problem}", remedy=_STILL if is_still else error.remedy) from None
