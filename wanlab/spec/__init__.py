"""The spec: frozen data that alone decides what a generation gives."""

from wanlab.spec.generation import LEAVES, PARTS, GenerationSpec
from wanlab.spec.identity import canonical_json, content, content_id
from wanlab.spec.media_ref import MediaRef
from wanlab.spec.method_part import MethodPart, NameIn, NoOptions
from wanlab.spec.part import FrozenDict, HashDefault, Part, Unhashed, plain

__all__ = [
    "LEAVES",
    "PARTS",
    "FrozenDict",
    "GenerationSpec",
    "HashDefault",
    "MediaRef",
    "MethodPart",
    "NameIn",
    "NoOptions",
    "Part",
    "Unhashed",
    "canonical_json",
    "content",
    "content_id",
    "plain",
]
