"""Pictures and videos as Wan's networks read them: pixels, latents, masks, CLIP's features.

Source: diffusers 0.42.1, pipeline_wan_i2v.py and pipeline_wan_video2video.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from wanlab import media
from wanlab.errors import WanlabError
from wanlab.models._media import Geometry
from wanlab.spec import GenerationSpec, MediaRef


def picture(ref: MediaRef, spec: GenerationSpec) -> Tensor:
    """A picture fitted to the video's size as the spec says: (1, 3, 1, H, W) float32 in [-1, 1]."""
    return _pixels(media.fit(media.read_image(ref)[None], *size(spec), spec.media.fit))


def reference(ref: MediaRef, spec: GenerationSpec, pad: int = 255) -> Tensor:
    """A whole picture on white, or another grey, at the video's size: (1, 3, 1, H, W) float32 in [-1, 1]."""
    return _pixels(media.fit(media.read_image(ref)[None], *size(spec), "pad", pad=pad))


def clip(ref: MediaRef, spec: GenerationSpec, at: tuple[int, int] | None = None) -> Tensor:
    """The first num_frames frames of a video at the spec's size and fps: (1, 3, T, H, W) float32 in [-1, 1].

    T is less where the video is shorter. `at` is another (H, W).
    """
    frames = media.read_video(ref, fps=spec.size.fps, num_frames=spec.size.num_frames)
    return _pixels(media.fit(frames, *(at or size(spec)), spec.media.fit))


def whole_clip(ref: MediaRef, spec: GenerationSpec, name: str = "video", at: tuple[int, int] | None = None) -> Tensor:
    """`clip`, refused where the video, called `name`, is shorter than the result."""
    found = clip(ref, spec, at)
    wanted = length(spec)
    if found.shape[2] < wanted:
        raise WanlabError(
            f"The {name} has {found.shape[2]} frames at {spec.size.fps:g} fps, and the result has {wanted}",
            remedy=f"Ask for fewer num_frames, or give a longer {name}",
        )
    return found


def mask(ref: MediaRef, spec: GenerationSpec, num_frames: int) -> Tensor:
    """A mask (1, 1, T, H, W) float32 in [0, 1], 1 where the video may change; one picture is for all frames."""
    found = media.read_mask(ref, fps=spec.size.fps, num_frames=num_frames)
    frames = np.stack([found] * num_frames) if found.ndim == 2 else found
    if len(frames) < num_frames:
        raise WanlabError(
            f"The mask has {len(frames)} frames, and the video {num_frames}", remedy="Give one picture, or a frame each"
        )
    fitted = media.fit_mask(frames, *size(spec), spec.media.fit)
    return torch.tensor(fitted).float()[None, None]


def _pixels(frames: np.ndarray) -> Tensor:
    pixels = rearrange(torch.tensor(frames), "t h w c -> 1 c t h w").contiguous()  # the layout decides the kernels
    return pixels.float() / 255 * 2 - 1


def size(spec: GenerationSpec) -> tuple[int, int]:
    """Height and width of a resolved spec."""
    height, width = spec.size.height, spec.size.width
    assert height, "a resolved spec has sizes"
    assert width, "a resolved spec has sizes"
    return height, width


def length(spec: GenerationSpec) -> int:
    """Frames of a resolved spec."""
    assert spec.size.num_frames, "a resolved spec has sizes"
    return spec.size.num_frames


def first_frame_video(first: Tensor, last: Tensor | None, num_frames: int) -> tuple[Tensor, Tensor]:
    """A grey clip with the given first and last picture (1, 3, 1, H, W), and its mask.

    Returns (1, 3, T, H, W) and (T,), 1 where a frame is given.
    """
    video, known = first.new_zeros(1, 3, num_frames, *first.shape[-2:]), torch.zeros(num_frames)
    video[:, :, :1], known[0] = first, 1
    if last is not None:
        video[:, :, -1:], known[-1] = last, 1
    return video, known


def mask_channels(known: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Frames' mask (T,) as channels (1, stride, t, height, width): the first frame fills its latent frame alone."""
    spread = torch.cat([known[:1].expand(stride), known[1:]])
    return repeat(spread, "(t s) -> 1 s t h w", s=stride, h=height, w=width).contiguous()


def latent_mask(pixels: Tensor, geometry: Geometry) -> Tensor:
    """A mask (1, 1, T, H, W) over latents (1, 1, t, h, w): free (1) wherever any of their pixels is above one half."""
    stride = geometry.frame_stride
    pixels = (pixels > 0.5).float()
    first, rest = pixels[:, :, :1], pixels[:, :, 1:]
    frames = [first]
    if rest.shape[2]:
        frames.append(rearrange(rest, "b c (t s) h w -> b c t s h w", s=stride).amax(3))
    joined = torch.cat(frames, 2)[:, 0]
    return functional.max_pool2d(joined, geometry.pixel_stride)[:, None]


def encode_clip(vae: Any, pixels: Tensor, check: Callable[[float], None] | None = None) -> Tensor:
    """Normalised latents (B, C, t, h, w), float32, of pixels (B, 3, T, H, W) in [-1, 1]: the distribution's mode.

    `check(share)` is called between groups of frames, and may raise to stop. As AutoencoderKLWan.encode.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    pixels = pixels.to(vae.dtype)
    if vae.config.patch_size is not None:
        pixels = patchify(pixels, patch_size=vae.config.patch_size)
    groups = [pixels[:, :, :1], *pixels[:, :, 1:].split(vae.config.scale_factor_temporal, 2)]
    if pixels.shape[2] == 1:
        groups = groups[:1]
    vae.clear_cache()
    parts = []
    try:
        for i, group in enumerate(groups):
            if check is not None:
                check(i / len(groups))
            vae._enc_conv_idx = [0]
            parts.append(vae.encoder(group, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    finally:
        vae.clear_cache()
    mean, _ = vae.quant_conv(torch.cat(parts, 2)).chunk(2, 1)
    return normalised(vae, mean.float())


def denormalised(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's own latents, from those that the network sees."""
    mean, std = _statistics(vae, latents)
    return latents / (1.0 / std) + mean


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the network sees them, from the VAE's own."""
    mean, std = _statistics(vae, latents)
    return (latents - mean) * (1.0 / std)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels, (1, C, 1, 1, 1)."""
    mean, std = (
        torch.tensor(vae.config[key], device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
        for key in ("latents_mean", "latents_std")
    )
    return mean, std


def clip_processor(folder: Path | None) -> Any:
    """CLIP's resizing and colours, by the folder's settings or else those of all CLIP models; without torchvision."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil() if folder is None else CLIPImageProcessorPil.from_pretrained(folder)
