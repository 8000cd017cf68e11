"""A wanlab model of any size with random weights, made where they are used: no weight file is written or read."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rows import Plan, Row
from safetensors.torch import save_file
from torch import nn

import wanlab
from wanlab.files import resource
from wanlab.registry import FAMILIES

LOUD = ("text_embedder", "attn2.to_v", "attn2.to_out", "image_embedder.ff", "add_v_proj", "vace_patch_embedding")
"""Parameters through which prompts and pictures act. Initial weights are so quiet there that two results could agree
without having read them."""
_LIBRARIES = {"text_encoder": "transformers", "image_encoder": "transformers"}


def load(row: Row, plan: Plan, folder: Path, device: str, dtype: str = "auto") -> Any:
    """The row's model on `device`; its parts are made when they are first used."""
    family = FAMILIES.get(plan.family)
    write_folder(plan, family, folder)
    constants = {"expand_timesteps": True} if plan.expand_timesteps else {}
    definition = {
        "id": f"{row.model}_random",
        "family": plan.family,
        "architecture": plan.architecture,
        "weights": {"folder": str(folder)},
        "spec": plan.spec,
        "constants": constants,
    }
    model = wanlab.load(definition, device=device, dtype=dtype)
    for name, part in model.parts.items():
        assert hasattr(part, "_load"), "ModelPart reads its network in another way now"
        cls, config = family.component_class(name), plan.architecture[name]
        part._load = functools.partial(random_module, cls, config, part.dtype, model.device)
    return model


def write_folder(plan: Plan, family: Any, folder: Path) -> None:
    """A checkpoint's folder with all its JSON files, wan_tiny's tokenizer, and weight files that hold nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    index: dict[str, Any] = {"_class_name": family.pipelines[0], "expand_timesteps": plan.expand_timesteps}
    for name, config in plan.architecture.items():
        library = _LIBRARIES.get(name, "diffusers")
        index[name] = [library, family.component_class(name).__name__]
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        save_file({}, folder / name / f"{stem}.safetensors")
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(resource("assets", "wan_tiny") / "tokenizer", folder / "tokenizer")


def random_module(
    cls: Any, config: dict[str, Any], dtype: torch.dtype, device: torch.device, emptied: nn.Module | None = None
) -> nn.Module:
    """A network with its class's own random initial weights, in the dtypes in which wanlab would load it."""
    assert emptied is None, "a network that left is not needed again here"
    with device, _default_dtype(dtype):
        torch.manual_seed(0)
        is_transformers = hasattr(cls, "config_class")
        module = cls(cls.config_class(**config)) if is_transformers else cls(**config)
    kept = set() if is_transformers else set(getattr(cls, "_keep_in_fp32_modules", None) or ())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in LOUD):
                parameter.mul_(4.0)
            if kept & set(name.split(".")):
                parameter.data = parameter.data.float()
    module.eval().requires_grad_(False)
    wrong = {name for name, b in module.named_buffers() if b.is_floating_point() and b.dtype != torch.float32}
    assert not wrong, f"tables in {dtype}: {sorted(wrong)[:3]}"
    return module


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are made in `dtype` at once: 14B in float32 would take 57 GB before it is cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def weight_bytes(model: Any) -> dict[str, int]:
    """Bytes of the parts that are in memory."""
    return {name: part.num_bytes for name, part in model.parts.items() if part.loaded}
