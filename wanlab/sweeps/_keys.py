"""Which points may share their work at all: what of a spec has to be equal, as one word."""

from __future__ import annotations

from typing import Any

from wanlab.registry import CACHES
from wanlab.spec import GenerationSpec
from wanlab.spec.identity import content_id

_LATER = ("cache", "guidance", "post", "output")
"""Parts that single steps are compared by, and those of later stages."""
_LEVELS = ("expert_boundary", "sigmas", "flow_shift")


def group_key(model: Any, spec: GenerationSpec) -> str:
    """Points with equal keys may share their denoising until a step differs; `plan` finds out how far they do.

    `model` may be described only. In the key is all of the resolved spec but the cache, the guidance, the noise levels
    and what comes after denoising; and the weights. Raises WanlabError for a spec that the model cannot follow.
    """
    resolved = spec.resolve(model)
    content = {name: value for name, value in resolved.content().items() if name not in _LATER}
    content["sampling"] = _without(content["sampling"], _LEVELS)
    content["batched"] = spec.guidance.batch_branches
    content["attention_asked"] = spec.attention.method  # "auto" leaves in place what is there
    content["fingerprint"] = "" if model.is_described else model.fingerprint
    if spec.compile.compile_mode == "blocks" and spec.cache.method != "none":
        content["uncompiled"] = _inside_blocks(spec)
    return content_id(content)


def text_key(spec: GenerationSpec) -> str:
    """Points of one model with equal keys have the same text embeddings.

    Encode them with a point whose guidance uses the negative prompt, where there is one.
    """
    content = spec.content()
    return content_id({name: content[name] for name in ("model", "weights", "text") if name in content})


def conditions_key(spec: GenerationSpec) -> str:
    """Points of one model with equal keys have the same conditions: what `encode_conditions` returns."""
    content = spec.content()
    found = {name: content[name] for name in ("model", "weights", "media", "size") if name in content}
    left_out = _LEVELS if spec.media.mask is not None else (*_LEVELS, "sampler", "num_steps", "seed")
    found["sampling"] = _without(content["sampling"], left_out)
    return content_id(found)


def _without(part: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}


def _inside_blocks(spec: GenerationSpec) -> dict[str, Any]:
    """The cache, if it works inside the blocks: those then run uncompiled, which may round differently."""
    cache = CACHES.get(spec.cache.method)(spec.cache.bind())
    return {"method": spec.cache.method, "options": cache.made_by[1]} if cache.level == "part" else {}
