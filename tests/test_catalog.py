"""Definitions: every shipped one loads, names resolve, mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import wanlab
from wanlab import catalog
from wanlab.catalog import Definition, FileSource, find
from wanlab.errors import WanlabError, unknown
from wanlab.files import resource
from wanlab.spec import GenerationSpec
from wanlab.workspace import Workspace

SHIPPED = sorted(p.stem for p in resource("defaults").glob("*.json"))
ALIASES = {
    "t2v_1.3B": "wan_t2v_1_3b",
    "t2v": "wan_t2v_14b",
    "flux": "flux_dev",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan_t2v_1_3b",
    "black-forest-labs/FLUX.1-dev": "flux_dev",
}
MINIMAL = {"id": "mine", "family": "wan"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_definition_is_whole(name: str) -> None:
    found = find(name)
    assert (found.id, found.schema_version) == (name, 1)
    assert {"transformer", "vae", "text_encoder"} <= set(found.architecture)
    assert found.weights.is_folder or found.weights.components
    assert len(found.constants["vae_stride"]) == len(found.constants["patch_size"]) == 3
    assert Definition.of(json.loads(found.model_dump_json(by_alias=True))) == found
    assert find(json.loads(found.model_dump_json(by_alias=True))) == found, "a base is not merged twice"


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_lead_to_their_model(alias: str) -> None:
    assert find(alias).id == ALIASES[alias]


def test_find_takes_what_names_a_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MINIMAL))
    mine = find(path)
    assert mine == find(str(path)) == find(MINIMAL) == find(mine)
    assert find(SimpleNamespace(model="t2v")).id == "wan_t2v_14b"
    assert find(GenerationSpec.of({**find("flux").spec, "model": "flux"})).id == "flux_dev"


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("wan_t2v_1_3", "Did you mean 'wan_t2v_1_3b'"),
        ("", "Unknown model"),
        ("x" * 100_000, "100002 characters"),
        (7, "names no model"),
        (None, "names no model"),
        ({"id": "x"}, "family"),
        ({**MINIMAL, "famly": "wan"}, "Did you mean 'family'"),
        ({**MINIMAL, "weights": {"repos": "a/b"}}, "Did you mean 'repo'"),
        ({**MINIMAL, "schema": 2}, "update wanlab"),
        ({**MINIMAL, "constants": {"x": float("nan")}}, "nan"),
        ({**MINIMAL, "aliases": "one"}, "aliases"),
        ({**MINIMAL, "id": "../x"}, "not allowed"),
        ({**MINIMAL, "base": "nobody"}, "Unknown model 'nobody'"),
        ({**MINIMAL, "base": 3}, "names no model"),
        ({**MINIMAL, "weights": {"files": ["../*.safetensors"]}}, "leads outside"),
        ({**MINIMAL, "weights": {"components": [1]}}, "components"),
        ({**MINIMAL, "weights": {"components": {"vae": "flux_dev"}}}, "'flux_dev' has no files of a vae"),
        ({**MINIMAL, "weights": {"components": {"vae": {"variants": []}}}}, "no file"),
        ({**MINIMAL, "weights": {"components": {"vae": {"variants": [{"path": "a/../../b"}]}}}}, "leads outside"),
        ({**MINIMAL, "weights": {"components": {"vae": {"variants": [{"path": "a", "url": "ftp://a"}]}}}}, "url"),
        ({**MINIMAL, "weights": {"components": {"vae": {"variants": "wan_tiny"}}}}, "'wan_tiny' has no files of a vae"),
        ({**MINIMAL, "weights": {"components": {"vae": {"modules": "wan_tiny"}}}}, "'wan_tiny' has no module"),
        ("absent.json", r"absent\.json"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_are_named(what: object, match: str) -> None:
    with pytest.raises(WanlabError, match=match) as caught:
        find(what)
    assert len(str(caught.value)) < 1500


def test_broken_definition_files_are_named(tmp_path: Path) -> None:
    for content in ("", "{", "[1]", '{"id": "a", "id": "b"}', '{"id": "a", "family": NaN}', "\xff"):
        (tmp_path / "mine.json").write_text(content, encoding="latin-1")
        with pytest.raises(WanlabError, match=r"mine\.json"):
            find(tmp_path / "mine.json")


def test_catalogue_lists_all_and_what_is_here(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    table = catalog.catalogue(workspace)
    assert sorted(row.id for row in table) == SHIPPED
    assert [row.id for row in table if row.on_disk] == [table[0].id] == ["wan_tiny"]
    absent = next(row for row in table if row.id == "wan_t2v_14b")
    assert (absent.on_disk, absent.size) == (False, None)
    assert absent.remedy == "`wanlab models --download wan_t2v_14b` fetches it from Wan-AI/Wan2.1-T2V-14B-Diffusers"
    assert "cannot run yet: LoRAs" in repr(table)
    assert not list(tmp_path.iterdir())
    place = tmp_path / "checkpoints" / "Wan2.1-T2V-14B-Diffusers"
    for pattern in find("t2v").weights.files:
        file = place / pattern.replace("*", "x")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1234")
    present = next(row for row in catalog.catalogue(workspace) if row.id == "wan_t2v_14b")
    assert (present.on_disk, present.size, present.remedy) == (True, 4 * len(find("t2v").weights.files), "")
    assert "wan_t2v_14b" in repr(table)
    assert "<table>" in table._repr_html_()


def test_an_interrupted_download_is_not_complete(tmp_path: Path) -> None:
    """Whatever came last: a shard, the index, or a link to a file that is not there yet."""
    wanted = Definition.of({**MINIMAL, "weights": {"files": ["net/config.json", "net/*.safetensors"]}})
    shards = [f"net/model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    table = json.dumps({"weight_map": {f"layer.{n}": Path(shard).name for n, shard in enumerate(shards)}})
    files = {"net/config.json": "{}", "net/model.safetensors.index.json": table, **dict.fromkeys(shards, "x")}
    (tmp_path / "net").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert catalog.missing_files(wanted, tmp_path) == []
    for name, content in files.items():
        (tmp_path / name).unlink()
        assert catalog.missing_files(wanted, tmp_path) == [name]
        (tmp_path / name).symlink_to(tmp_path / "blob.incomplete")
        assert catalog.missing_files(wanted, tmp_path) == [name]
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(content)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / shards[0]).unlink()
    assert catalog.missing_files(Definition.of(MINIMAL), tmp_path) == [shards[0]]
    (tmp_path / shards[0]).write_text("x")
    for damaged in ("", "{", "[]", '{"weight_map": []}'):
        (tmp_path / "net/model.safetensors.index.json").write_text(damaged)
        assert catalog.missing_files(wanted, tmp_path) == [], "loading explains it"


def test_table_escapes_what_definitions_say() -> None:
    row = catalog.Row(id="a", family="b", title="<img onerror=x>", on_disk=False, size=None, remedy="")
    assert "<img" not in catalog.Catalogue([row])._repr_html_()
    broken = row.with_(error="<img onerror=y>")
    assert "<img" not in catalog.Catalogue([broken])._repr_html_()
    assert "broken" in repr(catalog.Catalogue([broken]))


def test_finding_imports_nothing_heavy() -> None:
    code = (
        "import sys; from wanlab.catalog import catalogue, find; find('t2v'); catalogue(); "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'av', 'huggingface_hub') if m in sys.modules])"
    )
    root = Path(catalog.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


def test_the_catalogue_is_quick(tmp_path: Path) -> None:
    """Under a second with all that ships and 50 finetunes, each laid over a base."""
    (tmp_path / "finetunes").mkdir()
    for i in range(50):
        mine = {"base": "vace_14b", "spec": {"num_steps": 5 + i}}
        (tmp_path / "finetunes" / f"mine_{i}.json").write_text(json.dumps(mine))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        table = catalog.catalogue(Workspace(tmp_path))
        times.append(time.perf_counter() - start)
    assert len(table) == len(SHIPPED) + 50
    assert min(times) < 1


# Files of single components

FILES = {
    "transformer": ["net_bf16.safetensors", "net_quanto_fp16_int8.safetensors"],
    "vae": ["split_files/vae/the_vae.safetensors"],
    "tokenizer": ["umt5/tokenizer.json"],
}


def parts(**more: object) -> Definition:
    """A definition of three components, two of them networks."""
    components = {
        name: {"variants": [{"path": path, "repo": "some/repo", **_kind(path)} for path in paths]}
        for name, paths in FILES.items()
    }
    components["transformer"] |= more
    architecture = {"transformer": {}, "vae": {}}
    return find({**MINIMAL, "architecture": architecture, "weights": {"components": components}})


def _kind(path: str) -> dict[str, str]:
    return {"stored_as": "int8", "dtype": "float16"} if "int8" in path else {}


def place(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12")


def test_a_model_is_here_when_each_component_is(tmp_path: Path) -> None:
    workspace, root = Workspace(tmp_path), tmp_path / "checkpoints"
    definition = parts()
    assert set(catalog.presence(definition, workspace).missing) == set(FILES)
    place(root / "net_quanto_fp16_int8.safetensors", root / "the_vae.safetensors")
    found = catalog.presence(definition, workspace)
    assert (found.is_complete, list(found.missing), found.size) == (False, ["tokenizer"], None)
    place(root / "umt5/tokenizer.json")
    found = catalog.presence(definition, workspace)
    assert (found.is_complete, found.missing, found.size) == (True, {}, 6)
    assert found.files["transformer"] == (root / "net_quanto_fp16_int8.safetensors",)
    place(root / "net_bf16.safetensors")
    assert catalog.presence(definition, workspace).files["transformer"][0].name == "net_bf16.safetensors"
    eight = catalog.presence(definition, workspace, stored_as="int8")
    assert eight.files["transformer"][0].name == "net_quanto_fp16_int8.safetensors"
    assert eight.files["vae"], "a component without the kind gives what it has"


def test_modules_lie_over_a_network_unless_it_holds_them(tmp_path: Path) -> None:
    workspace, root = Workspace(tmp_path), tmp_path / "checkpoints"
    whole = {"path": "whole.safetensors", "holds_modules": True}
    base = {"path": "base.safetensors"}
    definition = parts(variants=[base, whole], modules=[[{"path": "module.safetensors"}]])
    place(root / "base.safetensors", root / "the_vae.safetensors", root / "umt5/tokenizer.json")
    assert list(catalog.presence(definition, workspace).missing) == ["transformer module 1"]
    place(root / "whole.safetensors")
    assert catalog.presence(definition, workspace).files["transformer"] == (root / "whole.safetensors",)
    (root / "whole.safetensors").unlink()
    place(root / "module.safetensors")
    here = catalog.presence(definition, workspace).files["transformer"]
    assert [file.name for file in here] == ["base.safetensors", "module.safetensors"]


def test_a_network_without_a_file_is_not_here(tmp_path: Path) -> None:
    """Its definition names files for all components but one that it describes."""
    file = tmp_path / "a.safetensors"
    place(file)
    components = {"vae": {"variants": [{"path": str(file)}]}}
    data = {**MINIMAL, "weights": {"components": components}}
    workspace = Workspace(tmp_path)
    assert catalog.presence(find({**data, "architecture": {"vae": {}}}), workspace).is_complete
    assert not catalog.presence(find({**data, "architecture": {"vae": {}, "transformer": {}}}), workspace).is_complete


def test_files_are_found_where_other_programs_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "wanlab.toml").write_text('[checkpoints]\nwangp = "Wan2GP"\ncomfyui = "ComfyUI"\nhub = "hub"\n')
    roots = Workspace(tmp_path).roots
    assert [root.kind for root in roots] == ["folder", "wangp", "wangp", "comfyui", "hub", "hub"]
    source = FileSource(path="split_files/diffusion_models/net.safetensors", repo="some/repo")
    snapshot = "models--some--repo/snapshots/c0ffee/split_files/diffusion_models/net.safetensors"
    for file in (
        f"hf/hub/{snapshot}",
        f"hub/{snapshot}",
        "ComfyUI/models/unet/wan/net.safetensors",
        "ComfyUI/models/diffusion_models/net.safetensors",
        "Wan2GP/net.safetensors",
        "Wan2GP/ckpts/net.safetensors",
        "checkpoints/some/repo/split_files/diffusion_models/net.safetensors",
    ):
        place(tmp_path / file)  # each is found before those that were there
        assert catalog.find_component_file(source, Workspace(tmp_path).roots) == tmp_path / file


def test_a_file_whose_name_says_nothing_is_found_in_its_own_folder_only(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    names = ["model.safetensors", "transformer/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"]
    for name in names:
        place(root / name)
        source = FileSource(path=name, repo="some/repo")
        assert catalog.find_component_file(source, Workspace(tmp_path).roots) is None
        place(root / "repo" / name)
        assert catalog.find_component_file(source, Workspace(tmp_path).roots) == root / "repo" / name


def test_an_index_is_complete_with_its_shards(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints" / "repo"
    index = root / "net.safetensors.index.json"
    place(root / "net-1.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "net-1.safetensors", "b": "net-2.safetensors"}}))
    source = FileSource(path="net.safetensors.index.json", repo="some/repo")
    assert catalog.find_component_file(source, Workspace(tmp_path).roots) is None
    place(root / "net-2.safetensors")
    assert catalog.find_component_file(source, Workspace(tmp_path).roots) == index
    local = FileSource(path=str(index))
    assert catalog.find_component_file(local, []) == index
    (root / "net-1.safetensors").unlink()
    assert catalog.find_component_file(local, []) is None


def test_the_wanted_revision_of_the_hub_is_taken(tmp_path: Path) -> None:
    place_of = tmp_path / "checkpoints" / "models--some--repo"
    for commit in ("aaa", "bbb"):
        place(place_of / "snapshots" / commit / "net.safetensors")
    (place_of / "refs").mkdir()
    (place_of / "refs" / "main").write_text("bbb")
    roots = Workspace(tmp_path).roots

    def commit_of(revision: str | None) -> str | None:
        found = catalog.find_component_file(
            FileSource(path="net.safetensors", repo="some/repo", revision=revision), roots
        )
        return found and found.parent.name

    assert (commit_of(None), commit_of("aaa"), commit_of("main"), commit_of("ccc")) == ("bbb", "aaa", "bbb", None)


KINDS = {
    "bf": {"stored_as": "float", "dtype": "bfloat16"},
    "fp": {"stored_as": "float", "dtype": "float16"},
    "i_bf": {"stored_as": "int8", "dtype": "bfloat16"},
    "i_fp": {"stored_as": "int8", "dtype": "float16"},
    "f8": {"stored_as": "fp8"},
}
V = {name: FileSource(path=name, **kind) for name, kind in KINDS.items()}


@pytest.mark.parametrize(
    ("offered", "stored_as", "dtype", "present", "wanted"),
    [
        ("bf i_bf i_fp", "int8", "float16", "", "i_fp"),
        ("bf i_bf i_fp", "int8", "float32", "", "i_bf"),
        ("bf i_bf i_fp", "int8", "float16", "i_bf", "i_bf"),  # what is here wins within a kind
        ("bf i_bf i_fp", "int8", "float16", "bf", "i_fp"),  # but not over the kind
        ("bf f8", "int8", None, "", "f8"),
        ("bf i_bf", "fp8", None, "", "i_bf"),
        ("bf fp", "int8", "float16", "", "fp"),  # neither of 8 bits: the kind of the first
        ("i_bf", "float", None, "", "i_bf"),  # the only one
        ("bf fp i_bf", "float", "float16", "", "fp"),
        ("bf fp i_bf", "auto", "float16", "", "fp"),
        ("bf fp i_bf", "auto", None, "i_bf", "i_bf"),
        ("bf fp i_bf f8", "auto", None, "f8 i_bf fp", "fp"),  # floats first
        ("bf i_bf f8", "auto", None, "f8 i_bf", "i_bf"),  # then as they are listed
        ("bf i_bf f8", "gguf", None, "", "bf"),
    ],
)
def test_one_variant_is_chosen(offered: str, stored_as: str, dtype: str | None, present: str, wanted: str) -> None:
    variants = [V[name] for name in offered.split()]
    here = {V[name] for name in present.split()}
    assert catalog.choose(variants, stored_as, dtype, here).path == wanted


def test_a_kind_that_no_component_has_is_refused() -> None:
    for stored_as in ("auto", "float", "int8"):
        catalog.check_stored_as(parts(), stored_as)
    with pytest.raises(WanlabError, match="no transformer that is stored as gguf") as caught:
        catalog.check_stored_as(parts(), "gguf")
    assert caught.value.choices == ("auto", "float", "int8")


def test_the_transformer_decides_which_kinds_a_model_has() -> None:
    """Not its text encoder, which comes in int8 for all; what is only a folder has floats only."""
    for name, what in {"wan_tiny": "file", "wan_t2v_1_3b": "transformer"}.items():
        catalog.check_stored_as(find(name), "float")
        with pytest.raises(WanlabError, match=f"{name} has no {what} that is stored as int8") as caught:
            wanlab.load(name, device="cpu", stored_as="int8")
        assert caught.value.choices == ("auto", "float")
    catalog.check_stored_as(find("vace_14b"), "int8")
    for call in (lambda: catalog.check_stored_as(parts(), "int9"), lambda: catalog.choose((V["bf"],), "int9")):
        with pytest.raises(WanlabError, match=r"'int9'. Choices: auto, float, fp8, gguf, int8"):
            call()


def test_of_many_choices_only_the_nearest_are_shown() -> None:
    """Where the remedy says how to list all; a short list stays whole."""
    many = [f"name_{i:02}" for i in range(13)]
    assert unknown("name", "name_1", many, remedy="`names` lists all").choices[0].startswith("name_")
    assert len(unknown("name", "name_1", many, remedy="`names` lists all").choices) == 5
    assert unknown("name", "zzz", many, remedy="`names` lists all").choices == ()
    assert unknown("name", "name_1", many).choices == tuple(many)
    assert unknown("name", "name_1", many[:12], remedy="`names` lists all").choices == tuple(many[:12])
