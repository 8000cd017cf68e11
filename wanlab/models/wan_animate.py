"""Wan-Animate: a person in a picture moves as poses and a face do, or takes the place of the person in a video.

One segment of the clip; longer ones are made of several, which cannot be joined yet.
Source: diffusers 0.42.1, transformer_wan_animate.py and pipeline_wan_animate.py; Wan-Video/Wan2.2 (arXiv:2509.14055).
The split is bit-equal to WanAnimateTransformer3DModel, which reads the face again at every step; here it is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers import WanAnimateTransformer3DModel
from torch import Tensor

from wanlab.attention.sdpa import sdpa
from wanlab.errors import WanlabError
from wanlab.models import _wan_inputs as inputs
from wanlab.models import _wan_work as work
from wanlab.models._processor import SiteProcessor
from wanlab.models._wan_blocks import plan_block
from wanlab.models._window import check_window
from wanlab.models._workload import Workload
from wanlab.models.base import Geometry
from wanlab.models.wan import Wan, share
from wanlab.registry import FAMILIES
from wanlab.sites import AttentionSite, BlockPlan, Branch, Conditions, Layout, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec

SEGMENT = 77
"""Frames of a segment that the published checkpoint was trained on."""
_BLANK = -1.0  # pixels of the face in the branch without the prompt


@FAMILIES.register("wan_animate")
class WanAnimate(Wan):
    """Video by WanAnimateTransformer3DModel, UMT5, AutoencoderKLWan and CLIP.

    `image` is the person, whole on black; `pose_video` and `face_video` say how it moves. With `video` and `mask` the
    person takes the place of what is white in the mask; without them the background is made up. The latents have one
    frame more than the video, before it: the person's.
    """

    family = "wan_animate"
    pipelines = ("WanAnimatePipeline",)
    encoders = ("text_encoder", "image_encoder")
    optional_encoders = ()
    starts_from_video = False

    @classmethod
    def component_class(cls, component: str) -> Any:
        return WanAnimateTransformer3DModel if component == "transformer" else super().component_class(component)

    @functools.cached_property
    def segment_frames(self) -> int:
        """The most frames of one generation: the definition's "segment_frames", else 77."""
        return int(self.constants.get("segment_frames", SEGMENT))

    @functools.cached_property
    def geometry(self) -> Geometry:
        found = super().geometry
        return replace(found, max_frames=min(found.max_frames, self.segment_frames))

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        return ("image", "pose_video", "face_video", "video", "mask", "fit")

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        return ("image", "pose_video", "face_video")

    def resolve(self, spec: GenerationSpec) -> GenerationSpec:
        check_window(self.id, spec, self.segment_frames)
        return super().resolve(spec)

    def latent_shape(self, spec: GenerationSpec) -> tuple[int, int, int, int]:
        channels, frames, height, width = super().latent_shape(spec)
        return channels, frames + 1, height, width

    # Blocks

    def _build_stack(self, expert: str) -> Stack:
        network, layout = self.parts[expert].module, Layout()
        every = network.config.inject_face_latents_blocks
        plans = []
        for i, block in enumerate(network.blocks):
            plans.append(plan_block(f"blocks.{i}", block, layout, self.lock))
            if i % every == 0:
                name, adapter = f"face_adapter.{i // every}", network.face_adapter[i // every]
                site = AttentionSite(name, "face", sdpa, layout, adapter.inner_dim // adapter.heads, self.lock)
                adapter.set_processor(FaceSiteProcessor(site))
                plans.append(BlockPlan(name, "face", adapter, run_face_block, {"attn": site}))
        return Stack(expert, network, plans, layout, self.lock)

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        streams, batch = super().embed(latents, ctx, branch), latents.shape[0]
        network = cast(Any, self.stacks[ctx.expert].network)
        pose = network.pose_patch_embedding(branch.conditions.control[0].to(self.device, self.dtype))
        pose = share(pose.flatten(2).transpose(1, 2), batch)
        video = streams.tokens["video"]
        person, video = video[:, : -pose.shape[1]], video[:, -pose.shape[1] :]
        face = share(_face(branch), batch).to(self.device, self.dtype)
        return streams.with_tokens(video=torch.cat([person, video + pose], 1), face=face)

    def finish(self, latents: Tensor, conditions: Conditions) -> Tensor:
        return latents[:, :, 1:]

    def _work(self, spec: GenerationSpec, network: Mapping[str, Any], nag: bool) -> Workload:
        at, plain = self._lengths(spec, network, nag), super()._work(spec, network, nag)
        every, per_frame = network["inject_face_latents_blocks"], network["face_encoder_num_heads"] + 1
        entries = []
        for i, entry in enumerate(plain.entries):
            face = [] if i % every else [work.face_block(i // every, network, at, per_frame)]
            entries += [entry, *face]
        frames, height, width = at.grid
        pose = work.patches(network, network["latent_channels"], (frames - 1) * height * width)
        face_tokens = (frames * per_frame, work.width(network))
        tokens = {**plain.tokens, "face": face_tokens}
        return replace(plain, entries=tuple(entries), tokens=tokens, embed=plain.embed + pose)

    # What it is told

    def check_media(self, spec: GenerationSpec) -> None:
        super().check_media(spec)
        if spec.media.video is not None and spec.media.mask is None:
            raise WanlabError(
                "video is what the person is put into, and no mask says where",
                remedy="Give mask too, white where the person goes, or leave video out to make up the background",
            )
        if spec.size.num_frames == 1:
            raise WanlabError("A video of one frame does not move", remedy="Give num_frames of at least 5")

    @torch.no_grad()
    def encode_conditions(self, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
        self._refuse_windows(window, previous)
        spec = self.resolve(spec)
        self.check_media(spec)
        image, pose = spec.media.image, spec.media.pose_video
        assert image is not None, "checked"
        assert pose is not None, "checked"
        person = self._encode_pixels(inputs.reference(image, spec, pad=0))
        background = self._encode_pixels(self._background(spec))
        channels = [torch.cat([torch.ones_like(person[:, : self._stride]), person], 1)]
        channels.append(torch.cat([self._kept(spec, background), background], 1))
        found = Conditions(
            channels=torch.cat(channels, 2),
            tokens={"image": self._see([image]), **self._faces(spec)},
            control=(self._encode_pixels(inputs.whole_clip(pose, spec, "pose_video")),),
        )
        return self._stretched(spec, found)

    @property
    def _stride(self) -> int:
        return self.geometry.frame_stride

    def _background(self, spec: GenerationSpec) -> Tensor:
        """Pixels (1, 3, T, H, W) that surround the person: the video's, or grey."""
        if spec.media.video is None:
            return torch.zeros(1, 3, inputs.length(spec), *inputs.size(spec))
        return inputs.whole_clip(spec.media.video, spec)

    def _kept(self, spec: GenerationSpec, like: Tensor) -> Tensor:
        """Where the background stays, as channels (1, stride, t, h, w): every latent pixel as its first pixel says."""
        if spec.media.mask is None:
            return torch.zeros_like(like[:, : self._stride])
        step = self.geometry.pixel_stride
        kept = 1 - inputs.mask(spec.media.mask, spec, inputs.length(spec))[..., ::step, ::step].to(like)
        spread = torch.cat([kept[:, :, :1].expand(-1, -1, self._stride, -1, -1), kept[:, :, 1:]], 2)
        return spread.unflatten(2, (-1, self._stride))[:, 0].transpose(1, 2)

    def _faces(self, spec: GenerationSpec) -> dict[str, Tensor]:
        """Tokens (1, (t + 1) N, D) of the face and of none, N for each latent frame; zeros for the person's frame."""
        assert spec.media.face_video is not None, "checked"
        side = self._network["motion_encoder_size"]
        pixels = inputs.whole_clip(spec.media.face_video, spec, "face_video", at=(side, side))
        shown = {"face": pixels, "blank_face": torch.full_like(pixels, _BLANK)}
        with self.resident(self.experts_present[0]) as network:
            tokens = {name: network.face_encoder(self._motion(network, face)) for name, face in shown.items()}
        return {name: torch.cat([torch.zeros_like(x[:, :1]), x], 1).flatten(1, 2) for name, x in tokens.items()}

    def _motion(self, network: Any, pixels: Tensor) -> Tensor:
        """A vector (1, T, D) for each frame of a face, as many at once as the network's configuration says."""
        frames = pixels[0].transpose(0, 1).to(self.device, self.dtype)
        vectors = []
        for part in frames.split(network.config.motion_encoder_batch_size):
            self.check()
            vectors.append(network.motion_encoder(part))
        return torch.cat(vectors)[None]


def _face(branch: Branch) -> Tensor:
    """The face that a branch sees: none without the prompt. Branches that run as one batch, "cond+uncond", differ."""
    tokens, names = branch.conditions.tokens or {}, branch.name.split("+")
    chosen = [tokens["blank_face" if name == "uncond" else "face"] for name in names]
    return torch.cat([value.chunk(len(names))[i] for i, value in enumerate(chosen)])


def run_face_block(block: Callable[..., Any], streams: Streams) -> Streams:
    """Add what a WanAnimateFaceBlockCrossAttention, or its compiled form, reads in the face, frame by frame."""
    video, face = streams.tokens["video"], streams.tokens["face"]
    return streams.with_tokens(video=block(video, face.unflatten(1, (streams.grid[0], -1))) + video)


class FaceSiteProcessor(SiteProcessor):
    """The face blocks' attention, as diffusers' WanAnimateFaceBlockAttnProcessor: a frame's tokens see its own face."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is not None, "no face"
        batch, frames = encoder_hidden_states.shape[:2]
        hidden, face = attn.pre_norm_q(hidden_states), attn.pre_norm_kv(encoder_hidden_states).flatten(1, 2)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.to_q(hidden), attn.to_k(face), attn.to_v(face)))
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (x.unflatten(1, (frames, -1)).flatten(0, 1) for x in (q, k, v))
        out = self.site(q, k, v).flatten(2, 3).type_as(q)
        return cast(Tensor, attn.to_out(out.unflatten(0, (batch, frames)).flatten(1, 2)))
