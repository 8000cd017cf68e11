"""Wan 2.1 and 2.2 (one or two experts), text to video: diffusers' networks, our forward around them.

Source: diffusers 0.42.1, transformer_wan.py and pipeline_wan.py; the split is bit-equal to WanTransformer3DModel.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from wanlab.attention.sdpa import sdpa
from wanlab.models._processor import SiteProcessor
from wanlab.models._tokenizer import count_tokens, load_tokenizer
from wanlab.models._wan_vae import decode_clip
from wanlab.models.base import Check, Geometry, Model
from wanlab.registry import FAMILIES
from wanlab.sites import AttentionSite, BlockPlan, Branch, Layout, Stack, StepContext, Streams

_COMPONENTS = {"text_encoder": UMT5EncoderModel, "vae": AutoencoderKLWan}


@FAMILIES.register("wan")
class Wan(Model):
    """Text to video by WanTransformer3DModel, UMT5 and AutoencoderKLWan."""

    family = "wan"
    pipelines = ("WanPipeline",)

    @classmethod
    def component_class(cls, component: str) -> Any:
        return _COMPONENTS.get(component, WanTransformer3DModel)

    @functools.cached_property
    def geometry(self) -> Geometry:
        vae, network = self.config("vae"), self.config(self.experts_present[0])
        pixels, frames = vae["scale_factor_spatial"], vae["scale_factor_temporal"]
        patch, longest = network["patch_size"], network["rope_max_seq_len"]
        return Geometry(
            frame_stride=frames,
            pixel_stride=pixels,
            pixel_multiple=pixels * max(patch[1:]),
            channels=network["in_channels"],
            max_pixels=longest * pixels * max(patch[1:]),
            max_frames=(longest * patch[0] - 1) * frames + 1,
        )

    @property
    def text_tokens(self) -> int:
        return 512  # WanPipeline's default; zeros after the prompt's end are part of what the network was trained on

    def _build_stack(self, expert: str) -> Stack:
        network = self.parts[expert].module
        layout = Layout()
        plans = [self._plan(f"blocks.{i}", block, layout) for i, block in enumerate(network.blocks)]
        return Stack(expert, network, plans, layout, self.lock)

    def _plan(self, name: str, block: nn.Module, layout: Layout) -> BlockPlan:
        sites: dict[str, AttentionSite] = {}
        for part, role in (("attn1", "self"), ("attn2", "cross")):
            attention = cast(Any, getattr(block, part))
            site = AttentionSite(
                f"{name}.{part}", role, sdpa, layout, attention.inner_dim // attention.heads, self.lock
            )
            attention.set_processor(WanSiteProcessor(site))
            sites[part] = site
        return BlockPlan(name, "block", block, run_block, sites)

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        stack = self.stacks[ctx.expert]
        network = cast(Any, stack.network)
        latents = latents.to(self.dtype)
        batch = latents.shape[0]
        tokens = network.patch_embedding(latents)
        grid = tuple(tokens.shape[2:])
        tokens = tokens.flatten(2).transpose(1, 2).contiguous()
        text = branch.text["embeds"].to(self.device, self.dtype)
        text = text if text.shape[0] == batch else text.expand(batch, -1, -1)
        timestep = torch.as_tensor(ctx.timestep, dtype=torch.float32, device=self.device).expand(batch)
        temb, proj, text, _ = network.condition_embedder(timestep, text, None, timestep_seq_len=None)
        stack.layout.grid = grid
        return Streams(
            tokens={"video": tokens, "text": text},
            modulation={"time": temb, "blocks": proj.unflatten(1, (6, -1))},
            rope=network.rope(latents),
            grid=grid,
        )

    def head(self, streams: Streams, ctx: StepContext) -> Tensor:
        network = cast(Any, self.stacks[ctx.expert].network)
        tokens, temb = streams.tokens["video"], streams.modulation["time"]
        shift, scale = (network.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        tokens = (network.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        tokens = network.proj_out(tokens).unflatten(1, streams.grid).unflatten(-1, (*network.config.patch_size, -1))
        # (B, T, H, W, pt, ph, pw, C) to (B, C, T pt, H ph, W pw)
        return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return load_tokenizer(self.folder / "tokenizer")

    def _count_tokens(self, prompt: str) -> int:
        return count_tokens(self.tokenizer, clean_prompt(prompt))

    def _encode(self, prompt: str, num_tokens: int) -> dict[str, Tensor]:
        """UMT5's last hidden states (1, num_tokens, D), zero after the prompt's end."""
        found = self.tokenizer(
            [clean_prompt(prompt)], padding="max_length", max_length=num_tokens, truncation=True, return_tensors="pt"
        )
        mask = found.attention_mask.to(self.device)
        with self.resident("text_encoder") as encoder:
            hidden = encoder(found.input_ids.to(self.device), mask).last_hidden_state
        return {"embeds": hidden.masked_fill(mask.unsqueeze(-1) == 0, 0.0).to(self.dtype)}

    def decode_pixels(self, latents: Tensor, check: Check | None = None) -> Tensor:
        with self.resident("vae") as vae:
            latents = latents.to(self.vae_dtype)
            mean, std = (
                torch.tensor(vae.config[key], device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
                for key in ("latents_mean", "latents_std")
            )
            return decode_clip(vae, latents / (1.0 / std) + mean, check)


def run_block(block: Callable[..., Any], streams: Streams) -> Streams:
    """Call a WanTransformerBlock, or its compiled form, on the streams."""
    tokens = streams.tokens
    return streams.with_tokens(video=block(tokens["video"], tokens["text"], streams.modulation["blocks"], streams.rope))


def clean_prompt(prompt: str) -> str:
    """Unescape HTML and join white space, as WanPipeline does where ftfy is not installed.

    ftfy repairs mis-decoded characters; a spec must not mean something else where it happens to be installed.
    """
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt)).strip()).strip()


class WanSiteProcessor(SiteProcessor):
    """Wan's attention with the function taken from a site: projections and RoPE as in diffusers' WanAttnProcessor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        out = self.site(q, k, v, attention_mask).flatten(2, 3).type_as(q)
        return cast(Tensor, attn.to_out[1](attn.to_out[0](out)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, L, H, D) by tables (1, L, 1, D); pairs are neighbours."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out.type_as(x)
