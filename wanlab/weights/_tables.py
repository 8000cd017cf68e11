"""Names of the same tensor in original files and in diffusers' and transformers' modules.

Sources of the original names: Wan-Video/Wan2.1 and Wan2.2, wan/modules/{model,vae2_1,vae2_2,t5,clip}.py; diffusers
0.42.1, loaders/single_file_utils.py and models/; llama.cpp's names of T5 (gguf-py, tensor_mapping.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Table = Mapping[str, str | tuple[str, ...]]
"""Stem of a key (without `.weight` and the like; `*` is its first number) -> stem in the module. Several stems: the
tensor holds them one under another, in equal parts."""

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_WAN_BLOCK = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in _ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in (_ATTENTION | _IMAGE).items()},
    "norm3": "norm2",  # Wan counts its norms by their place in the constructor, diffusers by their place in the forward
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_WAN_TOP = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "pose_patch_embedding": "pose_patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_NET = "motion_encoder.enc.net_app.convs"
_ANIMATE = {
    "motion_encoder.dec.direction.weight": "motion_encoder.motion_synthesis_weight",
    "motion_encoder.enc.fc.*": "motion_encoder.motion_network.*",
    f"{_NET}.0.0": "motion_encoder.conv_in",
    f"{_NET}.0.1": "motion_encoder.conv_in.act_fn",
    f"{_NET}.8": "motion_encoder.conv_out",
    **{
        f"{_NET}.{i + 1}.{old}": f"motion_encoder.res_blocks.{i}.{new}"
        for i in range(7)
        for old, new in {
            "conv1.0": "conv1",
            "conv1.1": "conv1.act_fn",
            "conv2.1": "conv2",
            "conv2.2": "conv2.act_fn",
            "skip.1": "conv_skip",
        }.items()
    },
    "face_encoder.conv1_local.conv": "face_encoder.conv1_local",
    "face_encoder.conv2.conv": "face_encoder.conv2",
    "face_encoder.conv3.conv": "face_encoder.conv3",
    "face_encoder.out_proj": "face_encoder.out_proj",
    "face_encoder.padding_tokens": "face_encoder.padding_tokens",
    "face_adapter.fuser_blocks.*.linear1_q": "face_adapter.*.to_q",
    "face_adapter.fuser_blocks.*.linear1_kv": ("face_adapter.*.to_k", "face_adapter.*.to_v"),
    "face_adapter.fuser_blocks.*.linear2": "face_adapter.*.to_out",
    "face_adapter.fuser_blocks.*.q_norm": "face_adapter.*.norm_q",
    "face_adapter.fuser_blocks.*.k_norm": "face_adapter.*.norm_k",
}
WAN: Table = {
    **{f"blocks.*.{old}": f"blocks.*.{new}" for old, new in _WAN_BLOCK.items()},
    **{f"vace_blocks.*.{old}": f"vace_blocks.*.{new}" for old, new in _WAN_BLOCK.items()},
    **_WAN_TOP,
    **_ANIMATE,
}

_T5_BLOCK = {
    **{f"attn.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
UMT5: Table = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    **{f"blocks.*.{old}": f"encoder.block.*.{new}" for old, new in _T5_BLOCK.items()},
}
_T5_GGUF = {
    **{f"attn_{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
UMT5_GGUF: Table = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    **{f"enc.blk.*.{old}": f"encoder.block.*.{new}" for old, new in _T5_GGUF.items()},
}

CLIP: Table = {
    "visual.cls_embedding": "embeddings.class_embedding",
    "visual.pos_embedding": "embeddings.position_embedding.weight",
    "visual.patch_embedding": "embeddings.patch_embedding",
    "visual.pre_norm": "pre_layrnorm",
    "visual.post_norm": "post_layernorm",
    "visual.transformer.*.norm1": "encoder.layers.*.layer_norm1",
    "visual.transformer.*.norm2": "encoder.layers.*.layer_norm2",
    "visual.transformer.*.attn.to_qkv": tuple(f"encoder.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "visual.transformer.*.attn.proj": "encoder.layers.*.self_attn.out_proj",
    "visual.transformer.*.mlp.0": "encoder.layers.*.mlp.fc1",
    "visual.transformer.*.mlp.2": "encoder.layers.*.mlp.fc2",
}

_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_FLAT = re.compile(r"(encoder|decoder)\.(?:down|up)samples\.(\d+)\.(residual|shortcut|resample|time_conv)\b")
_NESTED = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.")


def vae_table(keys: Iterable[str]) -> Table:
    """The table of the VAE that `keys` are of: Wan 2.1's, with one flat list of layers, or Wan 2.2's nested one.

    The list of layers itself tells how many blocks a level has: a resampling layer ends it.
    """
    keys = list(keys)
    table: dict[str, str | tuple[str, ...]] = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        table |= {f"{side}.conv1": f"{side}.conv_in", f"{side}.head.0": f"{side}.norm_out"}
        table[f"{side}.head.2"] = f"{side}.conv_out"
        for old, new in ((0, 0), (2, 1)):
            table |= _renamed(f"{side}.middle.{old}", f"{side}.mid_block.resnets.{new}", _RESIDUAL)
        attention = {name: name for name in ("norm", "to_qkv", "proj")}
        table |= _renamed(f"{side}.middle.1", f"{side}.mid_block.attentions.0", attention)
    nested = {match.groups() for key in keys if (match := _NESTED.match(key))}
    for side, way, level, layer in nested:
        old, new = f"{side}.{way}samples.{level}.{way}samples.{layer}", f"{side}.{way}_blocks.{level}"
        table |= _renamed(old, f"{new}.resnets.{layer}", _RESIDUAL)
        table |= _renamed(old, f"{new}.{way}sampler", _RESAMPLE)
    return table if nested else table | _flat_levels(keys)


def _flat_levels(keys: list[str]) -> Table:
    """Wan 2.1: the encoder's list stays flat, the decoder's is cut after each layer that resamples."""
    found = {match.groups() for key in keys if (match := _FLAT.match(key))}
    table: dict[str, str] = {}
    for layer in {int(layer) for side, layer, _ in found if side == "encoder"}:
        table |= _renamed(f"encoder.downsamples.{layer}", f"encoder.down_blocks.{layer}", _RESIDUAL | _RESAMPLE)
    ends = {int(layer) for side, layer, what in found if side == "decoder" and what in ("resample", "time_conv")}
    level = block = 0
    for layer in sorted({int(layer) for side, layer, _ in found if side == "decoder"}):
        old, new = f"decoder.upsamples.{layer}", f"decoder.up_blocks.{level}"
        if layer in ends:
            table |= _renamed(old, f"{new}.upsamplers.0", _RESAMPLE)
            level, block = level + 1, 0
        else:
            table |= _renamed(old, f"{new}.resnets.{block}", _RESIDUAL)
            block += 1
    return table


def _renamed(old: str, new: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{old}.{a}": f"{new}.{b}" for a, b in parts.items()}


def rename(key: str, table: Table) -> tuple[str, ...]:
    """Names in the module of what a file calls `key`; empty if the table does not know it."""
    steps = key.split(".")
    number = next((i for i, step in enumerate(steps) if step.isdigit()), None)
    starred = steps if number is None else [*steps[:number], "*", *steps[number + 1 :]]
    for length in range(len(steps), 0, -1):
        rest = "".join(f".{step}" for step in steps[length:])
        for stem in (".".join(steps[:length]), ".".join(starred[:length])):
            if (found := table.get(stem)) is not None:
                names = (found,) if isinstance(found, str) else found
                count = "" if number is None else steps[number]
                return tuple(name.replace("*", count, 1) + rest for name in names)
    return ()
