"""A model gathered from single files, as other tools keep them, is the model of the folder that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import wanlab
from tests import layouts
from tests.tiny_video import film, frames_of, picture, tiny_i2v, tiny_vace

State = dict[str, torch.Tensor]


def state_of(folder: Path, component: str) -> State:
    return load_file(next((folder / component).glob("*.safetensors")))


def gathered(folder: Path, definition: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """The definition with a file for each component instead of the folder."""
    tokenizer = {"path": str(folder / "tokenizer" / "tokenizer.json")}
    components = {**files, "tokenizer": tokenizer}
    sources = {name: source if "variants" in source else {"variants": [source]} for name, source in components.items()}
    return {**definition, "weights": {"components": sources}}


@pytest.fixture(scope="module")
def i2v(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder, definition = tiny_i2v(tmp_path_factory.mktemp("i2v"), "2.1")
    (folder / "image_processor").rename(folder / "not_here")  # single files come without one: CLIP's own is used
    clip = {**definition["architecture"]["image_encoder"], "image_size": 224, "patch_size": 112}
    return folder, {**definition, "architecture": {**definition["architecture"], "image_encoder": clip}}


def write(folder: Path, place: Path, change: Callable[[str, State], State]) -> dict[str, dict[str, str]]:
    """Every component's weights in one file each, in other keys."""
    out = {}
    for name in ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder"):
        if not (folder / name).is_dir():
            continue
        path = place / f"some {name} file.safetensors"
        save_file({k: v.contiguous() for k, v in change(name, state_of(folder, name)).items()}, path)
        out[name] = {"path": str(path)}
    return out


def original(name: str, state: State) -> State:
    if name.startswith("transformer"):
        return layouts.wan_original(state)
    if name == "vae":
        return layouts.vae_original(state, 1)
    return layouts.t5_original(state) if name == "text_encoder" else layouts.clip_original(state)


def prefixed(name: str, state: State) -> State:
    """As ComfyUI keeps a transformer; the others in the keys of transformers and diffusers."""
    if name.startswith("transformer"):
        return {f"model.diffusion_model.{k}": v for k, v in layouts.wan_original(state).items()}
    return state


@pytest.mark.parametrize("change", [original, prefixed], ids=["original", "comfyui"])
def test_vace_of_single_files_is_the_folders_model(change: Any, tmp_path: Path) -> None:
    folder, definition = tiny_vace(tmp_path / "folder", experts=2)
    single = gathered(folder, definition, write(folder, tmp_path, change))
    settings = {
        "prompt": "a red fox",
        "num_steps": 3,
        "seed": 5,
        "video": frames_of(film(1)),
        "references": [picture(3)],
    }
    whole, parts = (wanlab.load(d, device="cpu") for d in (definition, single))
    assert parts.checkpoint.folder is None
    assert parts.stored_as == "float"
    first, second = (wanlab.generate(model, **settings) for model in (whole, parts))
    assert torch.equal(first.latents, second.latents)
    assert (first.frames == second.frames).all()
    assert whole.fingerprint != parts.fingerprint


def test_a_vace_module_beside_a_text_to_video_file(tmp_path: Path) -> None:
    """WanGP's way: the base network in one file, the control blocks in another."""
    folder, definition = tiny_vace(tmp_path / "folder")
    files = write(folder, tmp_path, original)
    state = original("transformer", state_of(folder, "transformer"))
    module = {k: v for k, v in state.items() if k.startswith("vace_")}
    base = {k: v for k, v in state.items() if k not in module}
    for name, part in {"base": base, "module": module}.items():
        save_file({k: v.contiguous() for k, v in part.items()}, tmp_path / f"{name}.safetensors")
    whole = wanlab.load(gathered(folder, definition, files), device="cpu")
    files["transformer"] = {
        "variants": [{"path": str(tmp_path / "base.safetensors")}],
        "modules": [[{"path": str(tmp_path / "module.safetensors")}]],
    }
    parts = wanlab.load(gathered(folder, definition, files), device="cpu")
    one, two = (wanlab.generate(m, num_steps=2, video=frames_of(film(1))).latents for m in (whole, parts))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_eight_bit_files_are_chosen_and_recorded(kind: str, tmp_path: Path) -> None:
    folder, definition = tiny_vace(tmp_path / "folder")
    files: dict[str, Any] = write(folder, tmp_path, original)
    state = original("transformer", state_of(folder, "transformer"))
    small, _ = (layouts.scaled_fp8 if kind == "fp8" else layouts.quanto_int8)(state)
    save_file({k: v.contiguous() for k, v in small.items()}, tmp_path / "small.safetensors")
    floats = files["transformer"]
    files["transformer"] = {"variants": [floats, {"path": str(tmp_path / "small.safetensors"), "stored_as": kind}]}
    mixed = gathered(folder, definition, files)
    assert wanlab.load(mixed, device="cpu").stored_as == "float"
    model = wanlab.load(mixed, device="cpu", stored_as=kind)
    assert model.stored_as == kind
    exact = wanlab.generate(wanlab.load(mixed, device="cpu"), num_steps=2).latents
    result = wanlab.generate(model, num_steps=2)
    error = float((result.latents - exact).norm() / exact.norm())
    assert 0 < error < 0.5
    assert result.record.resolved["spec"]["weights"]["stored_as"] == kind
    with pytest.raises(wanlab.WanlabError, match=f"was read from {kind} weights"):
        wanlab.generate(model, stored_as="float")


def test_clip_and_image_to_video_from_single_files(i2v: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The picture's resizing is CLIP's own (224 pixels) where no folder says otherwise."""
    folder, definition = i2v
    config = folder / "image_encoder" / "config.json"
    saved = json.loads(config.read_text())
    with torch.random.fork_rng(devices=[]):
        from transformers import CLIPVisionConfig, CLIPVisionModel

        torch.manual_seed(1)
        CLIPVisionModel(CLIPVisionConfig(**definition["architecture"]["image_encoder"])).save_pretrained(config.parent)
    assert json.loads(config.read_text()) != saved
    single = gathered(folder, definition, write(folder, tmp_path, original))
    whole, parts = (wanlab.load(d, device="cpu") for d in (definition, single))
    one, two = (wanlab.generate(m, num_steps=2, image=picture(4)).latents for m in (whole, parts))
    assert torch.equal(one, two)


def test_a_component_that_has_no_file_is_named(tmp_path: Path) -> None:
    folder, definition = tiny_vace(tmp_path / "folder")
    files = write(folder, tmp_path, original)
    del files["vae"]
    with pytest.raises(wanlab.WanlabError, match="vae"):
        wanlab.load(gathered(folder, definition, files), device="cpu")
    files["vae"] = {"path": str(tmp_path / "nowhere.safetensors")}
    with pytest.raises(wanlab.WanlabError, match=r"nowhere\.safetensors"):
        wanlab.load(gathered(folder, definition, files), device="cpu")
    files["vae"] = files["text_encoder"]
    model = wanlab.load(gathered(folder, definition, files), device="cpu")
    with pytest.raises(wanlab.WanlabError, match="looks like"):
        wanlab.generate(model, num_steps=1, video=frames_of(film(1)))
    assert not model.parts["vae"].loaded
