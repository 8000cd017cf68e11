"""A clean first latent frame, as Wan 2.2 TI2V-5B is given its image: the same channels, timestep 0 for its tokens.

Source: diffusers 0.42.1, WanImageToVideoPipeline with `expand_timesteps`.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from einops import rearrange, repeat
from torch import Tensor

PATCH = 2
"""Latent pixels that a token is wide and high."""


def put_first(latents: Tensor, first: Tensor) -> Tensor:
    """`latents` (B, C, T, H, W) with their first frame replaced by `first` (B, C, 1, H, W)."""
    return torch.cat([first, latents[:, :, 1:]], 2)


def token_timesteps(timesteps: Tensor, latents: Tensor) -> Tensor:
    """(B, L) from (B,): zero for the tokens of the first latent frame, the sample's timestep for all others."""
    _, _, frames, height, width = latents.shape
    spread = repeat(timesteps, "b -> b t l", t=frames, l=height // PATCH * (width // PATCH)).clone()
    spread[:, 0] = 0
    return rearrange(spread, "b t l -> b (t l)")


def statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and deviation (16,) of the latents' channels, as the autoencoder's configuration has them."""
    return torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)


def normalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Latents (B, 16, T, H, W) of the encoder as the transformer sees them."""
    mean, std = (s.view(1, -1, 1, 1, 1).to(latents) for s in statistics(vae))
    return (latents - mean) / std


@torch.no_grad()
def encode_image(vae: AutoencoderKLWan, images: Tensor) -> Tensor:
    """Normalised latents (B, 16, 1, H / 8, W / 8) of images (B, 3, H, W) in [-1, 1], each encoded alone."""
    return normalised(vae, vae.encode(images[:, :, None]).latent_dist.mode())


@torch.no_grad()
def difference_alone(vae: AutoencoderKLWan, frames: Tensor) -> float:
    """Largest difference between the first latent frame of clips (B, 3, T, H, W) and that of their first frame alone.

    Training takes the one and sampling the other; a causal autoencoder makes them equal.
    """
    within = normalised(vae, vae.encode(frames).latent_dist.mode())[:, :, :1]
    return float((within - encode_image(vae, frames[:, :, 0])).abs().max())
