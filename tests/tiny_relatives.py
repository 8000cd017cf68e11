"""Tiny random-weight pipelines of Wan's relatives (Phantom, SkyReels Diffusion Forcing, Animate), in diffusers layout.

Each builder writes the folder with diffusers' own `save_pretrained` and returns it with a definition that `wanlab.load`
takes, as `tests.tiny_video` does for Wan itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.tiny import ENCODER, WAN_DIT, WAN_VAE, definition_of, loud_wan
from tests.tiny_video import CLIP, common_parts, loud_pictures, make_dits, spec, vae_config

SIZE = {"width": 48, "height": 32}
FACE = 16
"""Side of a face picture."""
ANIMATE: dict[str, Any] = {
    "in_channels": 36,
    "latent_channels": 16,
    "image_dim": 32,
    "added_kv_proj_dim": 24,
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
    "motion_encoder_size": FACE,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 8,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
    "motion_encoder_batch_size": 4,
}


def tiny_phantom(folder: Path | str) -> tuple[Path, dict[str, Any]]:
    """Phantom: a text-to-video pipeline."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, networks = make_dits(1)
        loud_frames(networks[0])
        common = common_parts(WAN_VAE)
    diffusers.WanPipeline(**common, transformer=networks[0], transformer_2=None).save_pretrained(folder)
    return _definition("phantom", folder, dit, common)


def tiny_animate(folder: Path | str) -> tuple[Path, dict[str, Any]]:
    """Animate: face blocks after two of four blocks, faces of 16 x 16 pixels, segments of up to 13 frames."""
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    dit = {**WAN_DIT, **ANIMATE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = loud_wan(diffusers.WanAnimateTransformer3DModel(**dit))
        loud_pictures(network)
        _loud_faces(network)
        encoder = CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval()
        common = common_parts(WAN_VAE)
    processor = CLIPImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32})
    diffusers.WanAnimatePipeline(
        **common, transformer=network, image_encoder=encoder, image_processor=processor
    ).save_pretrained(folder)
    _, definition = _definition("wan_animate", folder, dit, common)
    definition["architecture"]["image_encoder"] = CLIP
    definition["constants"] = {"segment_frames": 13}
    return Path(folder), definition


def tiny_skyreels(folder: Path | str, **transformer: Any) -> tuple[Path, dict[str, Any]]:
    """Diffusion forcing, windows of up to 29 frames; `transformer` overrides the network's configuration."""
    import diffusers

    dit = {**WAN_DIT, **transformer}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = loud_wan(diffusers.SkyReelsV2Transformer3DModel(**dit))
        loud_frames(network)
        common = common_parts(WAN_VAE)
    diffusers.SkyReelsV2DiffusionForcingPipeline(**common, transformer=network).save_pretrained(folder)
    _, definition = _definition("skyreels_df", folder, dit, common)
    definition["constants"] = {"base_num_frames": 29}
    return Path(folder), definition


def tiny_skyreels_plain(folder: Path | str, kind: str) -> tuple[Path, dict[str, Any]]:
    """Without diffusion forcing: "text", or "image" (first frame, read by CLIP too)."""
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    dit, parts = dict(WAN_DIT), {}
    if kind == "image":
        dit |= {"in_channels": 36, "image_dim": 32, "added_kv_proj_dim": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = loud_wan(diffusers.SkyReelsV2Transformer3DModel(**dit))
        loud_pictures(network)
        if kind == "image":
            parts["image_encoder"] = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)).eval()
            size = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
            parts["image_processor"] = CLIPImageProcessor(**size)
        common = common_parts(WAN_VAE)
    pipeline = diffusers.SkyReelsV2ImageToVideoPipeline if kind == "image" else diffusers.SkyReelsV2Pipeline
    pipeline(**common, **parts, transformer=network).save_pretrained(folder)
    _, definition = _definition("skyreels", folder, dit, common)
    if kind == "image":
        definition["architecture"]["image_encoder"] = CLIP
    return Path(folder), definition


def _definition(family: str, folder: Path | str, dit: dict[str, Any], common: dict[str, Any]) -> tuple[Path, Any]:
    architecture = {"transformer": dit, "vae": vae_config(common["vae"]), "text_encoder": ENCODER}
    return Path(folder), definition_of(f"{family}_random", family, Path(folder), architecture, spec(SIZE))


@torch.no_grad()
def loud_frames(network: nn.Module) -> None:
    """Scale what frames learn of each other through."""
    for name, p in network.named_parameters():
        if any(part in name for part in ("attn1.to_v.weight", "attn1.to_out.0.weight")):
            p.mul_(4.0)
        if any(part in name for part in ("attn1.norm_q", "attn1.norm_k")):
            p.mul_(2.0)


@torch.no_grad()
def _loud_faces(network: nn.Module) -> None:
    """Scale what poses and faces act through, and fill what starts at zero."""
    for name, p in network.named_parameters():
        if name.startswith("face_adapter") and any(part in name for part in ("to_v.weight", "to_out.weight")):
            p.mul_(4.0)
        if name == "pose_patch_embedding.weight":
            p.mul_(2.0)
        if name == "face_encoder.padding_tokens" or ".act_fn.bias" in name:
            nn.init.normal_(p, 0.0, 0.5)
