"""The three networks of wan_tiny, their tokenizer and scheduler, in diffusers' classes and folder layout."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from wanlab.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

FLOW_SHIFT = 3.0
TEXT_DIM = 128
VAE = {
    "base_dim": 32,
    "decoder_base_dim": 40,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
"""Wan 2.2's residual, patched autoencoder with Wan 2.1's 16 channels and 4x8x8 stride: no stage at full resolution."""
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 1024,
    "num_layers": 8,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}


def build_vae(**changes: object) -> AutoencoderKLWan:
    return AutoencoderKLWan(**{**VAE, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16, **changes})


def build_tokenizer() -> T5Tokenizer:
    """Whole words of the language, small and capitalised, then letters, so that any prompt has tokens."""
    words = sorted({w for m in MOTIONS for w in m.split()} | {*COLOURS, *SHAPES, *BACKGROUNDS})
    words += ["a", "an", "on", "and", "background", "small", "in", "the", "top", "left", "corner"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = list(dict.fromkeys(words))
    pieces += [(f"▁{w}", -1.0) for w in words] + [(f"▁{w.capitalize()}", -1.0) for w in words]
    pieces += [(c, -4.0) for c in string.ascii_letters + string.digits + ".,-'!?"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def share_capitals(text_encoder: UMT5EncoderModel, tokenizer: T5Tokenizer) -> None:
    """Give capitalised pieces the embeddings of the small ones: "A Red circle" means "a red circle"."""
    vocabulary = tokenizer.get_vocab()
    with torch.no_grad():
        for piece, index in vocabulary.items():
            if piece != piece.lower() and piece.lower() in vocabulary:
                text_encoder.shared.weight[index] = text_encoder.shared.weight[vocabulary[piece.lower()]]


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocab_size, d_model=TEXT_DIM, d_kv=32, d_ff=320, num_layers=2, num_heads=4, dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=64,
    )  # fmt: skip
    return UMT5EncoderModel(config)


def build_transformer(**changes: object) -> WanTransformer3DModel:
    return WanTransformer3DModel(**{**TRANSFORMER, **changes})


def build_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )


def save_pipeline(
    folder: Path, vae: AutoencoderKLWan, text_encoder: UMT5EncoderModel, transformer: WanTransformer3DModel
) -> None:
    """Write bfloat16 safetensors in shards under 15 MB, in the layout that `WanPipeline.from_pretrained` reads.

    `expand_timesteps` is for the first frames that `train_i2v.py` teaches; without one it changes rounding alone.
    """
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(), text_encoder=text_encoder, vae=vae, scheduler=build_scheduler(),
        transformer=transformer, expand_timesteps=True,
    )  # fmt: skip
    pipeline.to(torch.bfloat16).save_pretrained(folder, max_shard_size="14MB")
