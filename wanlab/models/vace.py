"""VACE: Wan with blocks that read control videos, masks and reference pictures, and hint to the blocks beside them.

Source: diffusers 0.42.1, transformer_wan_vace.py and pipeline_wan_vace.py; ali-vilab/VACE (arXiv:2503.07598). Bit-equal
to WanVACETransformer3DModel, which runs all hint blocks first: only the first of them reads the video's tokens, so here
each runs where its hint is used and no hint has to be kept. Reference pictures lie in the order in which they are
given, as in VACE's own code; diffusers turns it round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import WanVACETransformer3DModel
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from wanlab.errors import WanlabError
from wanlab.models import _wan_inputs as inputs
from wanlab.models._wan_blocks import PARTS, attention_sites, context, plan_block, run_block
from wanlab.models.wan import Wan, share
from wanlab.registry import FAMILIES
from wanlab.sites import BlockPlan, Branch, Conditions, Layout, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec, MediaRef

_CONTROLS = ("control", "control_2")


@FAMILIES.register("vace")
class Vace(Wan):
    """Video by WanVACETransformer3DModel, one or two experts.

    `video` is what the result follows or keeps: where `mask` is white the network decides, elsewhere the video stays.
    Without a mask all of it is a control signal; frames that the video lacks are free. `keyframes` overwrite single
    frames. `references` lie before the video in time and are cut off again.
    """

    family = "vace"
    pipelines = ("WanVACEPipeline",)
    optional_encoders = ()
    starts_from_video = False

    @classmethod
    def component_class(cls, component: str) -> Any:
        return WanVACETransformer3DModel if component.startswith("transformer") else super().component_class(component)

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        controls = ("video", "mask", "control_scale", "video_2", "mask_2", "control_scale_2")
        return (*controls, "references", "keyframes", "keyframe_positions", "fit")

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def num_control_layers(self) -> int:
        """Blocks that read control videos, each with a strength of its own."""
        return len(self._network["vace_layers"])

    def latent_shape(self, spec: GenerationSpec) -> tuple[int, int, int, int]:
        channels, frames, height, width = super().latent_shape(spec)
        return channels, frames + len(spec.media.references), height, width

    # Blocks

    def _build_stack(self, expert: str) -> Stack:
        network, layout = self.parts[expert].module, Layout()
        hints = {place: i for i, place in enumerate(network.config.vace_layers)}
        plans = []
        for i, block in enumerate(network.blocks):
            plan = plan_block(f"blocks.{i}", block, layout, self.lock)
            if i in hints:
                name, hint = f"vace_blocks.{hints[i]}", network.vace_blocks[hints[i]]
                sites = attention_sites(name, hint, layout, self.lock)
                plans.append(BlockPlan(name, "hint", hint, run_hint_block, sites, PARTS))
                run = functools.partial(run_hinted_block, layer=hints[i])
                plan = BlockPlan(plan.name, plan.kind, block, run, plan.attentions, PARTS)
            plans.append(plan)
        return Stack(expert, network, plans, layout, self.lock)

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        streams, batch = super().embed(latents, ctx, branch), latents.shape[0]
        network = cast(Any, self.stacks[ctx.expert].network)
        control = {
            name: share(_tokens(network.vace_patch_embedding(value.to(self.device, self.dtype))), batch)
            for name, value in zip(_CONTROLS, branch.conditions.control, strict=False)
        }
        scale = torch.tensor(branch.conditions.control_scale, device=self.device).to(self.dtype)
        streams = streams.with_tokens(**control)
        return Streams(streams.tokens, {**streams.modulation, "control": scale}, streams.rope, grid=streams.grid)

    def finish(self, latents: Tensor, conditions: Conditions) -> Tensor:
        num_references = 0 if conditions.reference_frames is None else conditions.reference_frames.shape[2]
        return latents[:, :, num_references:]

    # What it is told

    def check_media(self, spec: GenerationSpec) -> None:
        super().check_media(spec)
        if spec.media.video_2 is not None and spec.media.video is None:
            raise WanlabError("video_2 is a second control video, and there is no first", remedy="Give it as video")
        if spec.media.mask_2 is not None and spec.media.video_2 is None:
            raise WanlabError("mask_2 belongs to video_2, and there is none", remedy="Give video_2 too")
        if spec.media.control_scale_2 != (1.0,) and spec.media.video_2 is None:
            raise WanlabError("control_scale_2 is the strength of video_2, and there is none", remedy="Give it too")
        for name in ("control_scale", "control_scale_2"):
            if (given := len(getattr(spec.media, name))) not in (1, self.num_control_layers):
                raise WanlabError(
                    f"{name} has {given} numbers, and {self.id} has {self.num_control_layers} control layers",
                    remedy=f"Give one number for all of them, or {self.num_control_layers}",
                )
        frames = [self._frame(position, spec) for position in spec.media.keyframe_positions]
        if twice := sorted({frame for frame in frames if frames.count(frame) > 1}):
            raise WanlabError(f"Two keyframes are for frame {twice[0]}", remedy="Give one picture for each frame")

    def _frame(self, position: int, spec: GenerationSpec) -> int:
        """The frame that a position means; raises WanlabError for one outside the video."""
        length = inputs.length(spec)
        if not -length <= position < length:
            raise WanlabError(
                f"There is no frame {position} in a video of {length}",
                remedy=f"Give 0 to {length - 1}, or -1 for the last",
            )
        return position % length

    def needs_conditions(self, spec: GenerationSpec) -> bool:
        return True  # without media its control blocks read grey

    @torch.no_grad()
    def encode_conditions(self, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
        self._refuse_windows(window, previous)
        spec = self.resolve(spec)
        self.check_media(spec)
        media = spec.media
        references = [self._encode_pixels(inputs.reference(ref, spec)) for ref in media.references]
        control = [self._control(spec, media.video, media.mask, references, keyframes=True)]
        scales = [media.control_scale]
        if media.video_2 is not None:
            control.append(self._control(spec, media.video_2, media.mask_2, references, keyframes=False))
            scales.append(media.control_scale_2)
        layers = self.num_control_layers
        found = Conditions(
            control=tuple(control),
            control_scale=tuple(scale * layers if len(scale) == 1 else scale for scale in scales),
            reference_frames=torch.cat(references, 2) if references else None,
        )
        return self._stretched(spec, found)

    def _control(
        self,
        spec: GenerationSpec,
        video: MediaRef | None,
        mask: MediaRef | None,
        references: list[Tensor],
        keyframes: bool,
    ) -> Tensor:
        """What the control blocks read: kept latents, free latents, and the mask: (1, 2 C + 64, N + t, h, w)."""
        pixels, free = self._frames(spec, video, mask)
        if keyframes:
            for position, ref in zip(spec.media.keyframe_positions, spec.media.keyframes, strict=True):
                frame = self._frame(position, spec)
                pixels[:, :, frame : frame + 1], free[:, :, frame] = inputs.picture(ref, spec), 0
        change = (free > 0.5).float()
        halves = [self._encode_pixels(pixels * part) for part in (1 - change, change)]
        latents = torch.cat(halves, 1)
        channels = _mask_channels(free, self.geometry.pixel_stride, latents.shape[2])
        joined = torch.cat([latents, channels.to(latents)], 1)
        before = [
            torch.cat([ref, ref.new_zeros(1, joined.shape[1] - ref.shape[1], *ref.shape[2:])], 1) for ref in references
        ]
        return torch.cat([*before, joined], 2)

    def _frames(self, spec: GenerationSpec, video: MediaRef | None, mask: MediaRef | None) -> tuple[Tensor, Tensor]:
        """Pixels (1, 3, T, H, W) and where they are free (1, 1, T, H, W); missing frames are grey and free."""
        length, height, width = inputs.length(spec), *inputs.size(spec)
        pixels, free = torch.zeros(1, 3, length, height, width), torch.ones(1, 1, length, height, width)
        if video is not None:
            found = inputs.clip(video, spec)
            pixels[:, :, : found.shape[2]] = found
            if mask is not None:
                free[:, :, : found.shape[2]] = inputs.mask(mask, spec, found.shape[2])
        return pixels, free


def _mask_channels(free: Tensor, stride: int, num_frames: int) -> Tensor:
    """A mask (1, 1, T, H, W) as channels (1, stride^2, t, h, w): the pixels of a latent pixel, the nearest frame."""
    channels = rearrange(free, "1 1 t (h p) (w q) -> 1 (p q) t h w", p=stride, q=stride)
    return functional.interpolate(channels, size=(num_frames, *channels.shape[-2:]), mode="nearest-exact")


def _tokens(grid: Tensor) -> Tensor:
    return grid.flatten(2).transpose(1, 2).contiguous()


def run_hint_block(block: Callable[..., Any], streams: Streams) -> Streams:
    """Call a WanVACETransformerBlock, or its compiled form, for every control video; its hints go to the next block."""
    tokens, hints = dict(streams.tokens), {}
    for name in (name for name in _CONTROLS if name in tokens):
        modulation = streams.modulation["blocks"]
        hints[name], tokens[name] = block(tokens["video"], context(streams), tokens[name], modulation, streams.rope)
    return Streams(tokens, streams.modulation, streams.rope, streams.masks, hints, streams.grid)


def run_hinted_block(block: Callable[..., Any], streams: Streams, *, layer: int) -> Streams:
    """`run_block`, then the hints of the hint block before it, each times its strength."""
    done = run_block(block, streams)
    video = done.tokens["video"]
    for i, hint in enumerate(streams.hints.values()):
        video = video + hint * streams.modulation["control"][i, layer]
    return Streams({**done.tokens, "video": video}, done.modulation, done.rope, done.masks, {}, done.grid)
