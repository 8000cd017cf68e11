"""Media that are given to a spec as themselves: a path, a picture, frames; stored, and replaced by what names them."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from typing import Any

from wanlab.registry import late
from wanlab.spec.media_ref import MediaRef
from wanlab.spec.parts import MediaSpec

_store = late("wanlab.media", "store_given")  # which decodes pictures and videos, so it comes after the spec
_check_serves = late("wanlab.media", "check_serves")
_MANY = frozenset(n for n, f in MediaSpec.model_fields.items() if f.annotation == tuple[MediaRef, ...])
_ONE = frozenset(n for n, f in MediaSpec.model_fields.items() if f.annotation == MediaRef | None)
_FPS = 16.0  # of frames given to a spec that knows no fps yet


def with_stored(changes: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The changes with references in place of paths, PIL images and arrays; frames play at the spec's fps.

    base: the nested settings that are changed. Only for what a user gives here and now: a document that was read may
    name files of this machine that are nobody's business. Raises WanlabError for what is no media.
    """
    fps = _fps(changes, base)
    found: dict[str, Any] = {}
    for key, value in changes.items():
        if key == "media" and isinstance(value, Mapping):
            found[key] = {leaf: _leaf(leaf, item, fps) for leaf, item in value.items()}
        else:
            found[key] = _leaf(key.removeprefix("media.").removeprefix("media__"), value, fps)
    return found


def _leaf(leaf: str, value: Any, fps: float) -> Any:
    if leaf in _ONE:
        return _item(leaf, value, fps)
    if leaf in _MANY and _is_media(value):
        value = [value]
    if leaf in _MANY and isinstance(value, list | tuple):
        return [_item(f"{leaf}[{i}]", item, fps) for i, item in enumerate(value)]
    return value


def _item(leaf: str, value: Any, fps: float) -> Any:
    if isinstance(value, MediaRef):
        _check_serves(leaf, value)
        return value
    return _store(leaf, value, fps) if _is_media(value) or isinstance(value, list | tuple) else value


def _is_media(value: Any) -> bool:
    """Whether this is a path, a PIL image or an array, known without importing any of their packages."""
    is_array = hasattr(value, "dtype") and getattr(value, "ndim", 0) > 1
    return isinstance(value, str | os.PathLike) or hasattr(value, "convert") or is_array


def _fps(changes: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    size = changes.get("size")
    inside = size.get("fps") if isinstance(size, Mapping) else None
    given = (changes.get("fps"), changes.get("size.fps"), changes.get("size__fps"), inside)
    known = (v for v in (*given, base.get("size", {}).get("fps")) if isinstance(v, numbers.Real) and v > 0)
    return float(next(known, _FPS))
