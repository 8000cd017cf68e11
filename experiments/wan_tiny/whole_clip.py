"""AutoencoderKLWan over a whole clip at once, for training: equal to diffusers' loop over chunks, and much faster.

`patch_for_training()` swaps methods of diffusers' classes in this process; inference never needs it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as source
from torch import Tensor, nn


def _norm_silu_pad(x: Tensor, gamma: Tensor, scale: float) -> Tensor:
    """SiLU of the channel norm, padded for a causal 3x3x3 convolution: one kernel when compiled."""
    x = F.silu(F.normalize(x.float(), dim=1) * scale * gamma).to(x.dtype)
    return F.pad(x, (1, 1, 1, 1, 2, 0))


def _resample(self: nn.Module, x: Tensor, feat_cache: object = None, feat_idx: object = None) -> Tensor:
    batch, channels, frames, height, width = x.shape
    if self.mode == "upsample3d" and frames > 1:  # the first frame stays one, the rest double without seeing it
        y = self.time_conv(x[:, :, 1:]).reshape(batch, 2, channels, frames - 1, height, width)
        y = torch.stack((y[:, 0], y[:, 1]), 3).reshape(batch, channels, 2 * (frames - 1), height, width)
        x = torch.cat([x[:, :, :1], y], 2)
    frames = x.shape[2]
    x = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width)
    x = self.resample(x)
    x = x.view(batch, frames, *x.shape[1:]).permute(0, 2, 1, 3, 4)
    if self.mode == "downsample3d" and frames > 1:  # the first frame passes; windows of three, stride two, over all
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


def patch_for_training(compiled: bool) -> None:
    """Make diffusers' classes run whole clips; `compiled` fuses norm, SiLU and padding."""
    norm: Callable[..., Tensor] = torch.compile(_norm_silu_pad, dynamic=False) if compiled else _norm_silu_pad

    def conv(layer: nn.Conv3d, x: Tensor) -> Tensor:
        return F.conv3d(x, layer.weight, layer.bias)

    def residual_block(self: nn.Module, x: Tensor, feat_cache: object = None, feat_idx: object = None) -> Tensor:
        h = conv(self.conv1, norm(x, self.norm1.gamma, self.norm1.scale))
        h = conv(self.conv2, norm(h, self.norm2.gamma, self.norm2.scale))
        return h + self.conv_shortcut(x)

    source.WanResample.forward = _resample
    source.WanResidualBlock.forward = residual_block
    source.WanUpsample.forward = nn.Upsample.forward


def encode_mean(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Latent means (B, 16, 1 + (T-1)/4, H/8, W/8) of frames (B, 3, T, H, W) in [-1, 1], not normalised."""
    hidden = vae.quant_conv(vae.encoder(source.patchify(frames, vae.config.patch_size)))
    return hidden[:, : vae.config.z_dim]


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Frames (B, 3, T, H, W), about [-1, 1], not clamped."""
    hidden = vae.decoder(vae.post_quant_conv(latents), first_chunk=True)
    return source.unpatchify(hidden, vae.config.patch_size)
