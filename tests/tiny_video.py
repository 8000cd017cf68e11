"""Tiny random-weight Wan pipelines that start from pictures and video, in diffusers layout.

Each builder writes the folder with diffusers' own `save_pretrained` and returns it with a definition that `wanlab.load`
takes, as `tests.tiny` does for text to video.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.tiny import ENCODER, WAN_DIT, WAN_VAE, definition_of, loud_wan, t5_tokenizer

VAE_22: dict[str, Any] = {
    "base_dim": 4,
    "decoder_base_dim": 4,
    "z_dim": 8,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "intermediate_size": 37,
    "patch_size": 16,
}
CLIP_TOKENS = 5
"""Patches of a picture and the class token."""


def tiny_i2v(folder: Path | str, kind: str = "2.1") -> tuple[Path, dict[str, Any]]:
    """An image-to-video pipeline: "2.1" (CLIP), "flf" (2.1, first and last frame), "2.2" (two experts), "5b" (TI2V)."""
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    extra: dict[str, Any] = {"in_channels": 8, "out_channels": 8} if kind == "5b" else {"in_channels": 36}
    if kind in ("2.1", "flf"):
        extra |= {"image_dim": 32, "added_kv_proj_dim": 24}
    if kind == "flf":
        extra["pos_embed_seq_len"] = 2 * CLIP_TOKENS
    parts: dict[str, Any] = {"image_encoder": None, "image_processor": None}
    architecture: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, networks = make_dits(2 if kind == "2.2" else 1, **extra)
        if "image_dim" in extra:
            parts["image_encoder"] = CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval()
            parts["image_processor"] = CLIPImageProcessor(
                crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}
            )
            architecture["image_encoder"] = CLIP
        common = common_parts(VAE_22 if kind == "5b" else WAN_VAE)
    pipeline = diffusers.WanImageToVideoPipeline(
        **common,
        **parts,
        transformer=networks[0],
        transformer_2=networks[1] if kind == "2.2" else None,
        boundary_ratio=0.6 if kind == "2.2" else None,
        expand_timesteps=kind == "5b",
    )
    pipeline.save_pretrained(folder)
    architecture |= {"transformer": dit, "vae": vae_config(common["vae"]), "text_encoder": ENCODER}
    if kind == "2.2":
        architecture["transformer_2"] = dit
    size = {"width": 64, "height": 32} if kind == "5b" else {"width": 48, "height": 32}
    definition = definition_of(f"i2v_random_{kind.replace('.', '_')}", "wan", Path(folder), architecture, spec(size))
    if kind == "2.2":
        definition["spec"]["sampling"]["expert_boundary"] = 0.6
    if kind == "5b":
        definition["constants"] = {"expand_timesteps": True}
    return Path(folder), definition


def tiny_v2v(folder: Path | str) -> tuple[Path, dict[str, Any]]:
    """A video-to-video pipeline: a text-to-video network that starts from a video."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, networks = make_dits(1)
        common = common_parts(WAN_VAE)
    diffusers.WanVideoToVideoPipeline(**common, transformer=networks[0]).save_pretrained(folder)
    architecture = {"transformer": dit, "vae": vae_config(common["vae"]), "text_encoder": ENCODER}
    settings = spec({"width": 48, "height": 32})
    return Path(folder), definition_of("v2v_random", "wan", Path(folder), architecture, settings)


def tiny_vace(folder: Path | str, experts: int = 1) -> tuple[Path, dict[str, Any]]:
    """A VACE pipeline with two control layers of four."""
    import diffusers

    dit = {**WAN_DIT, "vace_layers": [0, 2], "vace_in_channels": 96}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [loud_wan(diffusers.WanVACETransformer3DModel(**dit)) for _ in range(experts)]
        for network in networks:
            loud_pictures(network)
        common = common_parts(WAN_VAE)
    second = {"transformer_2": networks[1], "boundary_ratio": 0.6} if experts == 2 else {"transformer_2": None}
    diffusers.WanVACEPipeline(**common, transformer=networks[0], **second).save_pretrained(folder)
    architecture = {"transformer": dit, "vae": vae_config(common["vae"]), "text_encoder": ENCODER}
    if experts == 2:
        architecture["transformer_2"] = dit
    settings = spec({"width": 48, "height": 32}, **({"expert_boundary": 0.6} if experts == 2 else {}))
    return Path(folder), definition_of(f"vace_random_{experts}", "vace", Path(folder), architecture, settings)


