"""Wan's blocks as stack entries, and its attention with the functions taken from sites.

Source: diffusers 0.42.1, transformer_wan.py and transformer_wan_vace.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from wanlab.attention import normalized_guidance
from wanlab.attention.sdpa import sdpa
from wanlab.models._processor import SiteProcessor
from wanlab.sites import AttentionSite, BlockPlan, Layout, RunLock, Streams

PARTS = ("attn1", "attn2", "ffn")
"""Self attention, cross attention and feed-forward of a WanTransformerBlock."""


def plan_block(name: str, block: nn.Module, layout: Layout, lock: RunLock) -> BlockPlan:
    """A WanTransformerBlock as an entry of the stack."""
    return BlockPlan(name, "block", block, run_block, attention_sites(name, block, layout, lock), PARTS)


def attention_sites(name: str, block: nn.Module, layout: Layout, lock: RunLock) -> dict[str, AttentionSite]:
    """Give a block's attentions their sites: "attn1" (self), "attn2" (cross), "attn2_image" where pictures are read."""
    sites: dict[str, AttentionSite] = {}
    for part, role in (("attn1", "self"), ("attn2", "cross")):
        attention = cast(Any, getattr(block, part))
        head_dim = attention.inner_dim // attention.heads
        sites[part] = AttentionSite(f"{name}.{part}", role, sdpa, layout, head_dim, lock)
        image = None
        if attention.add_k_proj is not None:
            image = AttentionSite(f"{name}.{part}_image", "image_cross", sdpa, layout, head_dim, lock)
            sites[f"{part}_image"] = image
        attention.set_processor(WanSiteProcessor(sites[part], image))
    return sites


def run_block(block: Callable[..., Any], streams: Streams) -> Streams:
    """Call a WanTransformerBlock, or its compiled form, on the streams."""
    video, modulation = streams.tokens["video"], streams.modulation["blocks"]
    if modulation.ndim == 4 and isinstance(block, nn.Module):
        return streams.with_tokens(video=_by_frames(block, video, context(streams), modulation, streams.rope))
    if modulation.ndim == 4:  # compiled: diffusers' forward, which takes one for each token
        modulation = per_token(modulation, video)
    return streams.with_tokens(video=block(video, context(streams), modulation, streams.rope))


def per_token(per_frame: Tensor, tokens: Tensor) -> Tensor:
    """(B, T, ...) of latent frames as (B, L, ...) of their tokens (B, L, D)."""
    return per_frame.repeat_interleave(tokens.shape[1] // per_frame.shape[1], dim=1)


def _by_frames(block: Any, x: Tensor, text: Tensor, modulation: Tensor, rope: tuple[Tensor, ...]) -> Tensor:
    """A WanTransformerBlock whose modulation (B, T, 6, D) is one for each latent frame; bit-equal to its own forward.

    That takes one for each token: for 704x1280x121 a gigabyte, and two more as float32 in every block.
    """
    parts = (block.scale_shift_table.unsqueeze(0) + modulation.float()).unsqueeze(3).unbind(2)  # each (B, T, 1, D)
    num_frames = modulation.shape[1]

    def frames(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (num_frames, -1))

    def modulated(norm: nn.Module, shift: Tensor, scale: Tensor) -> Tensor:
        return (frames(norm(x.float())) * (1 + scale) + shift).flatten(1, 2).type_as(x)

    def gated(out: Tensor, gate: Tensor) -> Tensor:
        return (frames(x.float()) + frames(out) * gate).flatten(1, 2).type_as(x)

    x = gated(block.attn1(modulated(block.norm1, *parts[:2]), None, None, rope), parts[2])
    x = x + block.attn2(block.norm2(x.float()).type_as(x), text, None, None)
    return gated(block.ffn(modulated(block.norm3, *parts[3:5])).float(), parts[5])


def context(streams: Streams) -> Tensor:
    """What cross attention reads, (B, image + text + negative tokens, D)."""
    tokens = streams.tokens
    return torch.cat([tokens["text"], tokens["negative"]], 1) if "negative" in tokens else tokens["text"]


class WanSiteProcessor(SiteProcessor):
    """Wan's attention: projections and RoPE as in diffusers' WanAttnProcessor, any number of text tokens.

    diffusers takes all but the last 512 tokens of the context for image tokens; here the layout says how many they are.
    """

    def __init__(self, site: AttentionSite, image_site: AttentionSite | None = None) -> None:
        super().__init__(site)
        self.image_site = image_site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        num_image = self.site.layout.image if self.image_site is not None else 0
        text = source[:, num_image:]
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        out = self._attend(q, k, v, attention_mask)
        if self.image_site is not None:
            image = source[:, :num_image]
            k, v = attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image)
            k, v = (x.unflatten(2, (attn.heads, -1)) for x in (k, v))
            out = out + self.image_site(q, k, v).flatten(2, 3).type_as(q)
        return cast(Tensor, attn.to_out[1](attn.to_out[0](out)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention (B, L, H * D); the last keys may be the negative prompt's, which then guide it."""
        layout = self.site.layout
        num_negative = layout.negative if self.site.role == "cross" else 0
        if not num_negative:
            return self.site(q, k, v, mask).flatten(2, 3).type_as(q)
        assert layout.nag is not None, "a negative prompt without its numbers"
        positive, negative = (
            self.site(q, k[:, part], v[:, part]).flatten(2, 3).type_as(q)
            for part in (slice(None, -num_negative), slice(-num_negative, None))
        )
        return normalized_guidance(positive, negative, *layout.nag.unbind())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, L, H, D) by tables (1, L, 1, D); pairs are neighbours."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = x.new_empty(x.shape)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out.type_as(x)
