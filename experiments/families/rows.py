"""What is measured: one row a model and size, its architecture, and how many seconds it will probably take.

Architectures of models that the catalogue has come from there; the others stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wanlab.catalog import find
from wanlab.errors import WanlabError

STARTUP = 25.0
"""Seconds from the start of the process to the first row, for predictions."""


@dataclass(frozen=True)
class Row:
    """A model at a size. Seconds are predictions for an H100; they decide only whether a row still starts."""

    name: str
    model: str
    size: tuple[int, int, int]
    """Height, width, frames."""
    step: float
    """Seconds of one step with guidance (two forwards)."""
    rounds: tuple[int, ...] = (2, 1)
    """Steps of each round; a round runs ours, then diffusers. The very first step of a side is its warm-up."""
    media: str = "none"
    """none, image (a first frame) or control (a video that VACE follows)."""
    load: float = 8.0
    conditions: float = 0.0
    decode: float = 2.2
    """0: the decoder is not measured, because an earlier row decodes the same size with the same VAE."""
    flow_shift: float | None = None

    def predicted(self, rounds: tuple[int, ...]) -> float:
        """Seconds of the whole row."""
        both = sum(rounds) * self.step + len(rounds) * self.conditions + self.decode
        return self.load + 2 * both + (2.0 if self.decode else 0.0)


SMALL, LARGE = (480, 832, 81), (720, 1280, 81)
TI2V = (704, 1280, 121)
ROWS = (  # in the order of importance: where the time ends, the last are left out
    Row("t2v_1_3b", "wan_t2v_1_3b", SMALL, 1.3, rounds=(3, 3), load=6),
    Row("t2v_14b", "wan_t2v_14b", SMALL, 6.5, rounds=(2, 2)),
    # With the checkpoint's shift of 12 the second expert would take over in the last of 10 steps; 5 needs two.
    Row("t2v_a14b", "wan22_t2v_a14b", SMALL, 6.5, load=12, flow_shift=5.0),
    Row("vace_14b", "vace_14b", SMALL, 7.9, media="control", load=10, conditions=3),
    Row("ti2v_5b", "wan22_ti2v_5b", TI2V, 2.6, rounds=(2, 2), decode=11),
    Row("ti2v_5b_first", "wan22_ti2v_5b", TI2V, 2.8, rounds=(2, 2), media="image", conditions=0.2, decode=0),
    Row("i2v_14b", "wan_i2v_480p_14b", SMALL, 6.7, media="image", load=10, conditions=1.5),
    Row("t2v_14b_720p", "wan_t2v_14b", LARGE, 25.5, decode=5),
)

_VACE = {"vace_layers": [0, 5, 10, 15, 20, 25, 30, 35], "vace_in_channels": 96}
_I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
_CLIP = {  # ViT-H/14 of Wan 2.1's image-to-video checkpoints
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1024,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
_TI2V = {"in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336}
_VAE_22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,  # the checkpoint's statistics change no cost
    "latents_std": [1.0] * 48,
}


@dataclass(frozen=True)
class Plan:
    """What of a definition a measurement needs."""

    family: str
    architecture: dict[str, dict[str, Any]]
    spec: dict[str, Any]
    expand_timesteps: bool
    source: str
    """catalogue, or script."""


def plan(row: Row) -> Plan:
    """The catalogue's definition of a row's model, else the one that this file knows."""
    try:
        found = find(row.model)
    except WanlabError:
        return _own(row.model)
    expand = bool(found.constants.get("expand_timesteps", False))
    return Plan(found.family, dict(found.architecture), dict(found.spec), expand, "catalogue")


def _own(model: str) -> Plan:
    base = find("wan_t2v_14b")
    parts, spec = dict(base.architecture), {**base.spec}
    network = parts["transformer"]
    if model == "wan22_t2v_a14b":
        parts["transformer_2"] = network
        spec["sampling"] = {**spec["sampling"], "flow_shift": 12.0, "expert_boundary": 0.875}
        spec["guidance"] = {"method": "cfg", "guidance_scale": 4.0, "guidance_scale_2": 3.0}
        return Plan("wan", parts, spec, False, "script")
    if model == "vace_14b":
        parts["transformer"] = {**network, **_VACE}
        return Plan("vace", parts, spec, False, "script")
    if model == "wan_i2v_480p_14b":
        parts |= {"transformer": {**network, **_I2V}, "image_encoder": _CLIP}
        return Plan("wan", parts, spec, False, "script")
    if model == "wan22_ti2v_5b":
        parts |= {"transformer": {**network, **_TI2V}, "vae": _VAE_22}
        spec["sampling"] = {**spec["sampling"], "flow_shift": 5.0}
        return Plan("wan", parts, spec, True, "script")
    raise KeyError(model)


def tiny(row: Row, full: Plan) -> tuple[Row, Plan]:
    """The same row with few and narrow layers and a small picture, which runs on a CPU in seconds."""
    encoder = {**full.architecture["text_encoder"], "vocab_size": 256, "d_model": 48, "d_kv": 8, "d_ff": 64}
    parts: dict[str, dict[str, Any]] = {"text_encoder": {**encoder, "num_layers": 2, "num_heads": 4}}
    parts["vae"] = {**full.architecture["vae"], "base_dim": 4, "num_res_blocks": 1}
    if full.architecture["vae"].get("decoder_base_dim"):
        parts["vae"]["decoder_base_dim"] = 8
    narrow = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 48}
    for name in (name for name in full.architecture if name.startswith("transformer")):
        network = {**full.architecture[name], **narrow}
        if network.get("image_dim") is not None:
            network |= {"image_dim": 32, "added_kv_proj_dim": 48}
        if "vace_layers" in network:
            network["vace_layers"] = [0]
        parts[name] = network
    if "image_encoder" in full.architecture:
        small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
        parts["image_encoder"] = {**full.architecture["image_encoder"], **small}
    size = (64, 96, 9)
    changed = {
        **row.__dict__,
        "size": size,
        "step": 0.1,
        "load": 1.0,
        "conditions": 0.1,
        "decode": min(row.decode, 0.1),
    }
    return Row(**changed), Plan(full.family, parts, full.spec, full.expand_timesteps, full.source)