def make_dits(count: int, **extra: Any) -> tuple[dict[str, Any], list[nn.Module]]:
    """(configuration, networks) of WanTransformer3DModels whose inputs all matter."""
    import diffusers

    config = {**WAN_DIT, **extra}
    networks = [loud_wan(diffusers.WanTransformer3DModel(**config)) for _ in range(count)]
    for network in networks:
        loud_pictures(network)
    return config, networks


@torch.no_grad()
def loud_pictures(network: nn.Module) -> None:
    """Scale what pictures act through, and fill what starts at zero."""
    for name, p in network.named_parameters():
        if any(part in name for part in ("image_embedder.ff", "add_v_proj", "vace_blocks", "vace_patch_embedding")):
            p.mul_(2.0)
        if name == "patch_embedding.weight":
            p[:, 16:].mul_(3.0)
        if name.endswith("pos_embed"):
            nn.init.normal_(p, 0.0, 0.5)


def vae_config(vae: Any) -> dict[str, Any]:
    """A VAE's configuration as a definition has it."""
    return {key: value for key, value in vae.config.items() if not key.startswith("_")}


def common_parts(config: dict[str, Any]) -> dict[str, Any]:
    """VAE, text encoder, tokenizer and scheduler of a pipeline."""
    import diffusers
    from transformers import UMT5Config, UMT5EncoderModel

    vae = diffusers.AutoencoderKLWan(**config).eval()
    with torch.no_grad():
        for p in (p for p in vae.parameters() if p.ndim == 1):  # biases that are zero would hide a wrong first frame
            nn.init.normal_(p, 0.1, 0.3)
        for p in vae.encoder.parameters():
            p.mul_(1.5 if p.ndim > 1 else 0.3)  # pictures shall outweigh the biases
    _measure(vae)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    encoder = UMT5EncoderModel(UMT5Config(**ENCODER)).eval()
    return {"vae": vae, "text_encoder": encoder, "tokenizer": t5_tokenizer(), "scheduler": scheduler}


@torch.no_grad()
def _measure(vae: Any) -> None:
    """Set the VAE's latent statistics to those of some films, so that pictures move normalised latents by about 1."""
    clips = [np.stack([np.asarray(f.resize((64, 32))) for f in film(seed)]) for seed in range(4)]
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode()
    mean = latents.mean((0, 2, 3, 4)).tolist()
    std = (latents - latents.mean(0, keepdim=True)).std((0, 2, 3, 4)).tolist()
    vae.register_to_config(latents_mean=[round(x, 4) for x in mean], latents_std=[round(x, 6) for x in std])


def quiet(pipeline: Any) -> Any:
    """A pipeline without a progress bar, and with a stand-in for ftfy, without which diffusers' others than WanPipeline
    raise NameError; ftfy leaves plain words as they are."""
    module = sys.modules[type(pipeline).__module__]
    if not hasattr(module, "ftfy"):
        module.ftfy = SimpleNamespace(fix_text=str)  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spec(size: dict[str, int], **sampling: Any) -> dict[str, Any]:
    """Default settings of a tiny definition."""
    return {
        "text": {"max_text_tokens": 512},
        "size": {**size, "num_frames": 9, "fps": 16},
        "sampling": {"sampler": "unipc", "num_steps": 4, "flow_shift": 3.0, **sampling},
        "guidance": {"method": "cfg", "guidance_scale": 5.0},
    }


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """A smooth random picture: noise of single pixels would be averaged away by the VAE."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def frames_of(pictures: list[Image.Image]) -> np.ndarray:
    """Pictures as frames (T, H, W, 3) uint8."""
    return np.stack([np.asarray(p.convert("RGB")) for p in pictures])


def film(seed: int, num_frames: int = 9, width: int = 48, height: int = 32) -> list[Image.Image]:
    """Pictures that fade from one to another."""
    first, last = picture(seed, width, height), picture(seed + 1000, width, height)
    return [Image.blend(first, last, i / max(num_frames - 1, 1)) for i in range(num_frames)]
