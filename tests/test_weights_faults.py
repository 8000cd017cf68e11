"""Files that do not fit are told apart from their headers alone, quickly, and leave nothing in memory."""

from __future__ import annotations

import gc
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import layouts
from tests.test_weights_layouts import CLASSES, load, save, state_of
from tests.tiny import tiny_wan
from wanlab import models, weights
from wanlab.catalog import find
from wanlab.errors import WanlabError
from wanlab.models import ModelPart
from wanlab.pipeline import generate

BASE_14B: dict[str, Any] = find("wan_t2v_14b").architecture["transformer"]
BASE_1B: dict[str, Any] = find("wan_t2v_1_3b").architecture["transformer"]
I2V_14B = {**BASE_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
VACE_1B = {**BASE_1B, "vace_layers": list(range(0, 30, 2)), "vace_in_channels": 96}
T5 = find("wan_t2v_14b").architecture["text_encoder"]
VAE = find("wan_t2v_14b").architecture["vae"]
FILES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "1.3B": (diffusers.WanTransformer3DModel, BASE_1B, "Wan 2.1 or 2.2 text-to-video 1.3B: dim 1536, 30 layers"),
    "14B": (diffusers.WanTransformer3DModel, BASE_14B, "Wan 2.1 or 2.2 text-to-video 14B: dim 5120, 40 layers"),
    "i2v": (diffusers.WanTransformer3DModel, I2V_14B, "Wan 2.1 image-to-video 14B: dim 5120, 40 layers"),
    "flf": (
        diffusers.WanTransformer3DModel,
        {**I2V_14B, "pos_embed_seq_len": 514},
        "Wan 2.1 first-last-frame 14B: dim 5120, 40 layers",
    ),
    "vace": (diffusers.WanVACETransformer3DModel, VACE_1B, "Wan 2.1 VACE 1.3B: dim 1536, 30 layers"),
    "5B": (
        diffusers.WanTransformer3DModel,
        {
            **BASE_14B,
            "num_attention_heads": 24,
            "num_layers": 30,
            "ffn_dim": 14336,
            "in_channels": 48,
            "out_channels": 48,
        },
        "Wan 2.2 TI2V 5B: dim 3072, 30 layers",
    ),
    "umt5": (transformers.UMT5EncoderModel, T5, "a T5 encoder: d_model 4096, 24 layers"),
    "vae": (diffusers.AutoencoderKLWan, VAE, "the VAE of Wan 2.1: 16 channels, base 96"),
}
_HEADERS: dict[str, dict[str, tuple[int, ...]]] = {}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    if name not in _HEADERS:
        cls, config, _ = FILES[name]
        with torch.device("meta"):
            module = cls(cls.config_class(**config)) if hasattr(cls, "config_class") else cls(**config)
        _HEADERS[name] = {key: tuple(t.shape) for key, t in module.state_dict().items()}
    return _HEADERS[name]


def real_size(name: str, path: Path) -> Path:
    """A file of the published size whose numbers are a hole on the disk: only its header is written."""
    header, end = {}, 0
    for key, shape in shapes(name).items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def attempt(wanted: str, file: Path) -> WanlabError:
    cls, config, _ = FILES[wanted]
    component = weights.Component("x", (file,), config, Path("the definition"))
    with pytest.raises(WanlabError) as caught:
        weights.load_component(cls, component, torch.bfloat16)
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_its_header(name: str, tmp_path: Path) -> None:
    """Of every published size, and its guessed architecture is the definition's."""
    from wanlab.weights._describe import words

    header = weights.read_header(real_size(name, tmp_path / "anything.safetensors"))
    layout = weights.recognise(header)
    assert words(layout.component, {k: e.shape for k, e in header.entries.items()}).startswith(FILES[name][2])
    config = FILES[name][1]
    same = {key: value for key, value in layout.architecture.items() if key in config}
    assert same == {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in same}
    assert len(same) >= 2


PAIRS = [("14B", "vace"), ("i2v", "14B"), ("14B", "i2v"), ("flf", "i2v"), ("vace", "14B"), ("14B", "5B")]
PAIRS += [("14B", "umt5"), ("14B", "vae"), ("umt5", "14B"), ("vae", "umt5")]


@pytest.mark.parametrize(("wanted", "given"), PAIRS)
def test_another_family_is_named_within_100_ms(wanted: str, given: str, tmp_path: Path) -> None:
    file = real_size(given, tmp_path / "x.safetensors")
    error = attempt(wanted, file)  # also imports what is imported on first use
    assert f"{file} looks like {FILES[given][2]}" in str(error)
    assert error.remedy
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        attempt(wanted, file)
        seconds.append(time.perf_counter() - start)
    if {wanted, given} <= {"14B", "i2v", "flf", "vace", "5B"}:
        assert min(seconds) < 0.1, seconds
    assert min(seconds) < 0.4, "a module without memory is built to know its names"


