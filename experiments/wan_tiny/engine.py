"""Clips by diffusers' networks and wanlab's sampler, with or without a first frame: beside wanlab's own way."""

from __future__ import annotations

from pathlib import Path

import first_frame
import networks
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from measures import to_bytes
from torch import Tensor
from transformers import UMT5EncoderModel

from wanlab.registry import SAMPLERS
from wanlab.sampling import flow_sigmas, sample

NUM_STEPS = 20
TEXT_TOKENS = 512


def load_transformer(folder: Path, device: str) -> WanTransformer3DModel:
    """The network of a `transformer` folder in float32."""
    return WanTransformer3DModel.from_pretrained(folder).float().to(device).eval()


class Engine:
    """Autoencoder and text encoder of a pipeline's folder; the transformer comes with every call."""

    def __init__(self, folder: Path, device: str, num_frames: int = 33) -> None:
        self.device, self.tokenizer = device, networks.build_tokenizer()
        self.vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae").float().to(device).eval()
        text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
        self.text_encoder = text_encoder.float().to(device).eval()
        self.num_frames = 1 + (num_frames - 1) // 4

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """(B, 512, 128), zero after the sentence's end."""
        found = self.tokenizer(
            texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.device)
        hidden = self.text_encoder(found.input_ids, found.attention_mask).last_hidden_state
        return hidden * found.attention_mask[..., None]

    @torch.no_grad()
    def latents(
        self,
        transformer: WanTransformer3DModel,
        texts: list[str],
        seeds: list[int],
        guidance_scale: float,
        images: Tensor | None = None,
    ) -> Tensor:
        """Normalised latents (B, 16, T, 12, 12); `images` (B, 3, H, W) in [-1, 1] are the first frames."""
        shape = (1, 16, self.num_frames, 12, 12)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        text = torch.cat([self.encode(texts), self.encode([""] * len(texts))])
        first = None if images is None else first_frame.encode_image(self.vae, images.to(self.device))
        sampler = SAMPLERS.get("unipc")(flow_sigmas(NUM_STEPS, networks.FLOW_SHIFT))

        def velocity(x: Tensor, i: int) -> Tensor:
            timesteps = sampler.timesteps[i].to(self.device, torch.float32).expand(len(x))
            if first is not None:
                x, timesteps = first_frame.put_first(x, first), first_frame.token_timesteps(timesteps, x)
            both = transformer(torch.cat([x, x]), torch.cat([timesteps, timesteps]), text, return_dict=False)[0]
            said, unsaid = both.chunk(2)
            return unsaid + guidance_scale * (said - unsaid)

        made = sample(sampler, velocity, sampler.init(torch.cat(noise).to(self.device))).latents
        return made if first is None else first_frame.put_first(made, first)

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int = 25) -> np.ndarray:
        """(B, T, H, W, 3) uint8."""
        mean, std = (s.view(1, -1, 1, 1, 1).to(latents) for s in first_frame.statistics(self.vae))
        clips = [self.vae.decode(x, return_dict=False)[0] for x in (latents * std + mean).split(chunk)]
        return np.concatenate([to_bytes(clip.clamp(-1, 1) / 2 + 0.5) for clip in clips])
