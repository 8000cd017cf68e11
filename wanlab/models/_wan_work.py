"""Operations of Wan's forward and of its relatives' blocks. See `_workload`.

Source of the layers: diffusers 0.42.1, transformer_wan.py, transformer_wan_vace.py and transformer_wan_animate.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wanlab.models._workload import BlockWork, Workload, attend, dense

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Lengths:
    """How much enters a forward."""

    grid: tuple[int, int, int]
    """Tokens of the video along (T, H, W), frames that lie beside it included."""
    text: int
    negative: int = 0
    """Tokens of a negative prompt inside cross attention."""
    image: int = 0
    """Tokens of what CLIP sees."""
    times: int = 1
    """Timesteps that are embedded."""

    @property
    def video(self) -> int:
        return math.prod(self.grid)


def width(network: Config) -> int:
    """Width of a token inside the network."""
    return int(network["num_attention_heads"] * network["attention_head_dim"])


def patches(network: Config, channels: int, tokens: int) -> int:
    """Operations of a convolution that makes each patch a token."""
    return dense(tokens, (channels * math.prod(network["patch_size"]), width(network)))


def forward(network: Config, at: Lengths) -> Workload:
    """The workload of a WanTransformer3DModel, or of the part that its relatives share with it."""
    dim, seen = width(network), network["image_dim"]
    embed = patches(network, network["in_channels"], at.video)
    embed += dense(at.times, (network["freq_dim"], dim), (dim, dim), (dim, 6 * dim))
    embed += dense(at.text + at.negative, (network["text_dim"], dim), (dim, dim))
    if at.image:
        embed += dense(at.image, (seen, seen), (seen, dim))
    tokens = {"video": (at.video, dim), "text": (at.image + at.text, dim)}
    if at.negative:
        tokens["negative"] = (at.negative, dim)
    out = network["out_channels"] or network["in_channels"]
    return Workload(
        entries=tuple(block(f"blocks.{i}", network, at) for i in range(network["num_layers"])),
        tokens=tokens,
        changed=("video",),
        embed=embed,
        head=dense(at.video, (dim, out * math.prod(network["patch_size"]))),
    )


def block(name: str, network: Config, at: Lengths) -> BlockWork:
    """A WanTransformerBlock: attention among the video's tokens, of them to the context, feed-forward."""
    dim, added = width(network), network["added_kv_proj_dim"]
    one = (dim, dim)
    text, image = at.text + at.negative, at.image
    if added is None:  # then the block sees no difference between pictures and text
        text, image = text + image, 0
    kernels = {"attn1": attend(at.video, at.video, dim), "attn2": attend(at.video, text + image, dim)}
    cross = dense(at.video, one, one) + dense(text, one, one)
    if image:
        cross += dense(image, (added, dim), (added, dim))
    parts = {
        "attn1": kernels["attn1"] + dense(at.video, one, one, one, one),
        "attn2": kernels["attn2"] + cross,
        "ffn": dense(at.video, (dim, network["ffn_dim"]), (network["ffn_dim"], dim)),
    }
    return BlockWork(name, "block", parts, kernels)


def hint_block(index: int, network: Config, at: Lengths, controls: int) -> BlockWork:
    """A WanVACETransformerBlock on each control video; the first one joins it to the video's tokens."""
    plain, one = block("", network, at), (width(network), width(network))
    parts = {**plain.parts, "proj_out": dense(at.video, one)}
    if index == 0:
        parts = {"proj_in": dense(at.video, one), **parts}
    return BlockWork(
        f"vace_blocks.{index}",
        "hint",
        {name: controls * n for name, n in parts.items()},
        {name: controls * n for name, n in plain.attention_parts.items()},
    )


def face_block(index: int, network: Config, at: Lengths, per_frame: int) -> BlockWork:
    """A WanAnimateFaceBlockCrossAttention: each frame's tokens attend to the `per_frame` tokens of its face."""
    dim = width(network)
    one = (dim, dim)
    kernel = attend(at.video, per_frame, dim)
    linear = dense(at.video, one, one) + dense(at.grid[0] * per_frame, one, one)
    return BlockWork(f"face_adapter.{index}", "face", {"attn": kernel + linear}, {"attn": kernel})
