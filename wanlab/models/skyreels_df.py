"""SkyReels-V2 Diffusion Forcing: Wan's design, trained with a noise level of its own for each latent frame.

So known frames stay clean at timestep 0, and blocks of frames may lag behind each other (`ar_step`). One window of a
clip; longer ones are made of several that overlap, which cannot be joined yet.
Source: diffusers 0.42.1, transformer_skyreels_v2.py and pipeline_skyreels_v2_diffusion_forcing{,_i2v,_v2v}.py;
SkyReels-V2 (arXiv:2504.13074). The split is bit-equal to SkyReelsV2Transformer3DModel.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from wanlab import media
from wanlab.errors import WanlabError
from wanlab.models import _wan_inputs as inputs
from wanlab.models import _wan_work as work
from wanlab.models._window import check_window
from wanlab.models._workload import Workload, dense
from wanlab.models.base import Geometry
from wanlab.models.skyreels import SkyReels
from wanlab.models.wan import share
from wanlab.registry import FAMILIES
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec, MediaRef

WINDOW = 97
"""Frames of a window that the published 540P checkpoints were trained on; the 720P ones have 121."""
_SLOW = 16  # frames a second; networks that are told the pace know this one and all others


@FAMILIES.register("skyreels_df")
class SkyReelsDF(SkyReels):
    """Video by SkyReelsV2Transformer3DModel, UMT5 and AutoencoderKLWan.

    `image` is the first latent frame, `video` the first ones, however many it has; `last_image` is a latent frame after
    the video's, which is cut off again.
    """

    family = "skyreels_df"
    pipelines = (
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    )
    optional_encoders = ()
    forces_frames = True

    @functools.cached_property
    def window_frames(self) -> int:
        """The most frames of one generation: the definition's "base_num_frames", else 97."""
        return int(self.constants.get("base_num_frames", WINDOW))

    @functools.cached_property
    def geometry(self) -> Geometry:
        found = super().geometry
        return replace(found, max_frames=min(found.max_frames, self.window_frames))

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        return ("image", "last_image", "video", "fit")

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        return ()

    # The plan of steps

    def resolve(self, spec: GenerationSpec) -> GenerationSpec:
        check_window(self.id, spec, self.window_frames)
        spec = super().resolve(spec)
        if spec.sampling.causal_block_size is None:
            spec = spec.with_(causal_block_size=self._network["num_frame_per_block"])
        self._check_blocks(spec)
        return spec

    def _check_blocks(self, spec: GenerationSpec) -> None:
        """Raise WanlabError where frames do not fill whole blocks: diffusers leaves the last ones as noise."""
        block, frames = _block(spec), self._num_frames(spec)
        if spec.sampling.ar_step and frames <= block:
            raise WanlabError(
                f"ar_step = {spec.sampling.ar_step} has no effect: the {frames} latent frames are one block",
                remedy="Leave ar_step out, or give a smaller causal_block_size",
            )
        if frames % block:
            extra = " and the last image" if spec.media.last_image is not None else ""
            raise WanlabError(
                f"The {frames} latent frames of the video{extra} do not fill blocks of causal_block_size = {block}",
                remedy=f"A latent frame is {self.geometry.frame_stride} more num_frames; give a multiple of {block}",
            )

    def _num_frames(self, spec: GenerationSpec) -> int:
        """Latent frames that the network sees."""
        return self.latent_shape(spec)[1] + (spec.media.last_image is not None)

    def _num_known(self, spec: GenerationSpec) -> int:
        """Latent frames that are given, at the beginning. Raises WanlabError where they cannot be."""
        known, stride, wanted = int(spec.media.image is not None), self.geometry.frame_stride, inputs.length(spec)
        if spec.media.video is not None:
            given = _count(spec.media.video, spec.size.fps, wanted)
            if given == wanted or (given - 1) % stride:
                raise WanlabError(
                    f"The video to go on from has {given}{' or more' * (given == wanted)} frames at {spec.size.fps:g} "
                    f"fps, and the result {wanted}",
                    remedy=f"Cut it to fewer, 1 more than a multiple of {stride}: MediaRef's start and end, in seconds",
                )
            known = (given - 1) // stride + 1
        if known % _block(spec):
            raise WanlabError(
                f"{known} latent frames are given, which do not fill blocks of causal_block_size = {_block(spec)}",
                remedy="Leave causal_block_size out, or give a video whose latent frames fill blocks",
            )
        return known

    def frame_steps(self, spec: GenerationSpec) -> Tensor | None:
        if spec.sampling.ar_step == 0:
            return None
        block, num_steps = _block(spec), len(self.sigmas(spec)) - 1
        num_blocks, ready = self._num_frames(spec) // block, self._num_known(spec) // block
        plan = lagging_steps(num_steps, num_blocks, spec.sampling.ar_step, ready)
        plan = plan.repeat_interleave(block, 1)[:, : self.latent_shape(spec)[1]]
        return plan[(plan < num_steps).any(1)]  # without rows in which only the last image would step

    def experts(self, spec: GenerationSpec) -> list[str]:
        plan = self.frame_steps(spec)
        return super().experts(spec) if plan is None else [self.experts_present[0]] * len(plan)

    # The forward

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        stack, conditions, batch = self.stacks[ctx.expert], branch.conditions, latents.shape[0]
        network = cast(Any, stack.network)
        timestep = self._timesteps(latents, ctx, conditions)
        if conditions.reference_frames is not None:
            latents = torch.cat([latents, share(conditions.reference_frames.to(latents), batch)], 2)
        latents = latents.to(self.dtype)
        video = network.patch_embedding(latents)
        grid = tuple(video.shape[2:])
        text = share(branch.text["embeds"].to(self.device, self.dtype), batch)
        time, blocks, text, _ = network.condition_embedder(timestep, text, None)
        blocks = blocks.unflatten(-1, (6, -1))
        if network.config.inject_sample_info:
            pace = network.fps_embedding(torch.tensor([_number(conditions, "pace")], device=self.device))
            blocks = blocks + network.fps_projection(pace).unflatten(-1, (6, -1))
        stack.layout.grid, stack.layout.image = grid, 0
        each = grid[1] * grid[2]
        return Streams(
            tokens={
                "video": video.flatten(2).transpose(1, 2),
                "text": text,
                **self._negative(network, stack.layout, branch, batch),
            },
            modulation={
                "time": time.repeat_interleave(each, 1),
                "blocks": blocks.repeat_interleave(each, 1).transpose(1, 2).contiguous(),
            },
            rope=self._rope(network, latents, conditions),
            masks=self._mask(conditions, grid),
            grid=grid,
        )

    def _timesteps(self, latents: Tensor, ctx: StepContext, conditions: Conditions) -> Tensor:
        """Timesteps (B, T) of the frames that the network sees: 0 for those that are given."""
        batch, frames = latents.shape[0], latents.shape[2]
        timestep = torch.as_tensor(ctx.timestep, device=self.device)
        timestep = (timestep if timestep.ndim == 2 else timestep.reshape(-1, 1)).expand(batch, frames)
        if conditions.free is not None:
            timestep = timestep * conditions.free[:, 0, :, 0, 0].to(timestep)
        after = 0 if conditions.reference_frames is None else conditions.reference_frames.shape[2]
        return torch.cat([timestep, timestep.new_zeros(batch, after)], 1)

    def _mask(self, conditions: Conditions, grid: tuple[int, ...]) -> dict[str, Tensor]:
        """Which keys a query may see, {"causal": (1, 1, L, L) bool}; nothing where all see all."""
        block = _number(conditions, "block")
        if block == 1:
            return {}
        number = torch.arange(grid[0], device=self.device).div(block, rounding_mode="floor")
        number = number.repeat_interleave(grid[1] * grid[2])
        return {"causal": (number[None, :] <= number[:, None])[None, None]}

    def _forward(self, stack: Stack, latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        return super()._forward(stack, latents, ctx, branch)[:, :, : latents.shape[2]]

    def _work(self, spec: GenerationSpec, network: Mapping[str, Any], nag: bool) -> Workload:
        found, dim = super()._work(spec, network, nag), work.width(network)
        pace = dense(1, (dim, dim), (dim, 6 * dim)) if network["inject_sample_info"] else 0
        return replace(found, embed=found.embed + pace)

    def _lengths(self, spec: GenerationSpec, network: Mapping[str, Any], nag: bool) -> work.Lengths:
        found, frames = super()._lengths(spec, network, nag), self._num_frames(spec)
        return replace(found, grid=(frames, *found.grid[1:]), image=0, times=frames)

    # What it is told

    def check_media(self, spec: GenerationSpec) -> None:
        super().check_media(spec)
        if spec.media.last_image is not None and spec.media.image is None:
            raise WanlabError("last_image is where the video ends, and no image says where it starts")
        self._num_known(spec)

    def needs_conditions(self, spec: GenerationSpec) -> bool:
        return True  # they hold the blocks and the pace

    @torch.no_grad()
    def encode_conditions(self, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
        self._refuse_windows(window, previous)
        spec = self.resolve(spec)
        self.check_media(spec)
        found, image, last = NO_CONDITIONS, spec.media.image, spec.media.last_image
        if image is not None:
            found = self._known_frames(spec, self._encode_pixels(inputs.picture(image, spec)))
        elif spec.media.video is not None:
            found = self._known_frames(spec, self._encode_pixels(inputs.clip(spec.media.video, spec)))
        if last is not None:
            found = replace(found, reference_frames=self._encode_pixels(inputs.picture(last, spec)))
        found = replace(found, numbers={"block": _block(spec), "pace": int(spec.size.fps != _SLOW)})
        return self._stretched(spec, found)

    def _known_frames(self, spec: GenerationSpec, frames: Tensor) -> Conditions:
        """Given latent frames as the first ones, which stay as they are."""
        channels, total, height, width = self.latent_shape(spec)
        known = frames.new_zeros(1, channels, total, height, width)
        free = frames.new_ones(1, 1, total, height, width)
        known[:, :, : frames.shape[2]], free[:, :, : frames.shape[2]] = frames, 0
        return Conditions(known=known, free=free)


def _block(spec: GenerationSpec) -> int:
    """Latent frames of a block, of a resolved spec."""
    assert spec.sampling.causal_block_size, "a resolved spec has it"
    return spec.sampling.causal_block_size


def _number(conditions: Conditions, name: str) -> int:
    assert conditions.numbers is not None, "checked by `check_given`"
    return conditions.numbers[name]


@functools.lru_cache(maxsize=16)
def _count(ref: MediaRef, fps: float | None, at_most: int) -> int:
    """Frames of a stored video at a pace."""
    return len(media.read_video(ref, fps=fps, num_frames=at_most))


def lagging_steps(num_steps: int, num_blocks: int, lag: int, ready: int = 0) -> Tensor:
    """Which step each block takes in each row, (rows, blocks): -1 while it waits, num_steps when it is clean.

    Each block starts `lag` rows after the one before it, at the latest when that one is done; the first `ready` are
    clean. Source: SkyReels-V2's generate_timestep_matrix, as in diffusers 0.42.1.
    """
    row, rows = [num_steps] * ready + [-1] * (num_blocks - ready), []
    while min(row) < num_steps - 1:
        steps: list[int] = []
        for i, step in enumerate(row):
            leads = i == 0 or row[i - 1] >= num_steps - 1
            steps.append(step + 1 if leads else steps[i - 1] - lag)
        row = [min(max(step, -1), num_steps) for step in steps]
        rows.append(row)
    return torch.tensor(rows).reshape(len(rows), num_blocks)
