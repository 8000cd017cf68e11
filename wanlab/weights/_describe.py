"""From shapes to the architecture that they are of, and to words: "Wan VACE 1.3B: dim 1536, 30 layers"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
_HEAD = 128  # of every published Wan
_SIZES = {1536: "1.3B", 2048: "1.3B", 3072: "5B", 5120: "14B"}
_T5_HEAD = 64


def architecture_of(component: str, shapes: Shapes) -> dict[str, Any]:
    """Keyword arguments of the diffusers or transformers class that has these tensors, as far as shapes tell them.

    `shapes` by the module's names; those of a part of a checkpoint tell less. Empty for networks it does not know.
    """
    reader = {"transformer": _wan, "vae": _vae, "text_encoder": _t5, "image_encoder": _clip}.get(component)
    found = reader(shapes) if reader else {}
    return {key: value for key, value in found.items() if value is not None}


def _dim(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _layers(shapes: Shapes, stem: str) -> int | None:
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    numbers = [int(match.group(1)) for name in shapes if (match := pattern.match(name))]
    return max(numbers) + 1 if numbers else None


def _wan(shapes: Shapes) -> dict[str, Any]:
    if not any(name.startswith(("blocks.", "vace_blocks.", "condition_embedder.")) for name in shapes):
        return {}
    patch = shapes.get("patch_embedding.weight", ())
    stride = tuple(patch[2:]) if len(patch) == 5 else None
    dim = patch[0] if patch else _dim(shapes, "blocks.0.scale_shift_table", 2)
    out = _dim(shapes, "proj_out.weight", 0)
    embedder = "condition_embedder"
    found: dict[str, Any] = {
        "patch_size": stride,
        "in_channels": patch[1] if patch else None,
        "out_channels": out // math.prod(stride) if out and stride else None,
        "num_layers": _layers(shapes, "blocks"),
        "ffn_dim": _dim(shapes, "blocks.0.ffn.net.0.proj.weight", 0),
        "text_dim": _dim(shapes, f"{embedder}.text_embedder.linear_1.weight", 1),
        "freq_dim": _dim(shapes, f"{embedder}.time_embedder.linear_1.weight", 1),
        "image_dim": _dim(shapes, f"{embedder}.image_embedder.norm1.weight", 0),
        "pos_embed_seq_len": _dim(shapes, f"{embedder}.image_embedder.pos_embed", 1),
        "added_kv_proj_dim": _dim(shapes, "blocks.0.attn2.add_k_proj.weight", 1),
        "vace_in_channels": _dim(shapes, "vace_patch_embedding.weight", 1),
    }
    if dim and dim % _HEAD == 0:
        found |= {"attention_head_dim": _HEAD, "num_attention_heads": dim // _HEAD}
    if "blocks.0.norm2.weight" in shapes or "blocks.0.attn1.to_q.weight" in shapes:
        found["cross_attn_norm"] = "blocks.0.norm2.weight" in shapes
    return found


def _vae(shapes: Shapes) -> dict[str, Any]:
    nested = any(".downsampler." in name or name.startswith("encoder.down_blocks.0.resnets") for name in shapes)
    if "quant_conv.weight" not in shapes or len(shapes["quant_conv.weight"]) != 5:
        return {}
    decoder = _dim(shapes, "decoder.norm_out.gamma", 0)
    return {
        "base_dim": _dim(shapes, "encoder.conv_in.weight", 0),
        "decoder_base_dim": decoder if decoder != _dim(shapes, "encoder.conv_in.weight", 0) else None,
        "z_dim": _dim(shapes, "post_quant_conv.weight", 0),
        "in_channels": _dim(shapes, "encoder.conv_in.weight", 1),
        "out_channels": _dim(shapes, "decoder.conv_out.weight", 0),
        "is_residual": nested,
    }


def _t5(shapes: Shapes) -> dict[str, Any]:
    stem = "encoder.block.0.layer"
    table = shapes.get("shared.weight", shapes.get("encoder.embed_tokens.weight", ()))
    inner = _dim(shapes, f"{stem}.0.SelfAttention.q.weight", 0)
    heads = _dim(shapes, f"{stem}.0.SelfAttention.relative_attention_bias.weight", 1)
    return {
        "vocab_size": table[0] if table else None,
        "d_model": table[1] if table else _dim(shapes, "encoder.final_layer_norm.weight", 0),
        "d_ff": _dim(shapes, f"{stem}.1.DenseReluDense.wi_0.weight", 0),
        "num_layers": _layers(shapes, "encoder.block"),
        "num_heads": heads,
        "d_kv": inner // heads if inner and heads else None,
    }


def _clip(shapes: Shapes) -> dict[str, Any]:
    shapes = {name.removeprefix("vision_model."): shape for name, shape in shapes.items()}
    patch = shapes.get("embeddings.patch_embedding.weight", ())
    count = shapes.get("embeddings.position_embedding.weight", ())
    tokens = count[-2] if len(count) > 1 else None  # the original keeps a leading dimension of 1
    return {
        "hidden_size": patch[0] if patch else None,
        "patch_size": patch[2] if len(patch) == 4 else None,
        "num_hidden_layers": _layers(shapes, "encoder.layers"),
        "intermediate_size": _dim(shapes, "encoder.layers.0.mlp.fc1.weight", 0),
        "image_size": math.isqrt(tokens - 1) * patch[2] if tokens and len(patch) == 4 else None,
    }


def words(component: str, shapes: Shapes) -> str:
    """What network these tensors are of, for a message; empty if it is none that is known."""
    found = architecture_of(component, shapes)
    if not found:
        return ""
    return {"transformer": _wan_words, "vae": _vae_words, "text_encoder": _t5_words, "image_encoder": _clip_words}[
        component
    ](found, shapes)


def _wan_words(found: dict[str, Any], shapes: Shapes) -> str:
    channels = found.get("in_channels")
    dim = _dim(shapes, "patch_embedding.weight", 0) or _dim(shapes, "vace_patch_embedding.weight", 0)
    if found.get("vace_in_channels"):
        name = "Wan 2.1 VACE" if found.get("num_layers") else "the VACE module of Wan"
    elif any(n.startswith(("face_adapter.", "motion_encoder.")) for n in shapes):
        name = "Wan 2.2 Animate"
    elif found.get("pos_embed_seq_len"):
        name = "Wan 2.1 first-last-frame"
    elif found.get("image_dim"):
        name = "Wan 2.1 image-to-video"
    elif channels == 48:
        name = "Wan 2.2 TI2V"
    elif channels == 16:
        name = "Wan 2.1 or 2.2 text-to-video"
    elif channels == 36:
        name = "Wan 2.2 image-to-video or Fun"
    else:
        name = "a Wan"
    layers = found.get("num_layers") or _layers(shapes, "vace_blocks")
    facts = [f"dim {dim}"] * bool(dim) + [f"{layers} layers"] * bool(layers) + [f"{channels} channels"] * bool(channels)
    size = f" {_SIZES[dim]}" if dim in _SIZES else ""
    return f"{name}{size}: {', '.join(facts)}"


def _vae_words(found: dict[str, Any], _: Shapes) -> str:
    generation = "2.2" if found["is_residual"] else "2.1"
    return f"the VAE of Wan {generation}: {found.get('z_dim')} channels, base {found.get('base_dim')}"


def _t5_words(found: dict[str, Any], _: Shapes) -> str:
    return f"a T5 encoder: d_model {found.get('d_model')}, {found.get('num_layers')} layers"


def _clip_words(found: dict[str, Any], _: Shapes) -> str:
    return f"a CLIP vision encoder: width {found.get('hidden_size')}, {found.get('num_hidden_layers')} layers"
