"""AutoencoderKLWan over a whole clip at once: equal to diffusers' loop over latent frames, with far fewer calls.

diffusers decodes one latent frame at a time and passes the last inputs of every convolution along. The convolutions are
causal, so the same numbers come out of one pass over the clip, if the two temporal upsamplings leave out the first
frame. Equal to rounding: bit for bit in float64, relative difference 3e-7 to 3e-6 in float32.
Source: diffusers 0.42.1, autoencoder_kl_wan.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, unpatchify
from torch import Tensor, nn

WHOLE_CLIP_BYTES = 2 << 30
"""Clips that need more than this go frame by frame. A constant, so that the memory of a machine decides nothing."""
_ALIVE = 9  # tensors of the largest size that are in memory at once, workspaces included (measured on a CPU)


def decode_clip(vae: Any, latents: Tensor, check: Callable[[float], None] | None = None) -> Tensor:
    """Pixels (B, 3, T, H, W) in [-1, 1] from denormalised latents (B, C, t, h, w), on the whole clip where it is small.

    `check(share)` is called between blocks or frames with the share of them that is done; it may raise to stop. A VAE
    set to tile or slice does so, without calls.
    """
    if vae.use_tiling or vae.use_slicing:
        try:
            return vae.decode(latents, return_dict=False)[0]  # type: ignore[no-any-return]
        finally:
            vae.clear_cache()  # which diffusers leaves filled after an error
    whole = whole_clip_bytes(vae, latents) <= WHOLE_CLIP_BYTES
    x = (_whole_clip if whole else _by_frames)(vae, vae.post_quant_conv(latents), check or _go_on)
    if vae.config.patch_size is not None:
        x = unpatchify(x, patch_size=vae.config.patch_size)
    return x.clamp_(-1.0, 1.0)


def _go_on(share: float) -> None:
    """The check of a caller who has none."""


def _whole_clip(vae: Any, x: Tensor, check: Callable[[float], None]) -> Tensor:
    decoder, num_blocks = vae.decoder, len(vae.decoder.up_blocks)
    x = decoder.mid_block(decoder.conv_in(x))
    for i, block in enumerate(decoder.up_blocks):
        check(i / num_blocks)
        x = _up(block, x)
    return cast(Tensor, decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x))))


def _by_frames(vae: Any, x: Tensor, check: Callable[[float], None]) -> Tensor:
    """diffusers' own loop, which can be stopped between latent frames."""
    vae.clear_cache()
    frames = []
    try:
        for i in range(x.shape[2]):
            check(i / x.shape[2])
            frame, first = x[:, :, i : i + 1], i == 0
            frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=first))
    finally:
        vae.clear_cache()
    return torch.cat(frames, 2)


def whole_clip_bytes(vae: Any, latents: Tensor) -> int:
    """About the peak bytes of decoding the clip at once: some tensors of the widest layer at full size."""
    batch, _, frames, height, width = latents.shape
    scale = vae.config.scale_factor_spatial // (vae.config.patch_size or 1)
    frames = (frames - 1) * vae.config.scale_factor_temporal + 1
    widest = max(m.out_channels for m in vae.decoder.up_blocks[-1].modules() if isinstance(m, nn.Conv3d))
    widest = max(widest, vae.decoder.up_blocks[-1].resnets[0].in_dim)
    return int(_ALIVE * batch * widest * frames * height * width * scale**2 * latents.element_size())


def _up(block: Any, x: Tensor) -> Tensor:
    """A WanUpBlock, or the WanResidualUpBlock of the 2.2 VAE, over the whole clip."""
    shortcut = getattr(block, "avg_shortcut", None)
    before = x
    for resnet in block.resnets:
        x = resnet(x)
    upsampler = block.upsampler if hasattr(block, "upsampler") else block.upsamplers and block.upsamplers[0]
    if upsampler is not None:
        x = _upsample(upsampler, x)
    return x if shortcut is None else x + shortcut(before, first_chunk=True)


def _upsample(module: WanResample, x: Tensor) -> Tensor:
    """Double height and width and, for upsample3d, all frames but the first, which stays one and is not seen by the
    rest."""
    batch, channels, frames, height, width = x.shape
    if module.mode == "upsample3d" and frames > 1:
        pairs = module.time_conv(x[:, :, 1:]).reshape(batch, 2, channels, frames - 1, height, width)
        rest = torch.stack((pairs[:, 0], pairs[:, 1]), 3).flatten(2, 3)
        x = torch.cat([x[:, :, :1], rest], 2)
    frames = x.shape[2]
    x = module.resample(x.transpose(1, 2).flatten(0, 1))
    return x.unflatten(0, (batch, frames)).transpose(1, 2)
