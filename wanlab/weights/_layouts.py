"""What a weight file is: whose names it uses, how its numbers are stored, which network it looks like.

Recognised by keys, shapes and number formats alone; a file's name says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wanlab.errors import WanlabError, shorten
from wanlab.weights._describe import architecture_of
from wanlab.weights._gguf import BLOCKS
from wanlab.weights._header import Entry, Header
from wanlab.weights._tables import CLIP, UMT5, UMT5_GGUF, WAN, Table, rename, vae_table


@dataclass(frozen=True)
class Layout:
    """What `recognise` finds."""

    kind: str
    """diffusers, transformers, wan_original, vae_original, umt5_original, umt5_gguf, clip_original, lora or unknown."""
    component: str
    """transformer, vae, text_encoder, image_encoder; empty if unknown."""
    prefix: str = ""
    """What every key of the network starts with before its own name."""
    stored_as: str = "float"
    """float, int8, fp8 or gguf."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class, as far as shapes tell them; head counts are guesses by the published sizes."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a network as a file holds it."""

    key: str
    """Of its numbers in the file."""
    entry: Entry
    scale: str | None = None
    """Key of what they are multiplied by: one number, or one for each row."""
    names: tuple[str, ...] = ()
    """In the module, one under another."""

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of each of `names`."""
        first, *rest = self.entry.shape or (1,)
        return (first // len(self.names), *rest) if len(self.names) > 1 else self.entry.shape


_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
_SIGNS = (  # kind, component, a key that only it has
    ("wan_original", "transformer", r"(vace_)?blocks\.\d+\.((self|cross)_attn\.|(before|after)_proj\.|modulation$)"),
    (
        "wan_original",
        "transformer",
        r"(head\.head\.|head\.modulation$|time_projection\.1\.|face_adapter\.fuser_blocks\.)",
    ),
    (
        "diffusers",
        "transformer",
        r"((vace_)?blocks\.\d+\.attn[12]\.|condition_embedder\.|(single_)?transformer_blocks\.\d)",
    ),
    ("umt5_original", "text_encoder", r"blocks\.\d+\.(attn\.[qkvo]\.|ffn\.(gate\.0|fc[12])\.|pos_embedding\.)"),
    ("umt5_gguf", "text_encoder", r"enc\.blk\.\d+\.attn_"),
    ("transformers", "text_encoder", r"encoder\.block\.\d+\.layer\.\d"),
    ("clip_original", "image_encoder", r"visual\.transformer\.\d+\."),
    ("transformers", "image_encoder", r"(vision_model\.)?(embeddings\.patch_embedding\.|pre_layrnorm\.)"),
    ("transformers", "text_encoder", r"(text_model\.)?(embeddings\.token_embedding\.|final_layer_norm\.)"),
    ("vae_original", "vae", r"(encoder|decoder)\.(downsamples|upsamples|middle)\.\d"),
    ("diffusers", "vae", r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\."),
)
_SIGNS_COMPILED = tuple((kind, component, re.compile(sign)) for kind, component, sign in _SIGNS)
_LORA = re.compile(r"(lora_(A|B|up|down)\b|\.lora\.(up|down)|_lora\.|\.diff(_b)?$|hada_w|lokr_w)")
_FACTOR = ("._scale", ".scale_weight", ".weight_scale")
_IGNORED = {  # kind -> keys that hold nothing of the network; of other networks that share the file, or of activations
    "": re.compile(r"scaled_fp8$|spiece_model$|.*\.(input_scale|output_scale|scale_input|comfy_quant)$"),
    "wan_original": re.compile(r"motion_encoder\..*\.kernel$"),
    "clip_original": re.compile(r"textual\.|log_scale$|visual\.head"),
    "transformers": re.compile(r".*\.position_ids$|spiece_model$"),
}
SPARE = re.compile(r"visual_projection\.|text_projection\.|logit_scale$")
"""Keys of CLIP that some classes have and others do without."""
_BUNDLE = re.compile(r"(vae|first_stage_model|cond_stage_model|text_encoders|conditioner)\.")


def recognise(header: Header) -> Layout:
    """The layout of a file, from its header; `unknown` is a kind too."""
    prefix, kind, component = _kind(header.entries)
    layout = Layout(kind, component, prefix, _stored_as(header))
    if kind in ("unknown", "lora"):
        return layout
    shapes = shapes_of(stored_tensors(header, layout, strict=False))
    return Layout(kind, component, prefix, layout.stored_as, architecture_of(component, shapes))


def _kind(keys: Iterable[str]) -> tuple[str, str, str]:
    """(prefix, kind, component)."""
    for prefix in _PREFIXES:
        for kind, component, sign in _SIGNS_COMPILED:
            for key in keys:
                if key.startswith(prefix) and sign.match(key, len(prefix)):
                    lora = any(_LORA.search(other) for other in keys)
                    return prefix, "lora" if lora else kind, component
    return "", "lora" if any(_LORA.search(key) for key in keys) else "unknown", ""


def component_of(keys: Iterable[str]) -> str:
    """The component that a module's names are of; empty if unknown."""
    return _kind(list(keys))[2]


def _stored_as(header: Header) -> str:
    if header.kind == "gguf":
        return "gguf"
    if any(key.endswith(".weight._data") for key in header.entries):
        return "int8"
    return "fp8" if any(e.dtype.startswith("F8") for e in header.entries.values()) else "float"


def shapes_of(tensors: Iterable[Stored]) -> dict[str, tuple[int, ...]]:
    """{name in the module: shape}."""
    return {name: stored.part_shape for stored in tensors for name in stored.names}


def stored_tensors(header: Header, layout: Layout, strict: bool = True) -> list[Stored]:
    """The network's tensors in the file's order, with their names in the module; what no table knows keeps its key.

    Raises WanlabError for number formats that are not read, unless `strict` is off.
    """
    keys = {key.removeprefix(layout.prefix): key for key in header.entries if key.startswith(layout.prefix)}
    bundled = "" if not layout.prefix else f" beside {layout.prefix}"
    table, ignored = _table(layout.kind, keys), (_IGNORED[""], _IGNORED.get(layout.kind, _IGNORED[""]))
    found = []
    for key, full in keys.items():
        if any(pattern.match(key) for pattern in ignored) or key.endswith(_FACTOR):
            continue
        plain = key.removesuffix("._data")
        scale = _scale(header, full)
        if strict:
            _check_format(header, full, scale)
        names = rename(plain, table) if table is not None else (plain,)
        found.append(Stored(full, header.entries[full], scale, names or (plain,)))
    if strict:
        _check_rest(header, layout, bundled)
    return found


def _table(kind: str, keys: Iterable[str]) -> Table | None:
    if kind == "vae_original":
        return vae_table(keys)
    return {"wan_original": WAN, "umt5_original": UMT5, "umt5_gguf": UMT5_GGUF, "clip_original": CLIP}.get(kind)


def _scale(header: Header, key: str) -> str | None:
    """The key of what a tensor's numbers are multiplied by."""
    if key.endswith("._data"):
        return key.removesuffix("_data") + "_scale"
    layer = key.removesuffix(".weight")
    names = (f"{layer}.scale_weight", f"{layer}.weight_scale") if layer != key else ()
    return next((name for name in names if name in header.entries), None)


def _check_format(header: Header, key: str, scale: str | None) -> None:
    """Raise WanlabError unless the numbers of `key` can be read, with their scale if they need one."""
    entry, place = header.entries[key], f"{header.path}: {shorten(key, 120)[1:-1]}"
    remedy = "Use the 16- or 32-bit, scaled fp8, quanto int8 or GGUF file of this checkpoint"
    if scale is None:
        if entry.dtype not in _READABLE:
            raise WanlabError(f"{place} is stored as {entry.dtype}, which is not read", remedy=remedy)
        return
    if scale not in header.entries:
        raise WanlabError(f"{place} is there and its scale {scale} is not", remedy="Download the file again")
    factor, rows = header.entries[scale], entry.shape[0] if entry.shape else 1
    kinds = _SCALED if key.endswith("._data") else _SCALED - {"I8"}
    if entry.dtype not in kinds or factor.dtype not in _FACTORS or _count(factor.shape) not in (1, rows):
        raise WanlabError(
            f"{place} is stored as {entry.dtype} with a scale of {factor.dtype} {factor.shape}, which is not read",
            remedy=remedy,
        )


_FLOATS = {"F64", "F32", "F16", "BF16"}
_READABLE = _FLOATS | {"F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "U8", "BOOL"} | set(BLOCKS) - {"I8"}
_SCALED = _FLOATS | {"F8_E4M3", "F8_E5M2", "I8"}
_FACTORS = {"F32", "F16", "BF16"}


def _count(shape: tuple[int, ...]) -> int:
    """Elements, if at most one dimension has more than one; else 0."""
    wide = [n for n in shape if n != 1]
    return 0 if len(wide) > 1 else wide[0] if wide else 1


def _check_rest(header: Header, layout: Layout, where: str) -> None:
    """Keys without the network's prefix belong to other networks of the same file, or the file is not understood."""
    for key in header.entries:
        if not key.startswith(layout.prefix) and not _BUNDLE.match(key) and not _IGNORED[""].match(key):
            raise WanlabError(
                f"{header.path} holds {shorten(key, 120)}{where}", remedy="Give the file of one network alone"
            )
