"""Every layout loads into the same bits as diffusers' own; 8-bit and GGUF files equal an independent expansion."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import layouts
from tests.tiny import WAN_DIT, WAN_VAE
from wanlab import weights
from wanlab.errors import WanlabError
from wanlab.weights._expand import _DECODE, expand
from wanlab.weights._gguf import BLOCKS, TYPES
from wanlab.weights._read import read_tensors

Config = dict[str, Any]
T2V: Config = {**WAN_DIT, "num_layers": 2}
I2V: Config = {**T2V, "in_channels": 36, "image_dim": 20, "added_kv_proj_dim": 24}
FLF: Config = {**I2V, "pos_embed_seq_len": 10}
VACE: Config = {**T2V, "vace_layers": [0, 1], "vace_in_channels": 96}
ANIMATE: Config = {
    **{k: v for k, v in I2V.items() if k != "patch_size"},
    "latent_channels": 16,
    "motion_encoder_size": 64,
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8, "32": 8, "64": 4},
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 8,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 1,
}
VAE_22: Config = {
    "base_dim": 4,
    "decoder_base_dim": 6,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
T5: Config = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CLIP: Config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP |= {"image_size": 28, "patch_size": 14}
CLASSES: dict[str, tuple[Any, Config]] = {
    "t2v": (diffusers.WanTransformer3DModel, T2V),
    "i2v": (diffusers.WanTransformer3DModel, I2V),
    "flf": (diffusers.WanTransformer3DModel, FLF),
    "vace": (diffusers.WanVACETransformer3DModel, VACE),
    "animate": (diffusers.WanAnimateTransformer3DModel, ANIMATE),
    "vae": (diffusers.AutoencoderKLWan, WAN_VAE),
    "vae22": (diffusers.AutoencoderKLWan, VAE_22),
    "umt5": (transformers.UMT5EncoderModel, T5),
    "clip": (transformers.CLIPVisionModel, CLIP),
}
ORIGINAL: dict[str, Callable[[layouts.State], layouts.State]] = {
    **dict.fromkeys(("t2v", "i2v", "flf", "vace"), layouts.wan_original),
    "animate": layouts.animate_original,
    "vae": functools.partial(layouts.vae_original, num_blocks=1),
    "vae22": functools.partial(layouts.vae_original, num_blocks=2),
    "umt5": layouts.t5_original,
    "clip": layouts.clip_original,
}
KINDS = {"vae": "vae_original", "vae22": "vae_original", "umt5": "umt5_original", "clip": "clip_original"}


@functools.cache
def network(name: str) -> nn.Module:
    """A tiny network whose every tensor is different, so that swapped names show."""
    cls, config = CLASSES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = cls(cls.config_class(**config)) if hasattr(cls, "config_class") else cls(**config)
        for p in module.parameters():
            nn.init.normal_(p, 0.1, 0.3)
    return module.eval()


def state_of(name: str) -> layouts.State:
    return {key: value.clone() for key, value in network(name).state_dict().items()}


def load(name: str, *files: Path, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    cls, config = CLASSES[name]
    component = weights.Component("x", files, config, Path("the definition"), **options)
    return weights.load_component(cls, component, dtype)


def assert_equal(module: nn.Module, wanted: layouts.State) -> None:
    found = module.state_dict()
    assert set(found) == set(wanted)
    assert not [key for key, value in wanted.items() if not torch.equal(found[key], value.to(found[key].dtype))]


def save(state: layouts.State, path: Path, prefix: str = "", **metadata: str) -> Path:
    save_file({prefix + k: v.clone().contiguous() for k, v in state.items()}, path, metadata or None)
    return path


@pytest.mark.parametrize("name", ORIGINAL)
def test_original_keys_load_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """In float32 and in bfloat16; every key of the original is used or known to hold nothing of the network."""
    state = state_of(name)
    file = save(ORIGINAL[name](state), tmp_path / "weights.safetensors")
    assert_equal(load(name, file), state)
    ours, theirs = load(name, file, dtype=torch.bfloat16), tmp_path / "theirs"
    network(name).save_pretrained(theirs)
    wanted = CLASSES[name][0].from_pretrained(theirs, torch_dtype=torch.bfloat16)
    assert {k: v.dtype for k, v in ours.state_dict().items()} == {k: v.dtype for k, v in wanted.state_dict().items()}
    assert_equal(ours, wanted.state_dict())
    layout = weights.recognise(weights.read_header(file))
    assert (layout.kind, layout.stored_as) == (KINDS.get(name, "wan_original"), "float")


@pytest.mark.parametrize("name", ["t2v", "i2v", "vace", "animate", "vae"])
def test_the_tables_agree_with_diffusers_converters(name: str, tmp_path: Path) -> None:
    """For the checkpoints that diffusers 0.42 converts; theirs leaves FLF's emb_pos and the 2.2 VAE as they are."""
    convert = single_file_utils.convert_wan_transformer_to_diffusers
    state, is_published = state_of(name), name != "vae"
    if not is_published:  # their numbers of blocks are those of the published VAE
        module = diffusers.AutoencoderKLWan(**{**WAN_VAE, "num_res_blocks": 2, "dim_mult": [1, 2, 4, 4]})
        state, convert = module.state_dict(), single_file_utils.convert_wan_vae_to_diffusers
        original = layouts.vae_original(state, num_blocks=2)
    else:
        original = {k: v for k, v in ORIGINAL[name](state).items() if not k.endswith(".kernel")}
    theirs = convert(dict(original))
    file = save(original, tmp_path / "weights.safetensors")
    from wanlab.weights._layouts import stored_tensors

    header = weights.read_header(file)
    ours = {s.key: s.names for s in stored_tensors(header, weights.recognise(header))}
    assert {name for names in ours.values() for name in names} == set(theirs) == set(state)
    for key, names in ours.items():
        for i, name in enumerate(names):
            part = original[key].chunk(len(names))[i]
            assert torch.equal(part.reshape(theirs[name].shape), theirs[name])


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_prefixes_are_recognised_and_other_networks_of_the_file_left_alone(prefix: str, tmp_path: Path) -> None:
    state = {prefix + k: v for k, v in layouts.wan_original(state_of("t2v")).items()}
    file = save(state | {"vae.conv1.weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert weights.recognise(weights.read_header(file)).prefix == prefix
    assert_equal(load("t2v", file), state_of("t2v"))
    save(state | {"what_is_this.weight": torch.ones(2)}, file)
    with pytest.raises(WanlabError, match=r"holds 'what_is_this\.weight' beside"):
        load("t2v", file)


def test_the_vace_module_is_laid_over_its_base(tmp_path: Path) -> None:
    state = state_of("vace")
    original = layouts.wan_original(state)
    module = {k: v for k, v in original.items() if k.startswith("vace_")}
    base = save({k: v for k, v in original.items() if k not in module}, tmp_path / "base.safetensors")
    added = save(module, tmp_path / "module.safetensors")
    assert weights.recognise(weights.read_header(added)).kind == "wan_original"
    assert_equal(load("vace", base, added), state)
    changed = state["patch_embedding.bias"] + 1
    over = save(module | {"patch_embedding.bias": changed}, tmp_path / "over.safetensors")
    assert_equal(load("vace", base, over), state | {"patch_embedding.bias": changed})
    with pytest.raises(WanlabError, match="VACE module's file"):
        load("vace", base)
    with pytest.raises(WanlabError, match=r"the VACE module of Wan.*a part of a network"):
        load("vace", added)


def test_shards_in_original_keys(tmp_path: Path) -> None:
    """As Wan-AI's own repositories store 14B: any shard alone is recognised."""
    items = list(layouts.wan_original(state_of("i2v")).items())
    files = [save(dict(items[i::3]), tmp_path / f"{i}.safetensors") for i in range(3)]
    assert {weights.recognise(weights.read_header(f)).kind for f in files} == {"wan_original"}
    assert_equal(load("i2v", *files), state_of("i2v"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["t2v", "umt5"])
@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scaled_fp8(name: str, scale_name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """ComfyUI's: original keys of the transformer; transformers' keys of UMT5, with the tokenizer inside."""
    state = state_of(name)
    if name == "umt5":
        state.pop("encoder.embed_tokens.weight")
    file, truth = layouts.scaled_fp8(state, scale_name)
    if name == "umt5":
        path = save(file | {"spiece_model": torch.ones(9, dtype=torch.uint8)}, tmp_path / "w.safetensors")
        truth["encoder.embed_tokens.weight"] = truth["shared.weight"]
    else:
        path = save(layouts.wan_original(file), tmp_path / "w.safetensors", "model.diffusion_model.")
    assert weights.recognise(weights.read_header(path)).stored_as == "fp8"
    assert_equal(load(name, path, dtype=dtype), truth)


def test_plain_fp8_is_cast(tmp_path: Path) -> None:
    state = state_of("t2v")
    stored = {k: v.to(torch.float8_e4m3fn) if layouts.is_linear(k, v) else v for k, v in state.items()}
    path = save(layouts.wan_original(stored), tmp_path / "w.safetensors")
    assert_equal(load("t2v", path), {k: v.float() for k, v in stored.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["t2v", "umt5", "clip"])
def test_quanto_int8(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Fused rows of CLIP are split after they are expanded."""
    state = ORIGINAL[name](state_of(name))
    file, truth = layouts.quanto_int8(state)
    path = save(file, tmp_path / "w.safetensors")
    assert weights.recognise(weights.read_header(path)).stored_as == "int8"
    assert_equal(load(name, path, dtype=dtype), load(name, save(truth, tmp_path / "t.safetensors")).state_dict())


def test_scales_that_are_not_understood_are_refused(tmp_path: Path) -> None:
    file, _ = layouts.scaled_fp8(layouts.wan_original(state_of("t2v")))
    key = next(k for k in file if k.endswith("scale_weight"))
    save({**file, key: torch.ones(3, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(WanlabError, match=r"with a scale of F32 \(3, 2\), which is not read"):
        load("t2v", tmp_path / "a.safetensors")
    int8, _ = layouts.quanto_int8(layouts.wan_original(state_of("t2v")))
    key = next(k for k in int8 if k.endswith("_scale"))
    save({k: v for k, v in int8.items() if k != key}, tmp_path / "b.safetensors")
    with pytest.raises(WanlabError, match="its scale"):
        load("t2v", tmp_path / "b.safetensors")


# --- pickles


@pytest.mark.parametrize("name", ["vae", "umt5"])
def test_pickles_only_when_asked(name: str, tmp_path: Path) -> None:
    state = state_of(name)
    file = tmp_path / "original.pth"
    torch.save(ORIGINAL[name](state), file)
    with pytest.raises(WanlabError, match="pickle"):
        load(name, file)
    assert_equal(load(name, file, allow_pickle=True), state)
    torch.save(ORIGINAL[name](state), file, _use_new_zipfile_serialization=False)
    assert_equal(load(name, file, allow_pickle=True), state)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("what", ["code", "number", "nothing"])
def test_a_pickle_of_anything_else_is_refused_and_not_run(what: str, tmp_path: Path) -> None:
    file, marker = tmp_path / "x.pth", tmp_path / "ran"
    torch.save({"code": {"a": Payload(marker)}, "number": {"a": 1}, "nothing": {}}[what], file)
    with pytest.raises(WanlabError, match=r"x\.pth is a pickle that torch refuses|holds no table of tensors"):
        load("vae", file, allow_pickle=True)
    assert not marker.exists()


# --- GGUF


def random_blocks(word: str, count: int, seed: int = 0) -> np.ndarray:
    """Bytes of `count` blocks: any bits are numbers, but the float16 factors must be finite."""
    elements, size = BLOCKS[word]
    assert elements > 1
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    places = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,)}
    for place in places.get(word, (208,) if word == "Q6_K" else (0,)):
        blocks[:, place : place + 2] = rng.normal(0, 0.1, count).astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks


@pytest.fixture
def gguf() -> Any:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the package gguf, the reference of these formats")
    import gguf

    return gguf


@pytest.mark.parametrize("word", sorted(_DECODE))
def test_blocks_expand_as_in_the_gguf_package(word: str, gguf: Any) -> None:
    blocks = random_blocks(word, 64)
    wanted = gguf.dequantize(blocks.reshape(8, -1), gguf.GGMLQuantizationType[word])
    raw = torch.from_numpy(blocks.reshape(-1).copy())
    found = expand(word, wanted.shape, raw, None, torch.float32)
    assert np.array_equal(found.numpy(), wanted)
    assert torch.equal(expand(word, wanted.shape, raw, None, torch.bfloat16), torch.from_numpy(wanted).bfloat16())


def slowly(word: str, block: bytes) -> list[float]:
    """One block by scalar arithmetic, written from ggml-common.h: two formats without the package."""
    d = float(np.frombuffer(block[:2], "<f2")[0])
    if word == "Q8_0":
        return [d * int(np.int8(b)) for b in np.frombuffer(block[2:], np.int8)]
    low = [(b & 15) - 8 for b in block[2:]]
    return [d * q for q in low + [(b >> 4) - 8 for b in block[2:]]]


@pytest.mark.parametrize("word", ["Q8_0", "Q4_0"])
def test_blocks_expand_as_written_down(word: str) -> None:
    blocks = random_blocks(word, 5)
    wanted = np.array([slowly(word, bytes(b)) for b in blocks], "f4")
    assert np.array_equal(expand(word, (5, 32), torch.from_numpy(blocks.reshape(-1)), None, None).numpy(), wanted)


NUMBERS = {word: number for number, (word, *_) in TYPES.items()}


def as_gguf(state: layouts.State, path: Path, word: str, **settings: Any) -> layouts.State:
    """Write linear weights whose rows fit as random blocks of `word`, the rest as F32 or F16; returns the values."""
    tensors, truth = {}, {}
    for i, (key, value) in enumerate(state.items()):
        shape = tuple(value.shape)
        if layouts.is_linear(key, value) and shape[1] % BLOCKS[word][0] == 0:
            blocks = random_blocks(word, value.numel() // BLOCKS[word][0], i)
            tensors[key] = NUMBERS[word], shape, blocks.tobytes()
            truth[key] = expand(word, shape, torch.from_numpy(blocks.reshape(-1)), None, torch.float32)
        elif value.ndim == 5:
            settings[f"comfy.gguf.orig_shape.{key}"] = shape
            tensors[key] = NUMBERS["F16"], (value.numel(),), value.half().numpy().tobytes()
            truth[key] = value.half().float()
        else:
            tensors[key], truth[key] = (NUMBERS["F32"], shape, value.numpy().tobytes()), value
    layouts.write_gguf(path, tensors, **settings)
    return truth


def test_gguf_of_a_transformer(tmp_path: Path) -> None:
    """Original keys, convolutions with their true shape in the settings; Q8_0 where 32 numbers fit a row."""
    state, file = layouts.wan_original(state_of("t2v")), tmp_path / "wan.gguf"
    truth = as_gguf(state, file, "Q8_0", **{"general.architecture": "wan", "general.names": ["a", "bc"]})
    layout = weights.recognise(weights.read_header(file))
    assert (layout.kind, layout.stored_as, layout.architecture["in_channels"]) == ("wan_original", "gguf", 16)
    assert_equal(load("t2v", file), load("t2v", save(truth, tmp_path / "t.safetensors")).state_dict())
    assert sum(not torch.equal(truth[k], v) for k, v in state.items()) == 3  # text and time embeddings


def test_gguf_of_umt5(tmp_path: Path) -> None:
    state, file = layouts.t5_original(state_of("umt5"), gguf=True), tmp_path / "t5.gguf"
    truth = as_gguf(state, file, "Q4_0")
    assert weights.recognise(weights.read_header(file)).kind == "umt5_gguf"
    found = load("umt5", file).state_dict()
    assert torch.equal(found["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"], truth["enc.blk.1.ffn_up.weight"])
    assert torch.equal(found["shared.weight"], truth["token_embd.weight"])


def test_gguf_reads_what_the_package_writes(gguf: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    state = layouts.wan_original(state_of("t2v"))
    for key, value in state.items():
        if value.ndim < 5:
            is_q8 = layouts.is_linear(key, value) and value.shape[1] % 32 == 0
            kind = gguf.GGMLQuantizationType.Q8_0 if is_q8 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(key, gguf.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = weights.read_header(tmp_path / "x.gguf")
    read = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {t.name: (t.data_offset, t.data_offset + t.n_bytes) for t in read.tensors} == {
        name: (e.begin, e.end) for name, e in header.entries.items()
    }
    assert {n: e.shape for n, e in header.entries.items()} == {
        k: tuple(v.shape) for k, v in state.items() if v.ndim < 5
    }


BAD_GGUF: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda b: b[:-100], "truncated"),
    "truncated header": (lambda b: b[:60], "truncated inside its header"),
    "version 1": (lambda b: b[:4] + b"\1" + b[5:], "version 1"),
    "many tensors": (lambda b: b[:8] + b"\xff" * 4 + b[12:], "claims"),
    "long name": (lambda b: b[:24] + b"\xff" * 6 + b[30:], "text of"),
}


@pytest.mark.parametrize("fault", BAD_GGUF)
def test_unsound_gguf_is_refused(fault: str, tmp_path: Path) -> None:
    break_, reason = BAD_GGUF[fault]
    file = tmp_path / "x.gguf"
    layouts.write_gguf(file, {"a": (0, (64,), bytes(256)), "b": (0, (64,), bytes(256))})
    assert len(weights.read_header(file).entries) == 2
    file.write_bytes(break_(file.read_bytes()))
    with pytest.raises(WanlabError, match=reason) as caught:
        weights.read_header(file)
    assert str(file) in str(caught.value)


def test_gguf_tensors_may_not_overlap_or_be_of_unknown_types(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    layouts.write_gguf(file, {"a": (0, (64,), bytes(256)), "b": (0, (64,), b"")})
    with pytest.raises(WanlabError, match="truncated"):
        weights.read_header(file)
    layouts.write_gguf(file, {"a": (0, (64,), b""), "b": (0, (64,), bytes(256))})
    with pytest.raises(WanlabError, match="overlaps"):
        weights.read_header(file)
    layouts.write_gguf(file, {"a": (20, (32,), bytes(64))})
    with pytest.raises(WanlabError, match="GGML type 20, which is not read"):
        weights.read_header(file)


# --- reading


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("chunk", [64, 1000, 1 << 20])
def test_every_byte_arrives_whatever_the_size_of_a_read(
    staged: bool, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order asked for, with gaps, empty tensors, and tensors of many reads."""
    monkeypatch.setattr("wanlab.weights._read.CHUNK", chunk)
    data = np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8)
    (tmp_path / "x").write_bytes(data.tobytes())
    places = [("d", 9000, 9001), ("a", 0, 3333), ("b", 3333, 3333), ("c", 3333, 3400), ("e", 5000, 10_000)]
    found = list(read_tensors(tmp_path / "x", places, torch.device("cpu"), lambda: None, staged=staged))
    assert [key for key, _ in found] == [key for key, *_ in places]
    for (_, begin, end), (_, tensor) in zip(places, found, strict=True):
        assert np.array_equal(tensor.numpy(), data[begin:end])


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    with pytest.raises(WanlabError, match="became shorter"):
        list(read_tensors(tmp_path / "x", [("a", 0, 200)], torch.device("cpu"), lambda: None))


def test_reads_are_few_and_large() -> None:
    """1,095 tensors that follow each other come in reads of 64 MiB, except the last."""
    from wanlab.weights._read import CHUNK, _chunks

    size = 3_000_000
    chunks = list(_chunks([(str(i), i * size, (i + 1) * size) for i in range(1095)]))
    assert [c.size for c in chunks[:-1]] == [CHUNK] * (1095 * size // CHUNK)
    assert sum(c.size for c in chunks) == 1095 * size


def _view(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def test_split_tensors_own_their_memory(tmp_path: Path) -> None:
    """A third of a fused tensor must not keep the other two alive."""
    module = load("clip", save(layouts.clip_original(state_of("clip")), tmp_path / "w.safetensors"))
    assert all(_view(p) == p.numel() * p.element_size() for p in module.parameters())
