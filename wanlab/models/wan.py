"""Wan 2.1 and 2.2 (one or two experts) from text, pictures and video: diffusers' networks, our forward around them.

Source: diffusers 0.42.1, transformer_wan.py, pipeline_wan.py, pipeline_wan_i2v.py and pipeline_wan_video2video.py; the
split is bit-equal to WanTransformer3DModel.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from wanlab import media
from wanlab.errors import WanlabError
from wanlab.models import _wan_inputs as inputs
from wanlab.models import _wan_work as work
from wanlab.models._rope import riflex_length, rope_tables
from wanlab.models._tokenizer import count_tokens, load_tokenizer, pieces
from wanlab.models._wan_blocks import per_token, plan_block
from wanlab.models._wan_time import time_embeddings
from wanlab.models._wan_vae import decode_clip
from wanlab.models._workload import Workload
from wanlab.models.base import Check, Geometry, Model
from wanlab.registry import FAMILIES
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, Layout, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec, MediaRef

_COMPONENTS = {"text_encoder": UMT5EncoderModel, "image_encoder": CLIPVisionModel, "vae": AutoencoderKLWan}


@FAMILIES.register("wan")
class Wan(Model):
    """Video by WanTransformer3DModel, UMT5, AutoencoderKLWan and, for Wan 2.1 from pictures, CLIP.

    What a checkpoint takes follows from its network: 20 more channels than it gives (a mask of 4 and latents of 16) are
    for first and last frames; `expand_timesteps` (TI2V-5B) takes a first frame as a clean latent frame at timestep 0;
    every one takes a video to start from.
    """

    family = "wan"
    nag = True
    cache_signal = "time"
    frequencies: Any = staticmethod(functools.partial(Timesteps, flip_sin_to_cos=True, downscale_freq_shift=0))
    """Makes the module that turns timesteps into sines and cosines, as the network's class does."""
    pipelines = ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanDMDPipeline")
    optional_encoders = ("image_encoder",)
    starts_from_video = True

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
            channels=self.config("vae")["z_dim"],
            max_pixels=longest * pixels * max(patch[1:]),
            max_frames=(longest * patch[0] - 1) * frames + 1,
        )

    @functools.cached_property
    def expand_timesteps(self) -> bool:
        """Whether a first frame is a clean latent frame with a timestep of its own (TI2V)."""
        return bool(self.constants.get("expand_timesteps", self.index.get("expand_timesteps", False)))

    @functools.cached_property
    def _network(self) -> dict[str, Any]:
        """The configuration of the (first) transformer."""
        return self.config(self.experts_present[0])

    @functools.cached_property
    def _reads_frames(self) -> bool:
        """Whether first and last frames enter as channels. Raises WanlabError for channels of another purpose."""
        geometry, given = self.geometry, self._network["in_channels"]
        frames = geometry.channels + geometry.frame_stride  # latents, and a mask of each frame's pixels in time
        if given not in (geometry.channels, geometry.channels + frames):
            raise WanlabError(
                f"The network of {self.id} reads {given} channels, and latents have {geometry.channels}",
                remedy=f"A family is needed that makes the others; {self.family!r} makes 0 or {frames}, of frames",
            )
        return bool(given > geometry.channels)

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        names = ["video", "mask", "fit"]
        if self._reads_frames or self.expand_timesteps:
            names.append("image")
        clip_reads_both = self._network["image_dim"] is None or self._network["pos_embed_seq_len"] is not None
        if self._reads_frames and (clip_reads_both or self.constants.get("last_frame", False)):
            names.append("last_image")
        return tuple(names)

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        if not self._reads_frames:
            return ()
        return ("image",) if self._network["pos_embed_seq_len"] is None else ("image", "last_image")

    @property
    def text_tokens(self) -> int:
        return 512  # WanPipeline's default; zeros after the prompt's end are part of what the network was trained on

    def _build_stack(self, expert: str) -> Stack:
        network, layout = self.parts[expert].module, Layout()
        plans = [plan_block(f"blocks.{i}", block, layout, self.lock) for i, block in enumerate(network.blocks)]
        return Stack(expert, network, plans, layout, self.lock)

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        stack, conditions = self.stacks[ctx.expert], branch.conditions
        network = cast(Any, stack.network)
        batch = latents.shape[0]
        if conditions.channels is not None:
            latents = torch.cat([latents, share(conditions.channels.to(latents), batch)], 1)
        latents = latents.to(self.dtype)
        tokens = network.patch_embedding(latents)
        grid = tuple(tokens.shape[2:])
        time, blocks = self._time(network, ctx, conditions, batch)
        context = self._context(network, branch, batch)
        stack.layout.grid, stack.layout.image = grid, context.shape[1] - branch.text["embeds"].shape[1]
        return Streams(
            tokens={
                "video": tokens.flatten(2).transpose(1, 2).contiguous(),
                "text": context,
                **self._negative(network, stack.layout, branch, batch),
            },
            modulation={"time": time, "blocks": blocks},
            rope=self._rope(network, latents, conditions),
            grid=grid,
        )

    def _rope(self, network: Any, latents: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        if conditions.riflex is None:
            return cast("tuple[Tensor, Tensor]", network.rope(latents))
        rope = network.rope
        frames, height, width = (n // p for n, p in zip(latents.shape[2:], rope.patch_size, strict=True))
        grid = (frames, height, width)
        return rope_tables(rope.attention_head_dim, grid, riflex=conditions.riflex, device=self.device)

    def _time(self, network: Any, ctx: StepContext, conditions: Conditions, batch: int) -> tuple[Tensor, Tensor]:
        """Embeddings of the timestep, (B, D) and (B, 6, D); (B, T, D) and (B, T, 6, D) where frames are clean."""
        if isinstance(ctx.timestep, Tensor):
            timestep = ctx.timestep.to(self.device, torch.float32).expand(batch)
        else:  # made on the device: a copy from the processor would wait for it at every forward
            timestep = torch.full((batch,), ctx.timestep, dtype=torch.float32, device=self.device)
        if conditions.free is None or conditions.noise is not None:
            return self._embed_time(network, timestep)
        # Two timesteps exist, 0 and the step's: embed both once and give each frame its own.
        both = torch.stack([torch.zeros_like(timestep), timestep], 1).flatten()
        time, blocks = (x.unflatten(0, (batch, 2)) for x in self._embed_time(network, both))
        which = conditions.free[0, 0, :, 0, 0].to(self.device).long()
        return time[:, which], blocks[:, which]

    def _embed_time(self, network: Any, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) and (N, 6, D) of timesteps (N,)."""
        embedder = network.condition_embedder
        projected = embedder.timesteps_proj(timestep).to(embedder.time_embedder.linear_1.weight.dtype)
        time = embedder.time_embedder(projected).to(self.dtype)
        return time, embedder.time_proj(embedder.act_fn(time)).unflatten(-1, (6, -1))

    def time_embeddings(self, timesteps: Tensor, expert: str, *, projected: bool = False) -> Tensor:
        return time_embeddings(self, timesteps, expert, projected)

    def _context(self, network: Any, branch: Branch, batch: int) -> Tensor:
        """What cross attention reads, (B, image tokens + text tokens, D)."""
        embedder = network.condition_embedder
        text = share(embedder.text_embedder(branch.text["embeds"].to(self.device, self.dtype)), batch)
        if not branch.conditions.tokens:
            return text
        image = branch.conditions.tokens["image"].to(self.device, self.dtype)
        if embedder.image_embedder.pos_embed is not None:  # it joins the tokens of the two pictures itself
            image = image.unflatten(1, (2, -1)).flatten(0, 1)
        image = embedder.image_embedder(image)
        return torch.cat([share(image, batch), text], 1)

    def _negative(self, network: Any, layout: Layout, branch: Branch, batch: int) -> dict[str, Tensor]:
        """The negative prompt's tokens {"negative": (B, L, D)} of a branch with normalized attention guidance."""
        layout.negative, layout.nag = 0, None
        if branch.nag is None:
            return {}
        embeds = branch.text["negative_embeds"].to(self.device, self.dtype)
        layout.negative, layout.nag = embeds.shape[1], torch.tensor(branch.nag, device=self.device)
        return {"negative": share(network.condition_embedder.text_embedder(embeds), batch)}

    def head(self, streams: Streams, ctx: StepContext) -> Tensor:
        network = cast(Any, self.stacks[ctx.expert].network)
        tokens, time = streams.tokens["video"], streams.modulation["time"]
        time = time.unsqueeze(1) if time.ndim == 2 else per_token(time, tokens)
        shift, scale = (network.scale_shift_table[:, i : i + 1] + time for i in range(2))
        tokens = (network.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        tokens = network.proj_out(tokens).unflatten(1, streams.grid).unflatten(-1, (*network.config.patch_size, -1))
        # (B, T, H, W, pt, ph, pw, C) to (B, C, T pt, H ph, W pw)
        return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    # What it costs

    def _work(self, spec: GenerationSpec, network: Mapping[str, Any], nag: bool) -> Workload:
        return work.forward(network, self._lengths(spec, network, nag))

    def _lengths(self, spec: GenerationSpec, network: Mapping[str, Any], nag: bool) -> work.Lengths:
        """What enters a forward of a resolved spec; pictures that the network needs count if they are not given too."""
        text = spec.text.max_text_tokens
        assert text, "a resolved spec has it"
        frames, height, width = (
            n // p for n, p in zip(self.latent_shape(spec)[1:], network["patch_size"], strict=True)
        )
        is_first_clean = spec.media.image is not None and not self._reads_frames
        return work.Lengths(
            grid=(frames, height, width),
            text=text,
            negative=text if nag else 0,
            image=self._num_image_tokens,
            times=2 if is_first_clean else 1,
        )

    @functools.cached_property
    def _num_image_tokens(self) -> int:
        """Tokens of what CLIP sees: of each picture its patches and one of the whole."""
        if not self._reads_frames or self._network["image_dim"] is None:
            return 0
        given = dict(self.parts["image_encoder"].component.config)
        config = self.component_class("image_encoder").config_class.from_dict(given)
        pictures = 1 if self._network["pos_embed_seq_len"] is None else 2
        return int(pictures * ((config.image_size // config.patch_size) ** 2 + 1))

    # Pictures and video

    @torch.no_grad()
    def encode_conditions(self, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
        self._refuse_windows(window, previous)
        spec = self.resolve(spec)
        self.check_media(spec)
        found = NO_CONDITIONS
        if spec.media.image is not None and self._reads_frames:
            found = self._frame_channels(spec)
        elif spec.media.image is not None:
            found = self._clean_first_frame(spec)
        if spec.media.video is not None:
            found = self._start_video(spec, found)
        return self._stretched(spec, found)

    def needs_conditions(self, spec: GenerationSpec) -> bool:
        return super().needs_conditions(spec) or self._stretched(spec, NO_CONDITIONS) is not NO_CONDITIONS

    def _stretched(self, spec: GenerationSpec, conditions: Conditions) -> Conditions:
        """The conditions with RIFLEx where the spec asks for it."""
        length = riflex_length(
            spec.sampling.riflex, inputs.length(spec), float(spec.size.fps or 0), self.latent_shape(spec)[1]
        )
        return conditions if length is None else replace(conditions, riflex=length)

    def check_media(self, spec: GenerationSpec) -> None:
        super().check_media(spec)
        if spec.media.image is not None and spec.media.video is not None and not self._reads_frames:
            raise WanlabError(f"{self.id} starts from an image or from a video, not from both", remedy="Leave one out")
        if spec.media.last_image is not None and spec.size.num_frames == 1:
            raise WanlabError("One frame cannot be both first and last", remedy="Give num_frames of at least 5")

    def _frame_channels(self, spec: GenerationSpec) -> Conditions:
        """Mask and latents of the given frames as channels, and what CLIP sees in them where the network reads it."""
        first, last = spec.media.image, spec.media.last_image
        assert first is not None, "check_media let a spec without its image pass"
        end = None if last is None else inputs.picture(last, spec)
        video, known = inputs.first_frame_video(inputs.picture(first, spec), end, inputs.length(spec))
        latents = self._encode_pixels(video)
        mask = inputs.mask_channels(known, self.geometry.frame_stride, *latents.shape[-2:])
        tokens = None
        if self._network["image_dim"] is not None:
            both = self._network["pos_embed_seq_len"] is not None
            tokens = {"image": self._see([ref for ref in (first, last if both else None) if ref is not None])}
        return Conditions(channels=torch.cat([mask.to(latents), latents], 1), tokens=tokens)

    def _clean_first_frame(self, spec: GenerationSpec) -> Conditions:
        """The picture as the first latent frame, which stays as it is."""
        assert spec.media.image is not None
        frame = self._encode_pixels(inputs.picture(spec.media.image, spec))
        channels, frames, height, width = self.latent_shape(spec)
        known = frame.new_zeros(1, channels, frames, height, width)
        free = frame.new_ones(1, 1, frames, height, width)
        known[:, :, :1], free[:, :, :1] = frame, 0
        return Conditions(known=known, free=free)

    def _start_video(self, spec: GenerationSpec, conditions: Conditions) -> Conditions:
        """The video to start from and, with a mask, what of it is put back at every step."""
        assert spec.media.video is not None
        known = self._encode_pixels(inputs.whole_clip(spec.media.video, spec))
        if spec.media.mask is None:
            return replace(conditions, known=known)
        pixels = inputs.mask(spec.media.mask, spec, inputs.length(spec))
        free = inputs.latent_mask(pixels, self.geometry).to(known)
        steps = spec.sampling.num_steps if spec.sampling.sigmas is None else len(spec.sampling.sigmas) - 1
        strength = spec.sampling.masking_strength
        kept = None if strength == 1 else -int(-steps * strength // 1)
        return replace(conditions, known=known, free=free, noise=self.initial_noise(spec), kept_steps=kept)

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """Normalised latents, float32 on the device, of pixels (1, 3, T, H, W) in [-1, 1]."""
        with self.resident("vae") as vae:
            return inputs.encode_clip(vae, pixels.to(self.device), lambda _: self.check())

    def _see(self, refs: list[MediaRef]) -> Tensor:
        """CLIP's last hidden states but one, (1, 257 for each picture, D)."""
        from PIL import Image

        pictures = [Image.fromarray(media.read_image(ref)) for ref in refs]
        pixels = inputs.clip_processor(self.side_folder("image_processor"))(
            images=pictures, return_tensors="pt"
        ).pixel_values
        with self.resident("image_encoder") as encoder:
            seen = encoder(pixels.to(self.device, encoder.dtype), output_hidden_states=True).hidden_states[-2]
        return cast(Tensor, seen.flatten(0, 1)[None])

    # Text and pixels

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return load_tokenizer(self.side_folder("tokenizer"), self.id)

    def _count_tokens(self, prompt: str) -> int:
        return count_tokens(self.tokenizer, clean_prompt(prompt))

    def pieces(self, prompt: str) -> list[str]:
        return pieces(self.tokenizer, clean_prompt(prompt))

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
            return decode_clip(vae, inputs.denormalised(vae, latents), check)


def share(tensor: Tensor, batch: int) -> Tensor:
    """What all samples share, for each of them."""
    return tensor if tensor.shape[0] == batch else tensor.expand(batch, *tensor.shape[1:])


def clean_prompt(prompt: str) -> str:
    """Unescape HTML and join white space, as WanPipeline does where ftfy is not installed.

    ftfy repairs mis-decoded characters; a spec must not mean something else where it happens to be installed.
    """
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt)).strip()).strip()
