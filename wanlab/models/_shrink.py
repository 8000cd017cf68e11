"""A tiny checkpoint of the same kind as a model of the catalogue: what it takes and does, before its weights are there.

The networks are the model's own classes with few blocks and narrow layers, and random weights. VAE, text encoder and
tokenizer are those of wan_tiny, which ships with wanlab, so that pictures and prompts go in and clips come out as they
do with the model itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from wanlab import catalog
from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.files import atomic_write, resource
from wanlab.models._folder import EXPERTS
from wanlab.models.base import Model
from wanlab.registry import FAMILIES
from wanlab.spec import plain

SIZE = {"width": 96, "height": 96, "num_frames": 17}
NUM_STEPS = 4
_LENDER = "wan_tiny"
_LENT = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "tokenizer": "tokenizer/tokenizer.json",
}
"""Components of wan_tiny and their files below its folder."""
_HEADS, _HEAD_DIM = 2, 24
_WIDTH = _HEADS * _HEAD_DIM
_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 56,
    "image_size": 224,
}
_CLIP_TOKENS = (_CLIP["image_size"] // _CLIP["patch_size"]) ** 2 + 1
_LOUD = ("to_v.", "to_out.", "add_v_proj.", "attn1.norm_", "text_embedder.", "proj_out.")
_LOUDER = 4.0
"""Fresh weights hand on a hundredth of what they read; at this multiple every input shows in the latents."""
_FACES: dict[str, Any] = {
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8, "32": 8},
    "motion_encoder_size": 32,
    "motion_style_dim": 16,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 32,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 1,
}
"""Small values of what reads faces, where a network has it."""


def shrink(what: Any, folder: str | Path) -> dict[str, Any]:
    """Write a tiny checkpoint with random weights into `folder`; returns its definition, which `wanlab.load` takes.

    The definition is `folder/definition.json` too, for another day: wanlab.load("folder/definition.json").
    `what`: an id or alias of the catalogue, a definition, or a spec. The tiny model takes and refuses what the real one
    does: its media, guidance, experts and control layers are the same in number and kind. Its pictures mean nothing.
    It has wan_tiny's VAE, so 48-channel latents become 16 channels and sizes multiples of 16. Takes under a second and
    4 MB a network; VAE, text encoder and tokenizer are read where wanlab is installed. The weights are drawn with a
    fixed seed; files of the same names are replaced.
    Raises WanlabError for a model that wanlab cannot run yet, and for one whose parts are no relatives of wan_tiny's.
    """
    definition, lender = catalog.find(what), catalog.find(_LENDER)
    if definition.missing:
        raise WanlabError(f"{definition.id} cannot run yet. {definition.missing}")
    family = _family(definition, lender)
    architecture = _architecture(definition, lender)
    place = Path(folder).expanduser().absolute()
    files = {name: resource("assets", _LENDER) / path for name, path in _LENT.items()}
    for seed, name in enumerate(name for name in architecture if name not in _LENT):
        network = _network(family.component_class(name), architecture[name], seed)
        files[name] = atomic_write(place / f"{name}.safetensors", save(network.state_dict()))
    written = {
        "schema": 1,
        "id": f"{definition.id}_shrunk",
        "family": definition.family,
        "title": f"{definition.title or definition.id}, shrunk",
        "description": "Random weights: what it shows means nothing.",
        "architecture": architecture,
        "weights": {"components": {name: {"variants": [{"path": str(path)}]} for name, path in files.items()}},
        "spec": _spec(definition),
        "constants": plain({**definition.constants, **_of(lender, "vae_stride", "latent_rgb")}),
    }
    atomic_write(place / "definition.json", json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return written


def _family(definition: Definition, lender: Definition) -> type[Model]:
    """The model's family. Raises WanlabError unless its VAE and text encoder are of the lender's classes."""
    family, other = (FAMILIES.get(d.family) for d in (definition, lender))
    for name in lender.architecture:
        ours = name not in EXPERTS and family.component_class(name) is not other.component_class(name)
        if ours or name not in definition.architecture:
            raise WanlabError(
                f"{definition.id} is no relative of {_LENDER}, which lends a shrunk model its VAE and text encoder",
                remedy="Models of Wan's VAE and text encoder can be shrunk",
            )
    return family


def _architecture(definition: Definition, lender: Definition) -> dict[str, dict[str, Any]]:
    full = plain(definition.architecture)
    found = {name: plain(lender.architecture[name]) for name in ("text_encoder", "vae")}
    ratio = (full["vae"].get("z_dim", 16), found["vae"]["z_dim"])
    text = found["text_encoder"]["d_model"]
    found |= {name: _transformer(full[name], text, *ratio) for name in EXPERTS if name in full}
    if "image_encoder" in full:
        found["image_encoder"] = {**full["image_encoder"], **_CLIP}
    return found


def _transformer(full: Mapping[str, Any], text_dim: int, channels: int, fewer: int) -> dict[str, Any]:
    """The configuration with 2 blocks, or as many as control layers, all of them narrow; what decides modes stays."""
    found = {
        **full,
        "num_layers": 2,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD_DIM,
        "ffn_dim": 2 * _WIDTH,
        "freq_dim": 32,
        "text_dim": text_dim,
        "out_channels": fewer,
    }
    extra = full.get("in_channels", channels) - channels  # latents of a picture and their mask
    found["in_channels"] = fewer + (extra - channels + fewer if extra else 0)
    if full.get("image_dim") is not None:
        found |= {"image_dim": _CLIP["hidden_size"], "added_kv_proj_dim": _WIDTH}
    if full.get("pos_embed_seq_len") is not None:
        found["pos_embed_seq_len"] = 2 * _CLIP_TOKENS
    if full.get("vace_layers") is not None:
        layers = list(range(len(full["vace_layers"])))
        found |= {"vace_layers": layers, "num_layers": len(layers)}
    if full.get("motion_encoder_size") is not None:
        found |= _FACES
    return found


def _network(cls: Any, config: Mapping[str, Any], seed: int) -> nn.Module:
    """The network with random weights, the global state of torch's random numbers left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = cls(cls.config_class(**config)) if hasattr(cls, "config_class") else cls(**config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if any(word in name for word in _LOUD):
                weight.mul_(_LOUDER)
    return network


def _spec(definition: Definition) -> dict[str, Any]:
    """The model's settings at a small size, in few steps."""
    found = json.loads(json.dumps(plain(definition.spec)))
    sampling = found.setdefault("sampling", {})
    if sampling.get("sigmas") is None:
        sampling["num_steps"] = min(sampling.get("num_steps", NUM_STEPS), NUM_STEPS)
    return {**found, "size": {**found.get("size", {}), **SIZE}}


def _of(definition: Definition, *names: str) -> dict[str, Any]:
    return {name: definition.constants[name] for name in names}
