"""The same tiny networks in the layouts that people have on their disks: original keys, fp8, int8, GGUF.

The names are turned back by rules of their own, not by wanlab's tables.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
_WAN = [  # diffusers -> Wan, in the order in which they are applied
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".norm_added_k.", ".norm_k_img."),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".proj_in.", ".before_proj."),
    (".proj_out.", ".after_proj."),
    (".scale_shift_table", ".modulation"),
]


def wan_original(state: State) -> State:
    """A transformer's state dict under the keys of Wan-Video/Wan2.1's model.py and vace_model.py."""
    out = {}
    for key, value in state.items():
        if key == "scale_shift_table":
            new = "head.modulation"
        elif key.startswith("proj_out."):
            new = key.replace("proj_out.", "head.head.")
        else:
            new = key
            for theirs, ours in _WAN:
                new = new.replace(theirs, ours)
        out[new] = value
    return out


def animate_original(state: State) -> State:
    """Wan-Animate: face and motion networks too, keys and values fused, biases as (1, C, 1, 1)."""
    out, rest, net = {}, {}, "motion_encoder.enc.net_app.convs"
    for key, value in state.items():
        steps = key.split(".")
        if key.startswith("face_adapter.") and ".to_k." in key:
            fused = torch.cat([value, state[key.replace(".to_k.", ".to_v.")]])
            out[f"face_adapter.fuser_blocks.{steps[1]}.linear1_kv.{steps[-1]}"] = fused
        elif key.startswith("face_adapter.") and ".to_v." not in key:
            name = {"to_q": "linear1_q", "to_out": "linear2", "norm_q": "q_norm", "norm_k": "k_norm"}[steps[2]]
            out[f"face_adapter.fuser_blocks.{steps[1]}.{name}.{steps[-1]}"] = value
        elif key.startswith("face_encoder.conv"):
            out[f"face_encoder.{steps[1]}.conv.{steps[-1]}"] = value
        elif key == "motion_encoder.motion_synthesis_weight":
            out["motion_encoder.dec.direction.weight"] = value
        elif key.startswith("motion_encoder.motion_network."):
            out[key.replace("motion_network", "enc.fc")] = value
        elif key.startswith("motion_encoder.conv_out"):
            out[f"{net}.8.weight"] = value
        elif key.startswith("motion_encoder.conv_in"):
            out[f"{net}.0.{'1.bias' if 'act_fn' in key else '0.weight'}"] = _four(key, value)
        elif key.startswith("motion_encoder.res_blocks."):
            conv = {"conv1": ("0", "1"), "conv2": ("1", "2"), "conv_skip": ("1", "1")}[steps[3]]
            name = "skip" if steps[3] == "conv_skip" else steps[3]
            out[f"{net}.{int(steps[2]) + 1}.{name}.{conv['act_fn' in key]}.{steps[-1]}"] = _four(key, value)
        elif not key.startswith("face_adapter."):
            rest[key] = value
    return wan_original(rest) | out | {f"{net}.1.conv2.0.kernel": torch.ones(4, 4)}


def _four(key: str, value: Tensor) -> Tensor:
    return value.reshape(1, -1, 1, 1) if "act_fn" in key else value


def vae_original(state: State, num_blocks: int) -> State:
    """Wan2.1's VAE (flat lists) or, for a residual one, Wan2.2's (nested)."""
    out = {}
    for key, value in state.items():
        new = key
        for a, b in ((".norm1.", ".residual.0."), (".conv1.", ".residual.2."), (".norm2.", ".residual.3.")):
            new = new.replace(a, b)
        new = new.replace(".conv2.", ".residual.6.").replace(".conv_shortcut.", ".shortcut.")
        for side in ("encoder", "decoder"):
            new = new.replace(f"{side}.conv_in.", f"{side}.conv1.").replace(f"{side}.norm_out.", f"{side}.head.0.")
            new = new.replace(f"{side}.conv_out.", f"{side}.head.2.")
            new = new.replace(f"{side}.mid_block.resnets.0", f"{side}.middle.0")
            new = new.replace(f"{side}.mid_block.resnets.1", f"{side}.middle.2")
            new = new.replace(f"{side}.mid_block.attentions.0", f"{side}.middle.1")
        new = "conv1" + new[10:] if new.startswith("quant_conv") else new
        new = "conv2" + new[15:] if new.startswith("post_quant_conv") else new
        steps = new.split(".")
        if steps[1] == "down_blocks" and steps[3] == "resnets":
            new = ".".join(["encoder.downsamples", steps[2], "downsamples", *steps[4:]])
        elif steps[1] == "down_blocks" and steps[3] == "downsampler":
            new = ".".join(["encoder.downsamples", steps[2], "downsamples", str(num_blocks), *steps[4:]])
        elif steps[1] == "down_blocks":
            new = ".".join(["encoder.downsamples", *steps[2:]])
        elif steps[1] == "up_blocks" and steps[3] == "upsampler":
            new = ".".join(["decoder.upsamples", steps[2], "upsamples", str(num_blocks + 1), *steps[4:]])
        elif steps[1] == "up_blocks" and any(".upsampler." in other for other in state):
            new = ".".join(["decoder.upsamples", steps[2], "upsamples", *steps[4:]])
        elif steps[1] == "up_blocks":
            first = int(steps[2]) * (num_blocks + 2)
            place = first + (num_blocks + 1 if steps[3] == "upsamplers" else int(steps[4]))
            new = ".".join(["decoder.upsamples", str(place), *steps[5:]])
        out[new] = value
    return out


_T5 = [
    ("encoder.block.", "blocks."),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention", "attn"),
    ("layer.0.layer_norm", "norm1"),
    ("layer.1.layer_norm", "norm2"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    ("encoder.final_layer_norm", "norm"),
    ("shared", "token_embedding"),
]
_T5_GGUF = [
    ("encoder.block.", "enc.blk."),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("layer.0.SelfAttention.", "attn_"),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.1.layer_norm", "ffn_norm"),
    ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"),
    ("layer.1.DenseReluDense.wo", "ffn_down"),
    ("encoder.final_layer_norm", "enc.output_norm"),
    ("shared", "token_embd"),
]


def t5_original(state: State, gguf: bool = False) -> State:
    """UMT5's encoder under the keys of Wan's t5.py, or of llama.cpp."""
    out = {}
    for key, value in state.items():
        if key == "encoder.embed_tokens.weight":
            continue
        for theirs, ours in _T5_GGUF if gguf else _T5:
            key = key.replace(theirs, ours)
        out[key] = value
    return out


def clip_original(state: State) -> State:
    """The vision half of CLIP under the keys of Wan's clip.py, with the text half beside it."""
    out = {"log_scale": torch.ones(()), "visual.head": torch.ones(2, 2), "textual.norm.weight": torch.ones(2)}
    state = {key.removeprefix("vision_model."): value for key, value in state.items()}
    for key, value in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            value = torch.cat([state[key.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"])
        new = key.replace("encoder.layers.", "transformer.").replace("self_attn.q_proj", "attn.to_qkv")
        new = new.replace("self_attn.out_proj", "attn.proj").replace("layer_norm", "norm")
        new = new.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2")
        new = new.replace("pre_layrnorm", "pre_norm").replace("post_layernorm", "post_norm")
        if key == "embeddings.class_embedding":
            new, value = "cls_embedding", value.view(1, 1, -1)
        elif key == "embeddings.position_embedding.weight":
            new, value = "pos_embedding", value.unsqueeze(0)
        out[f"visual.{new.replace('embeddings.', '')}"] = value
    return out


def is_linear(key: str, value: Tensor) -> bool:
    return value.ndim == 2 and key.endswith(".weight") and "norm" not in key and "embedding" not in key


def scaled_fp8(state: State, scale_name: str = "scale_weight") -> tuple[State, State]:
    """(file, float32 values that it stands for) in ComfyUI's scaled fp8: one factor a layer."""
    file, truth = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for key, value in state.items():
        if is_linear(key, value):
            scale = (value.abs().max() / 448).float()
            file[key] = (value / scale).to(torch.float8_e4m3fn)
            file[key.removesuffix("weight") + scale_name] = scale.reshape(1) if "q" in key else scale
            file[key.removesuffix("weight") + "scale_input"] = torch.ones(1)
            truth[key] = torch.from_numpy(file[key].float().numpy() * scale.numpy())
        else:
            file[key] = truth[key] = value
    return file, truth


def quanto_int8(state: State) -> tuple[State, State]:
    """(file, float32 values) as quanto writes them: int8 rows with a bfloat16 factor each."""
    file, truth = {}, {}
    for key, value in state.items():
        if is_linear(key, value):
            scale = (value.abs().amax(1, keepdim=True) / 127).clamp_min(1e-8).to(torch.bfloat16)
            data = (value / scale).round().clamp(-127, 127).to(torch.int8)
            layer = key.removesuffix("weight")
            file |= {f"{key}._data": data, f"{key}._scale": scale}
            file |= {f"{layer}input_scale": torch.ones(1), f"{layer}output_scale": torch.ones(1)}
            truth[key] = torch.from_numpy(data.numpy().astype("float32") * scale.float().numpy())
        else:
            file[key] = truth[key] = value
    return file, truth


def write_gguf(path: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], **settings: Any) -> None:
    """A GGUF file of version 3 from {name: (type number, shape, bytes)}; settings are integers, texts or shapes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    for key, value in settings.items():
        head += _text(key)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, list):
            head += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        elif isinstance(value, tuple):
            head += struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        else:
            head += struct.pack("<II", 4, value)
    offset, body = 0, b""
    for name, (kind, shape, data) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)
        body += data + bytes(-len(data) % 32)
        offset = len(body)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
