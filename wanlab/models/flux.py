"""Flux.1, text to image: double blocks (image and text apart, attention joint), then single blocks.

Source: diffusers 0.42.1, transformer_flux.py and pipeline_flux.py. An image is a clip of one frame: latents (B, C, 1,
H, W), packed into tokens of 2 x 2 latent pixels inside `embed` and unpacked inside `head`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from wanlab.attention.sdpa import sdpa
from wanlab.errors import WanlabError
from wanlab.models._processor import SiteProcessor
from wanlab.models._tokenizer import count_tokens, load_tokenizer, pieces
from wanlab.models._workload import BlockWork, Workload, attend, dense
from wanlab.models.base import Check, Geometry, Model
from wanlab.registry import FAMILIES
from wanlab.sites import AttentionSite, BlockPlan, Branch, Layout, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec

_COMPONENTS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
}
_TIME_FREQUENCIES = 256  # of the timestep and of the guidance scale
_PACK = 2  # latent pixels of a token along height and width


@FAMILIES.register("flux")
class Flux(Model):
    """Text to image by FluxTransformer2DModel, T5, CLIP and AutoencoderKL."""

    family = "flux"
    outputs = ("image",)
    cache_signal = "content"
    pipelines = ("FluxPipeline",)
    encoders = ("text_encoder", "text_encoder_2")

    @classmethod
    def component_class(cls, component: str) -> Any:
        return _COMPONENTS[component]

    @functools.cached_property
    def geometry(self) -> Geometry:
        stride = 2 ** (len(self.config("vae")["block_out_channels"]) - 1)
        return Geometry(
            frame_stride=1,
            pixel_stride=stride,
            pixel_multiple=stride * _PACK,
            channels=self.config("transformer")["in_channels"] // _PACK**2,
            max_pixels=16_384,
            max_frames=1,
        )

    @property
    def unused_settings(self) -> frozenset[str]:
        return frozenset({"sampling.flow_shift"} if "dynamic_shift" in self.constants else ())

    @functools.cached_property
    def takes_guidance(self) -> bool:
        return bool(self.config("transformer")["guidance_embeds"])

    @property
    def text_tokens(self) -> int:
        return 512

    def resolve(self, spec: GenerationSpec) -> GenerationSpec:
        sampling, default = spec.sampling, self.default_spec.sampling.flow_shift
        if "dynamic_shift" in self.constants and sampling.sigmas is None and sampling.flow_shift != default:
            raise WanlabError(
                f"flow_shift = {sampling.flow_shift} has no effect: {self.id} shifts by the size of the image",
                remedy="Leave flow_shift out, or give sigmas, which replace the schedule",
            )
        return super().resolve(spec)

    def _schedule(self, sampler: Any, spec: GenerationSpec) -> Tensor:
        """Levels 1 to 1/num_steps, shifted by the number of tokens, or by flow_shift for checkpoints without that."""
        known, mu = self.constants.get("dynamic_shift"), math.log(spec.sampling.flow_shift)
        if known is not None:
            _, _, height, width = self.latent_shape(spec)
            tokens = (known["base_image_seq_len"], known["max_image_seq_len"])
            shifts = (known["base_shift"], known["max_shift"])
            mu = sampler.dynamic_mu(height * width // _PACK**2, tokens, shifts)
        return cast(Tensor, sampler.dynamic_sigmas(spec.sampling.num_steps, mu))

    def _build_stack(self, expert: str) -> Stack:
        network, layout = self.parts[expert].module, Layout()
        plans = [
            self._plan(f"transformer_blocks.{i}", "double", b, layout) for i, b in enumerate(network.transformer_blocks)
        ]
        plans += [
            self._plan(f"single_transformer_blocks.{i}", "single", b, layout)
            for i, b in enumerate(network.single_transformer_blocks)
        ]
        return Stack(expert, network, plans, layout, self.lock)

    def _plan(self, name: str, kind: str, block: nn.Module, layout: Layout) -> BlockPlan:
        attention = cast(Any, block).attn
        site = AttentionSite(f"{name}.attn", "joint", sdpa, layout, attention.head_dim, self.lock)
        attention.set_processor(FluxSiteProcessor(site))
        parts = ("attn", "ff", "ff_context") if kind == "double" else ("attn",)
        return BlockPlan(name, kind, block, run_block, {"attn": site}, parts)

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        stack = self.stacks[ctx.expert]
        network = cast(Any, stack.network)
        batch, _, _, height, width = latents.shape
        grid = (1, height // _PACK, width // _PACK)
        packed = rearrange(latents.to(self.dtype), "b c 1 (h p) (w q) -> b (h w) (c p q)", p=_PACK, q=_PACK)
        text, pooled = (self._share(branch.text[key], batch) for key in ("embeds", "pooled"))
        time = self._scaled(ctx.timestep, batch) / 1000
        parts = [time * 1000, pooled]
        if self.takes_guidance:
            if branch.guidance is None:
                raise WanlabError(f"{self.id} takes guidance as an input", remedy="Use the guidance method 'embedded'")
            parts.insert(1, self._scaled(branch.guidance, batch) * 1000)
        rope = network.pos_embed(_positions(text.shape[1], grid, self.device))
        stack.layout.grid, stack.layout.text = grid, (0, text.shape[1])
        return Streams(
            tokens={"text": network.context_embedder(text), "image": network.x_embedder(packed)},
            modulation={"time": network.time_text_embed(*parts)},
            rope=rope,
            grid=grid,
        )

    def modulated_input(self, streams: Streams, expert: str) -> Tensor:
        block = cast(Any, self.stacks[expert].network).transformer_blocks[0]
        return cast(Tensor, block.norm1(streams.tokens["image"], emb=streams.modulation["time"])[0])

    def head(self, streams: Streams, ctx: StepContext) -> Tensor:
        network = cast(Any, self.stacks[ctx.expert].network)
        tokens = network.proj_out(network.norm_out(streams.tokens["image"], streams.modulation["time"]))
        _, height, width = streams.grid
        return rearrange(tokens, "b (h w) (c p q) -> b c 1 (h p) (w q)", h=height, w=width, p=_PACK, q=_PACK)

    def _work(self, spec: GenerationSpec, network: Mapping[str, Any], nag: bool) -> Workload:
        text = spec.text.max_text_tokens
        assert text, "a resolved spec has it"
        _, _, height, width = self.latent_shape(spec)
        image, dim = height * width // _PACK**2, network["num_attention_heads"] * network["attention_head_dim"]
        out = network["patch_size"] ** 2 * (network["out_channels"] or network["in_channels"])
        scalars = [(_TIME_FREQUENCIES, dim), (dim, dim)] * (2 if network["guidance_embeds"] else 1)
        embed = dense(1, *scalars, (network["pooled_projection_dim"], dim), (dim, dim))
        embed += dense(text, (network["joint_attention_dim"], dim)) + dense(image, (network["in_channels"], dim))
        entries = [_double_work(f"transformer_blocks.{i}", image, text, dim) for i in range(network["num_layers"])]
        entries += [
            _single_work(f"single_transformer_blocks.{i}", image + text, dim)
            for i in range(network["num_single_layers"])
        ]
        return Workload(
            entries=tuple(entries),
            tokens={"text": (text, dim), "image": (image, dim)},
            changed=("text", "image"),
            embed=embed,
            head=dense(1, (dim, 2 * dim)) + dense(image, (dim, out)),
        )

    def _scaled(self, value: float | Tensor, batch: int) -> Tensor:
        """A scalar as (B,) in the network's dtype: rounded to it before it is scaled, as FluxPipeline does."""
        return torch.as_tensor(value, dtype=torch.float32, device=self.device).to(self.dtype).expand(batch)

    def _share(self, tensor: Tensor, batch: int) -> Tensor:
        tensor = tensor.to(self.device, self.dtype)
        return tensor if tensor.shape[0] == batch else tensor.expand(batch, *tensor.shape[1:])

    @functools.cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """CLIP's and T5's tokenizer."""
        clip, t5 = (load_tokenizer(self.side_folder(name), self.id) for name in ("tokenizer", "tokenizer_2"))
        return clip, t5

    def _count_tokens(self, prompt: str) -> int:
        """T5's; CLIP reads what fits its 77, here as in FluxPipeline."""
        return count_tokens(self.tokenizers[1], prompt)

    def pieces(self, prompt: str) -> list[str]:
        return pieces(self.tokenizers[1], prompt)

    def _encode(self, prompt: str, num_tokens: int) -> dict[str, Tensor]:
        """T5's hidden states (1, num_tokens, D) and CLIP's pooled ones (1, P); no mask, as FluxPipeline has none."""
        clip, t5 = self.tokenizers
        found = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        short = clip([prompt], max_length=clip.model_max_length, **found).input_ids.to(self.device)
        long = t5([prompt], max_length=num_tokens, **found).input_ids.to(self.device)
        with self.resident("text_encoder") as encoder:
            pooled = encoder(short, output_hidden_states=False).pooler_output
        with self.resident("text_encoder_2") as encoder:
            hidden = encoder(long, output_hidden_states=False)[0]
        return {"embeds": hidden.to(self.dtype), "pooled": pooled.to(self.dtype)}

    def decode_pixels(self, latents: Tensor, check: Check | None = None) -> Tensor:
        with self.resident("vae") as vae:
            scaled = latents.squeeze(2).to(self.vae_dtype) / vae.config.scaling_factor + vae.config.shift_factor
            return cast(Tensor, vae.decode(scaled, return_dict=False)[0]).unsqueeze(2)


