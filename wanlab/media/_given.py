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
assert all("MediaRef" not in str(f.annotation) or n in _WANTED for n, f in MediaSpec.model_fields.items())


def wanted_kind(leaf: str) -> Any:
    """The kind of media that a setting of the spec's media part takes."""
    return _WANTED[leaf]


def store_given(leaf: str, what: Any, fps: float = 16.0, name: str = "") -> MediaRef:
    """Store `what` for a setting such as "image" or "references[1]". Raises `WanlabError` for another kind of media."""
    wanted = wanted_kind(leaf.partition("[")[0])
    try:
        ref = default_store().put(what, kind="mask" if wanted == "mask" else None, fps=fps, name=name)
        check_kind(ref.kind, wanted, ref.name or "What is given")
    except WanlabError as error:
        raise WanlabError(f"media.{leaf}: {error.problem}", choices=error.choices, remedy=error.remedy) from None
    return ref
