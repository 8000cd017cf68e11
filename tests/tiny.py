"""Tiny random-weight pipelines in diffusers layout, built on the CPU in under a second and without a network.

`tiny_wan(folder)` and `tiny_flux(folder)` write the folder with diffusers' own `save_pretrained` and return it with a
definition that `wanlab.load` takes. The reference pipeline loads from the same folder, so both sides hold the same
weights. Weights through which prompt and guidance act are scaled up: with plain random ones a parity test can pass
without looking at its inputs.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

WAN_DIT: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
WAN_VAE: dict[str, Any] = {
    "base_dim": 3,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
FLUX_DIT: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 4, 8),
}
FLUX_VAE: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (4, 4),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 1,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.0609,
    "scaling_factor": 1.5035,
}
ENCODER = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
ENCODER["relative_attention_num_buckets"] = 8


def tiny_wan(folder: Path | str, experts: int = 1, **transformer: Any) -> tuple[Path, dict[str, Any]]:
    """Write a Wan 2.1 (experts=1) or 2.2 A14B-like (experts=2, boundary 0.875) text-to-video pipeline.

    `transformer` overrides the config of `WanTransformer3DModel`. Returns (folder, definition).
    """
    import diffusers
    from transformers import UMT5Config, UMT5EncoderModel

    folder = Path(folder)
    dit = {**WAN_DIT, **transformer}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [loud_wan(diffusers.WanTransformer3DModel(**dit)) for _ in range(experts)]
        vae = diffusers.AutoencoderKLWan(**WAN_VAE).eval()
        for p in (p for p in vae.parameters() if p.ndim == 1):  # biases that are zero would hide a wrong first frame
            nn.init.normal_(p, 0.1, 0.3)
        text_encoder = UMT5EncoderModel(UMT5Config(**ENCODER)).eval()
    pipeline = diffusers.WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        transformer=networks[0],
        transformer_2=networks[1] if experts == 2 else None,
        boundary_ratio=0.875 if experts == 2 else None,
    )
    pipeline.save_pretrained(folder)
    architecture = {"transformer": dit, "vae": WAN_VAE, "text_encoder": ENCODER}
    if experts == 2:
        architecture["transformer_2"] = dit
    sampling: dict[str, Any] = {"sampler": "unipc", "num_steps": 4, "flow_shift": 3.0}
    spec = {
        "text": {"max_text_tokens": 512},
        "size": {"width": 48, "height": 32, "num_frames": 9, "fps": 16},
        "sampling": sampling | ({"expert_boundary": 0.875} if experts == 2 else {}),
        "guidance": {"method": "cfg", "guidance_scale": 5.0},
    }
    return folder, definition_of(f"wan_random_{experts}", "wan", folder, architecture, spec)


def tiny_flux(folder: Path | str, **transformer: Any) -> tuple[Path, dict[str, Any]]:
    """Write a Flux text-to-image pipeline (2 double + 2 single blocks, guidance embedded). Returns (folder,
    definition)."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    folder = Path(folder)
    dit = {**FLUX_DIT, **transformer}
    clip: dict[str, Any] = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    clip |= {"num_attention_heads": 4, "max_position_embeddings": 77, "projection_dim": 32}
    clip |= {"bos_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _loud_flux(diffusers.FluxTransformer2DModel(**dit))
        vae = diffusers.AutoencoderKL(**FLUX_VAE).eval()
        text_encoder = CLIPTextModel(CLIPTextConfig(**clip)).eval()
        text_encoder_2 = T5EncoderModel(T5Config(**ENCODER)).eval()
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_clip_tokenizer(),
        text_encoder_2=text_encoder_2,
        tokenizer_2=t5_tokenizer(),
        transformer=network,
    )
    pipeline.save_pretrained(folder)
    architecture = {"transformer": dit, "vae": FLUX_VAE, "text_encoder": clip, "text_encoder_2": ENCODER}
    spec = {
        "text": {"max_text_tokens": 64},
        "size": {"width": 48, "height": 32, "num_frames": 1, "fps": 1},
        "sampling": {"sampler": "euler", "num_steps": 4},
        "guidance": {"method": "embedded", "guidance_scale": 3.5},
    }
    shift = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    definition = definition_of("flux_random", "flux", folder, architecture, spec)
    return folder, definition | {"constants": {"dynamic_shift": shift}}


def aligned(pipeline: Any) -> Any:
    """The pipeline with its weights at addresses of their own, as wanlab holds them: safetensors maps them wherever
    the file has them, and some kernels of the CPU round differently at odd addresses."""
    for part in pipeline.components.values():
        for p in part.parameters() if isinstance(part, nn.Module) else ():
            p.data = p.data.clone()
    return pipeline


def definition_of(
    name: str, family: str, folder: Path, architecture: dict[str, Any], spec: dict[str, Any]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "id": name,
        "family": family,
        "title": f"Tiny random {family}",
        "description": "Random weights, for tests only.",
        "aliases": [],
        "architecture": architecture,
        "weights": {"folder": str(folder)},
        "spec": spec,
        "constants": {},
        "sources": {},
    }


@torch.no_grad()
def loud_wan(network: nn.Module) -> nn.Module:
    """Scale what the prompt acts through by 4 and the velocity by 3, so that guidance + 0.5 moves the latents by over 1
    %."""
    for name, p in network.named_parameters():
        if any(part in name for part in ("text_embedder", "attn2.to_v", "attn2.to_out")):
            p.mul_(4.0)
        if name.startswith("proj_out"):
            p.mul_(3.0)
    return network.eval()


@torch.no_grad()
def _loud_flux(network: nn.Module) -> nn.Module:
    """The same for Flux: text, pooled text and the guidance embedding."""
    for name, p in network.named_parameters():
        if any(part in name for part in ("context_embedder", "add_v_proj", "guidance_embedder", "text_embedder")):
            p.mul_(3.0)
    return network.eval()


def t5_tokenizer(extra: int = 8) -> Any:
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(c, -3.0) for c in string.ascii_lowercase + string.digits + ".,-"]
    vocab += [("▁" + c, -2.5) for c in string.ascii_lowercase]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in range(extra - 1, -1, -1)]
    return T5Tokenizer(vocab=vocab, extra_ids=extra, model_max_length=512)


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocab: dict[str, int] = {}
    for token in ["<|startoftext|>", "<|endoftext|>", *sorted(ByteLevel.alphabet())]:
        vocab.setdefault(token, len(vocab))
    for byte in sorted(ByteLevel.alphabet()):
        vocab.setdefault(byte + "</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
