"""SkyReels-V2 from text and from a first frame, all frames at one noise level: Wan 2.1 in a class of its own.

Source: diffusers 0.42.1, transformer_skyreels_v2.py, pipeline_skyreels_v2.py and pipeline_skyreels_v2_i2v.py;
SkyReels-V2 (arXiv:2504.13074). The split is bit-equal to SkyReelsV2Transformer3DModel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from diffusers import SkyReelsV2Transformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Timesteps
from transformers import CLIPVisionModelWithProjection

from wanlab.errors import WanlabError
from wanlab.models._wan_blocks import PARTS, attention_sites, context
from wanlab.models.wan import Wan
from wanlab.registry import FAMILIES
from wanlab.sites import BlockPlan, Layout, Stack, Streams


@FAMILIES.register("skyreels")
class SkyReels(Wan):
    """Video by SkyReelsV2Transformer3DModel, UMT5, AutoencoderKLWan and, from pictures, CLIP."""

    family = "skyreels"
    pipelines: tuple[str, ...] = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    starts_from_video = False
    frequencies = staticmethod(functools.partial(SkyReelsV2Timesteps, flip_sin_to_cos=True))

    @classmethod
    def component_class(cls, component: str) -> Any:
        own = {"transformer": SkyReelsV2Transformer3DModel, "image_encoder": CLIPVisionModelWithProjection}
        return own.get(component) or super().component_class(component)

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        names = tuple(name for name in super().accepts if name not in ("video", "mask"))
        return names if "image" in names else ()

    def _build_stack(self, expert: str) -> Stack:
        network, layout = self.parts[expert].module, Layout()
        if network.config.inject_sample_info and not self.forces_frames:
            raise WanlabError(
                f"The network of {self.id} is told frames a second, which only diffusion forcing does here",
                remedy="If it is such a checkpoint, its definition's family is skyreels_df",
            )
        plans = [
            BlockPlan(name, "block", block, run_skyreels_block, attention_sites(name, block, layout, self.lock), PARTS)
            for name, block in ((f"blocks.{i}", block) for i, block in enumerate(network.blocks))
        ]
        return Stack(expert, network, plans, layout, self.lock)


def run_skyreels_block(block: Callable[..., Any], streams: Streams) -> Streams:
    """Call a SkyReelsV2TransformerBlock, or its compiled form, on the streams."""
    video, mask = streams.tokens["video"], streams.masks.get("causal")
    video = block(video, context(streams), streams.modulation["blocks"], streams.rope, mask)
    return streams.with_tokens(video=video)