def run_block(block: Callable[..., Any], streams: Streams) -> Streams:
    """Call a double or single block, or its compiled form; both take and give (text, image)."""
    text, image = block(
        hidden_states=streams.tokens["image"],
        encoder_hidden_states=streams.tokens["text"],
        temb=streams.modulation["time"],
        image_rotary_emb=streams.rope,
    )
    # Single blocks give slices of one tensor, and a graph made for whole ones does not fit those. `contiguous()` would
    # keep the slice's stride of a batch of 1.
    return streams.with_tokens(text=_whole(text), image=_whole(image))


def _double_work(name: str, image: int, text: int, dim: int) -> BlockWork:
    """Operations of a FluxTransformerBlock; its norms' are of the layers that scale and shift."""
    one, up, down = (dim, dim), (dim, 4 * dim), (4 * dim, dim)
    kernel = attend(image + text, image + text, dim)
    parts = {
        "norm1": dense(1, (dim, 6 * dim)),
        "norm1_context": dense(1, (dim, 6 * dim)),
        "attn": kernel + dense(image + text, one, one, one, one),
        "ff": dense(image, up, down),
        "ff_context": dense(text, up, down),
    }
    return BlockWork(name, "double", parts, {"attn": kernel})


def _single_work(name: str, tokens: int, dim: int) -> BlockWork:
    """Operations of a FluxSingleTransformerBlock."""
    one, kernel = (dim, dim), attend(tokens, tokens, dim)
    parts = {
        "norm": dense(1, (dim, 3 * dim)),
        "attn": kernel + dense(tokens, one, one, one),
        "proj_mlp": dense(tokens, (dim, 4 * dim)),
        "proj_out": dense(tokens, (5 * dim, dim)),
    }
    return BlockWork(name, "single", parts, {"attn": kernel})


