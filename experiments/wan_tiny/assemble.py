"""Put trained weights into the folder that ships: diffusers layout, bfloat16, shards under 15 MB.

python experiments/wan_tiny/assemble.py --vae vae_mean.safetensors --dit FOLDER --out wanlab/assets/wan_tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

import networks
import torch
import train_dit
from safetensors.torch import load_file

LOG_VARIANCE = -12.0
"""The posterior's unused spread: a sample differs from its mean by 0.0025."""


def assemble(vae_file: Path, dit_folder: Path, out: Path) -> int:
    """Write the pipeline to `out`; returns the bytes of its weights."""
    statistics = load_file(dit_folder / "latents.safetensors")
    vae = networks.build_vae(
        latents_mean=[round(v, 6) for v in statistics["mean"].tolist()],
        latents_std=[round(v, 6) for v in statistics["std"].tolist()],
    )
    vae.load_state_dict({k: v.float() for k, v in load_file(vae_file).items()})
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = LOG_VARIANCE
    tokenizer = networks.build_tokenizer()
    text_encoder = networks.build_text_encoder(len(tokenizer))
    transformer = networks.build_transformer()
    train_dit.load_networks(dit_folder, text_encoder, transformer)
    networks.share_capitals(text_encoder, tokenizer)
    networks.save_pipeline(out, vae, text_encoder, transformer)
    return sum(f.stat().st_size for f in out.rglob("*.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--dit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(assemble(arguments.vae, arguments.dit, arguments.out), "bytes of weights")
