"""Weights: found or asked for, every file checked before it is read, modules equal to from_pretrained."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_flux, tiny_wan

from wanlab import weights
from wanlab.catalog import Definition, find
from wanlab.errors import WanlabError
from wanlab.workspace import Workspace

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPONENTS = [
    ("wan", "transformer", "WanTransformer3DModel"),
    ("wan", "vae", "AutoencoderKLWan"),
    ("wan", "text_encoder", "UMT5EncoderModel"),
    ("flux", "transformer", "FluxTransformer2DModel"),
    ("flux", "vae", "AutoencoderKL"),
    ("flux", "text_encoder", "CLIPTextModel"),
    ("flux", "text_encoder_2", "T5EncoderModel"),
]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def class_called(name: str) -> Any:
    import diffusers
    import transformers

    return getattr(diffusers, name, None) or getattr(transformers, name)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {"wan": tiny_wan(root / "wan")[0], "flux": tiny_flux(root / "flux")[0]}


@pytest.fixture
def wan(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Wan that a test may break."""
    return Path(shutil.copytree(folders["wan"], tmp_path / "wan"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return weights.load_module(class_called("WanTransformer3DModel"), folder, "transformer", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "component", "name"), COMPONENTS, ids=[f"{f}-{c}" for f, c, _ in COMPONENTS])
def test_module_equals_from_pretrained(
    folders: dict[str, Path], family: str, component: str, name: str, dtype: str
) -> None:
    """Values and dtypes of every parameter and buffer; what the class keeps in float32 is float32."""
    cls = class_called(name)
    ours = weights.load_module(cls, folders[family], component, DTYPES[dtype])
    theirs = cls.from_pretrained(folders[family] / component, torch_dtype=DTYPES[dtype])
    for tensors in ("named_parameters", "named_buffers"):
        found, wanted = dict(getattr(ours, tensors)()), dict(getattr(theirs, tensors)())
        assert list(found) == list(wanted)
        assert not [n for n in wanted if found[n].dtype != wanted[n].dtype or not torch.equal(found[n], wanted[n])]
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    if name == "WanTransformer3DModel":
        assert {b.dtype for b in ours.buffers()} == {torch.float32}
        assert ours.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32


def test_shards_load_as_one(folders: dict[str, Path], wan: Path) -> None:
    whole, place = load(folders["wan"]), wan / "transformer"
    class_called("WanTransformer3DModel").from_pretrained(place).save_pretrained(place, max_shard_size="20KB")
    (wan / WEIGHTS).unlink(missing_ok=True)
    assert len(weights.check_folder(wan, "transformer")) > 2
    parts = load(wan)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    victim = sorted(place.glob("*-of-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(WanlabError, match=victim.name) as caught:
        load(wan)
    assert "Download" in str(caught.value)


def test_clip_keys_of_older_files_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """FLUX.1-dev's CLIP was saved with `text_model.` before every key; transformers 5 writes none."""
    flux = Path(shutil.copytree(folders["flux"], tmp_path / "flux"))
    file = flux / "text_encoder" / "model.safetensors"
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    cls = class_called("CLIPTextModel")
    old = weights.load_module(cls, flux, "text_encoder", torch.float32)
    new = weights.load_module(cls, folders["flux"], "text_encoder", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def truncate_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def html(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")


def pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5676000000\n")


class Payload:
    """Makes a folder called `marker` when a pickle of it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.marker,))


def renamed_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Payload(file.parent / "ran")))


def renamed_torch_file(file: Path) -> None:
    torch.save({"weight": Payload(file.parent / "ran")}, file)


def pickle_alone(file: Path) -> None:
    file.unlink()
    torch.save({"weight": Payload(file.parent / "ran")}, file.with_suffix(".bin"))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        state = load_file(file)
        change(state)
        save_file(state, file)

    return apply


def poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state["blocks.1.attn1.to_q.weight"].view(-1)[7:8].fill_(value)  # type: ignore[return-value]


def wrong_shape(state: dict[str, torch.Tensor]) -> None:
    state["proj_out.weight"] = state["proj_out.weight"][:, :-1].contiguous()


def two_files(file: Path) -> None:
    shutil.copyfile(file, file.with_name("a.safetensors"))
    file.rename(file.with_name("b.safetensors"))


def duplicate_keys(file: Path) -> None:
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip()
    first = header[1 : header.index(b"]}") + 2]
    header = header[:-1] + b"," + first + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "incomplete|truncated|cut|short"),
    "truncated in its header": (truncate_header, "incomplete|truncated|cut|short"),
    "HTML page": (html, "HTML"),
    "git-lfs pointer": (pointer, "lfs"),
    "renamed pickle": (renamed_pickle, "pickle"),
    "renamed torch file": (renamed_torch_file, "pickle|zip"),
    "pickle": (pickle_alone, "pickle"),
    "empty": (empty, "empty"),
    "duplicate keys": (duplicate_keys, "twice|duplicate"),
    "NaN": (rewrite(poison(float("nan"))), r"blocks\.1\.attn1\.to_q\.weight holds NaN"),
    "infinity": (rewrite(poison(float("-inf"))), r"blocks\.1\.attn1\.to_q\.weight holds NaN or infinity"),
    "shape": (rewrite(wrong_shape), r"proj_out\.weight has shape"),
    "missing key": (rewrite(lambda s: s.pop("proj_out.bias")), r"lacks 1 of .*proj_out\.bias"),  # type: ignore[arg-type]
    "unexpected key": (rewrite(lambda s: s.update(extra=torch.ones(2))), "holds 1 that .* does not have: extra"),
    "packed int8": (
        rewrite(lambda s: s.update({"proj_out.weight": s["proj_out.weight"].to(torch.int8)})),
        r"proj_out\.weight is stored as I8",
    ),
    "missing file": (Path.unlink, "no safetensors file"),
    "two files": (two_files, "no index"),
    "missing config": (lambda file: (file.parent / "config.json").unlink(), r"config\.json"),
    "broken config": (lambda file: (file.parent / "config.json").write_text("{"), r"config\.json"),  # type: ignore[arg-type,return-value]
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_named_with_reason_and_remedy(wan: Path, name: str) -> None:
    break_, reason = BROKEN[name]
    break_(wan / WEIGHTS)
    start = time.perf_counter()
    with pytest.raises(WanlabError, match=f"(?i){reason}") as caught:
        load(wan)
    assert time.perf_counter() - start < 1
    message = str(caught.value)
    assert str(wan / "transformer") in message, "the file or its folder is named"
    assert caught.value.remedy
    assert len(message) < 1000
    assert not (wan / "transformer" / "ran").exists(), "no pickle was read"


@pytest.mark.parametrize("table", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"])
def test_broken_index_is_named(wan: Path, table: str) -> None:
    (wan / WEIGHTS).rename(wan / "transformer" / "x-00001-of-00001.safetensors")
    (wan / "transformer" / "x.safetensors.index.json").write_text(table)
    with pytest.raises(WanlabError, match=r"index\.json"):
        load(wan)


def test_index_cannot_lead_out_of_its_folder(wan: Path) -> None:
    for name in ("../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", ".."):
        table = json.dumps({"weight_map": {"a": name}})
        (wan / "transformer" / "x.safetensors.index.json").write_text(table)
        with pytest.raises(WanlabError, match="outside its folder"):
            load(wan)


def test_values_that_do_not_fit_the_dtype_are_refused(wan: Path) -> None:
    rewrite(poison(1e6))(wan / WEIGHTS)
    load(wan, torch.bfloat16)
    with pytest.raises(WanlabError, match="float32"):
        load(wan, torch.float16)


def test_config_of_another_model_is_refused(wan: Path) -> None:
    config = json.loads((wan / "transformer" / "config.json").read_text())
    (wan / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 5}))
    with pytest.raises(WanlabError, match=r"lacks .*blocks\.4"):
        load(wan)


REAL = [  # definition, component, class, parameters in millions, tensors that tell sizes apart
    (
        "wan_t2v_1_3b",
        "transformer",
        "WanTransformer3DModel",
        1418.997,
        {"blocks.29.ffn.net.0.proj.weight": (8960, 1536)},
    ),
    ("wan_t2v_14b", "transformer", "WanTransformer3DModel", 14288.492, {"blocks.39.attn2.to_k.weight": (5120, 5120)}),
    ("wan_t2v_14b", "vae", "AutoencoderKLWan", 126.893, {"decoder.conv_in.weight": (384, 16, 3, 3, 3)}),
    ("wan_t2v_1_3b", "text_encoder", "UMT5EncoderModel", 5680.910, {"shared.weight": (256384, 4096)}),
    ("flux_dev", "transformer", "FluxTransformer2DModel", 11901.408, {"x_embedder.weight": (3072, 64)}),
    ("flux_dev", "vae", "AutoencoderKL", 83.820, {"decoder.conv_in.weight": (512, 16, 3, 3)}),
    ("flux_dev", "text_encoder", "CLIPTextModel", 123.060, {"final_layer_norm.weight": (768,)}),
    ("flux_dev", "text_encoder_2", "T5EncoderModel", 4762.311, {"shared.weight": (32128, 4096)}),
]


@pytest.mark.parametrize(
    ("name", "component", "cls", "millions", "shapes"), REAL, ids=[f"{n}-{c}" for n, c, *_ in REAL]
)
def test_real_sizes_are_those_of_the_published_files(
    name: str, component: str, cls: str, millions: float, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Built without memory; 4 bytes a parameter give the published 5.68 GB (1.3B), 57.2 GB (14B) and 0.51 GB (VAE)."""
    kind = class_called(cls)
    architecture = find(name).architecture[component]
    with torch.device("meta"):
        module = kind(kind.config_class(**architecture)) if hasattr(kind, "config_class") else kind(**architecture)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)
    state = module.state_dict()
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


# --- finding


def definition(**source: Any) -> Definition:
    files = ["model_index.json", "transformer/config.json", "transformer/*.safetensors"]
    return Definition.of({"id": "mine", "family": "wan", "weights": {"files": files, **source}})


def test_nothing_anywhere_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    """Offline (see conftest), no cache, no local copy: files, source and the folder to put them in."""
    with pytest.raises(WanlabError) as caught:
        weights.locate(find("wan_t2v_1_3b"), Workspace(tmp_path))
    message = str(caught.value)
    for part in (
        "text_encoder/*.safetensors",
        "transformer/config.json",
        "https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        str(tmp_path / "checkpoints" / "wan_t2v_1_3b"),
        "`wanlab models --download wan_t2v_1_3b`",
    ):
        assert part in message
    with pytest.raises(WanlabError, match=r"HF_HUB_OFFLINE is set.*/wan2\.1_text2video_1\.3B_mbf16\.safetensors to "):
        weights.download(find("wan_t2v_1_3b"), Workspace(tmp_path))
    assert not list(tmp_path.iterdir())


def test_network_failure_is_part_of_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def no_network(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(WanlabError, match=r"could not be downloaded \(ConnectionError: no route to host\)"):
        weights.locate(definition(repo="a/b"), Workspace(tmp_path), download=True)


def test_hub_is_asked_for_the_files_and_their_index(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(wan)

    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert (
        weights.locate(definition(repo="a/b", revision="v1"), Workspace(wan.parent / "none"), download=True).folder
        == wan
    )
    assert (asked["repo"], asked["revision"]) == ("a/b", "v1")
    assert {"transformer/*.safetensors", "transformer/*.safetensors.index.json"} <= set(asked["allow_patterns"])


@pytest.mark.parametrize(
    "place", ["mine", "owner/name", "name", "models--owner--name/snapshots/0123"], ids=["id", "repo", "name", "cache"]
)
def test_local_copies_are_found_under_the_names_that_tools_give(wan: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "wanlab.toml").write_text('[checkpoints]\npaths = ["elsewhere"]\n')
    target = tmp_path / "elsewhere" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    wan.rename(target)
    found = weights.locate(definition(repo="owner/name"), Workspace(tmp_path))
    assert found.folder is not None
    assert found.folder.resolve() == target.resolve()


def test_explicit_folder_wins_and_an_incomplete_one_is_named(wan: Path, tmp_path: Path) -> None:
    assert weights.locate(definition(folder=str(wan)), Workspace(tmp_path)).folder == wan
    (wan / WEIGHTS).unlink()
    with pytest.raises(WanlabError, match=r"lacks transformer/\*\.safetensors"):
        weights.locate(definition(folder=str(wan)), Workspace(tmp_path))
    with pytest.raises(WanlabError, match="not on this machine"):
        weights.locate(definition(asset="no_such_asset"), Workspace(tmp_path))


def test_fingerprint_is_of_content_not_of_place(wan: Path, folders: dict[str, Path]) -> None:
    first = weights.fingerprint(folders["wan"])
    assert len(first) == 16
    assert weights.fingerprint(wan) == first
    (wan / "README.md").write_text("says nothing about results")
    assert weights.fingerprint(wan) == first
    rewrite(poison(1.0))(wan / WEIGHTS)
    changed = weights.fingerprint(wan)
    assert changed != first
    config = wan / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("3.0", "5.0"))
    assert weights.fingerprint(wan) not in (first, changed)
    assert weights.fingerprint(folders["flux"]) != first