def _whole(x: Tensor) -> Tensor:
    return x if x.stride(0) == x[0].numel() else x.clone(memory_format=torch.contiguous_format)


def _positions(num_text: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Position (0, row, column) of every token (L, 3); text tokens stand at 0."""
    _, height, width = grid
    image = torch.zeros(height, width, 3, device=device)
    image[..., 1] = torch.arange(height, device=device)[:, None]
    image[..., 2] = torch.arange(width, device=device)[None, :]
    return torch.cat([torch.zeros(num_text, 3, device=device), image.flatten(0, 1)])


class FluxSiteProcessor(SiteProcessor):
    """Flux's attention with the function taken from a site: projections and RoPE as in diffusers' FluxAttnProcessor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        q, k, v = (f(hidden_states).unflatten(-1, (-1, attn.head_dim)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            tq, tk, tv = (f(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)) for f in projections)
            tq, tk = attn.norm_added_q(tq), attn.norm_added_k(tk)
            q, k, v = torch.cat([tq, q], dim=1), torch.cat([tk, k], dim=1), torch.cat([tv, v], dim=1)
        if image_rotary_emb is not None:
            q, k = rotate(q, *image_rotary_emb), rotate(k, *image_rotary_emb)
        out = self.site(q, k, v, attention_mask).flatten(2, 3).to(q.dtype)
        if encoder_hidden_states is None:
            return out
        text, image = out.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, L, H, D) by tables (L, D); pairs are neighbours."""
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