def drop(count: int) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in [k for k in state if k.startswith("blocks.1.")][:count]:
            del state[key]

    return change


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "two lack": (
        drop(2),
        r"lacks 2 of \d+ tensors of \w+: blocks\.1\S+, blocks\.1\S+\. It looks like",
    ),
    "ten lack": (drop(10), r"lacks 10 of \d+ .*: blocks\.1.* 5 more\..* one shard of several"),
    "LoRA": (lambda s: s.update({"blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 2)}), "is a LoRA"),
    "packed": (lambda s: s.update({"blocks.0.ffn.0.qweight": torch.ones(2)}), "a quantised form that is not read"),
    "extra": (
        lambda s: s.update({f"new.{i}": torch.ones(2) for i in range(7)}),
        r"holds 7 that \w+ does not have: new\.0, .* 2 more",
    ),
    "shape": (lambda s: s.update({"head.head.bias": torch.ones(3)}), r"head\.head\.bias has shape \(3,\)"),
    "whole numbers": (
        lambda s: s.update({"head.head.bias": s["head.head.bias"].int()}),
        r"head\.head\.bias is I32 without a scale, and \w+ needs floats",
    ),
    "truths": (lambda s: s.update({"head.head.bias": s["head.head.bias"] > 0}), "is BOOL without a scale"),
    "NaN": (lambda s: s["head.head.bias"].fill_(float("nan")), r"proj_out\.bias holds NaN"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_the_first_five_and_the_likely_cause(name: str, tmp_path: Path) -> None:
    change, reason = FAULTS[name]
    state = layouts.wan_original(state_of("t2v"))
    change(state)
    file = save(state, tmp_path / "x.safetensors")
    with pytest.raises(WanlabError, match=reason) as caught:
        load("t2v", file)
    assert str(file) in str(caught.value)
    assert caught.value.remedy


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) and not x.is_meta for x in gc.get_objects())


@pytest.mark.parametrize("name", ["two lack", "shape", "NaN", "stopped"])
def test_nothing_of_a_failed_load_stays_in_memory(name: str, tmp_path: Path) -> None:
    """Not even while the error and its traceback are kept."""
    state = layouts.wan_original(state_of("t2v"))
    if name != "stopped":
        FAULTS[name][0](state)
    file = save(state, tmp_path / "x.safetensors")
    del state
    count = iter(range(1000))

    def check() -> None:
        if name == "stopped" and next(count) == 20:
            raise KeyboardInterrupt

    cls, config = CLASSES["t2v"]
    component = weights.Component("x", (file,), config)
    before = tensors()
    with pytest.raises((WanlabError, KeyboardInterrupt)) as caught:
        weights.load_component(cls, component, torch.float32, check=check)
    assert tensors() == before
    del caught
    assert tensors() == before


# --- giving memory back


def test_unloaded_weights_come_back_with_the_same_bits(tmp_path: Path) -> None:
    """Into the same object, with what is attached to its sites; tables stay; tied tensors stay tied."""
    _, definition = tiny_wan(tmp_path / "wan")
    model = models.load(definition, device="cpu")
    for name in ("text_encoder", "transformer", "vae"):
        part = model.parts[name]
        module = part.module
        buffers = {key: buffer.data_ptr() for key, buffer in module.named_buffers()}
        before = {key: value.clone() for key, value in module.state_dict().items()}
        size = part.num_bytes
        part.unload()
        assert (part.loaded, part.num_bytes) == (False, part.component.num_bytes)
        assert all(p.is_meta for p in module.parameters())
        assert {key: buffer.data_ptr() for key, buffer in module.named_buffers()} == buffers
        part.unload()
        assert part.module is module
        assert (part.loaded, part.num_bytes) == (True, size)
        after = module.state_dict()
        assert not [key for key in before if not torch.equal(before[key], after[key])]
        assert not any(p.requires_grad for p in module.parameters())
    encoder = model.parts["text_encoder"].module
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_attachments_survive_unloading(tmp_path: Path) -> None:
    _, definition = tiny_wan(tmp_path / "wan")
    model = models.load(definition, device="cpu")
    stack, calls = model.stacks["transformer"], []
    handles = [stack[1].site.wrap(lambda call, *a, **k: (calls.append(1), call(*a, **k))[1], layer="edit")]
    handles += [next(iter(stack.linears.values())).wrap(lambda call, *a, **k: call(*a, **k) * 2, layer="edit")]
    first = generate(model, model.spec()).latents
    count = len(calls)
    model.parts["transformer"].unload()
    assert torch.equal(generate(model, model.spec()).latents, first)
    assert len(calls) == 2 * count > 0
    for handle in handles:
        handle.remove()
    assert not torch.equal(generate(model, model.spec()).latents, first)


def test_a_failed_refill_leaves_it_unloaded(tmp_path: Path) -> None:
    _, definition = tiny_wan(tmp_path / "wan")
    model = models.load(definition, device="cpu")
    part = model.parts["transformer"]
    module = part.module
    part.unload()
    file = part.component.files[0]
    good = file.read_bytes()
    state = load_file(file)
    state["proj_out.bias"].fill_(float("nan"))
    save_file(state, file)
    with pytest.raises(WanlabError, match="NaN"):
        _ = part.module
    assert not part.loaded
    assert all(p.is_meta for p in module.parameters())
    file.write_bytes(good)
    assert part.module is module
    assert isinstance(part, ModelPart)
