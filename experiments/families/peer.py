"""diffusers' own pipelines around the modules of a wanlab model: the same weights, not a copy of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from clock import Clock
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from inputs import Inputs
from torch import Tensor

from wanlab.models import _wan_inputs


class Peer:
    """A WanPipeline, WanImageToVideoPipeline or WanVACEPipeline for a wanlab model and its resolved spec."""

    def __init__(self, model: Any, spec: Any, inputs: Inputs) -> None:
        self.model, self.spec, self.inputs = model, spec, inputs
        parts = {name: part.module for name, part in model.parts.items()}
        self.networks = [parts[name] for name in model.experts_present]
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=spec.sampling.flow_shift,
            num_train_timesteps=1000,
        )
        settings: dict[str, Any] = {}
        if len(self.networks) == 2:
            settings["boundary_ratio"] = spec.sampling.expert_boundary
        if model.family == "vace":
            kind = diffusers.WanVACEPipeline
        else:
            settings["expand_timesteps"] = model.expand_timesteps
            kind = diffusers.WanImageToVideoPipeline if inputs.kind == "image" else diffusers.WanPipeline
        if "image_encoder" in parts:
            settings["image_processor"] = _wan_inputs.clip_processor(model.side_folder("image_processor"))
        self.pipe = kind(**parts, **settings, tokenizer=model.tokenizer)
        self.pipe.set_progress_bar_config(disable=True)
        module = sys.modules[kind.__module__]
        if not hasattr(module, "ftfy"):  # without it, pipelines other than WanPipeline raise NameError
            module.ftfy = SimpleNamespace(fix_text=str)  # type: ignore[attr-defined]

    @torch.no_grad()
    def text(self) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompt and of the negative prompt."""
        text = self.spec.text
        found: tuple[Tensor, Tensor] = self.pipe.encode_prompt(
            text.prompt, text.negative_prompt, max_sequence_length=text.max_text_tokens, device=self.model.device
        )
        return found

    def forget_text_encoder(self) -> None:
        """Let go of the text encoder, so that it can leave memory."""
        self.pipe.text_encoder = None

    def denoise(self, text: tuple[Tensor, Tensor], noise: Tensor, num_steps: int, clock: Clock) -> None:
        """The pipeline's own call up to the clean latents, which the clock keeps."""
        spec, size = self.spec, self.spec.size
        settings: dict[str, Any] = {"height": size.height, "width": size.width, "num_frames": size.num_frames}
        if len(self.networks) == 2:
            settings["guidance_scale_2"] = spec.guidance.guidance_scale_2
        settings |= self.inputs.for_diffusers()

        def told(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            clock.step(values["latents"])
            return values

        with self._own_attention(), self._told(clock):
            clock.start()
            result = self.pipe(
                prompt_embeds=text[0],
                negative_prompt_embeds=text[1],
                num_inference_steps=num_steps,
                guidance_scale=spec.guidance.guidance_scale,
                latents=noise,
                output_type="latent",
                callback_on_step_end=told,
                **settings,
            )
            clock.end(result.frames)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels as the pipelines' last lines make them, before they become pictures."""
        vae = self.pipe.vae
        latents = latents.to(vae.dtype)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        found: Tensor = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
        return found

    @contextmanager
    def _told(self, clock: Clock) -> Iterator[None]:
        """Tell the clock of every forward that begins."""
        handles = [network.register_forward_pre_hook(lambda *_: clock.forward()) for network in self.networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """diffusers' attention in the networks while inside, ours again after it."""
        ours = [dict(network.attn_processors) for network in self.networks]
        for network in self.networks:
            network.set_attn_processor(WanAttnProcessor())
        try:
            yield
        finally:
            for network, processors in zip(self.networks, ours, strict=True):
                network.set_attn_processor(processors)
