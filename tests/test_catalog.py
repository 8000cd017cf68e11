"""Definitions: every shipped one loads, names resolve, mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from wanlab import catalog
from wanlab.catalog import Definition, find
from wanlab.errors import WanlabError
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
    assert found.weights.asset or found.weights.repo
    assert len(found.constants["vae_stride"]) == len(found.constants["patch_size"]) == 3
    assert Definition.of(json.loads(found.model_dump_json(by_alias=True))) == found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_default_spec_is_a_spec(name: str) -> None:
    spec = GenerationSpec.of({**find(name).spec, "model": name})
    assert None not in (spec.size.width, spec.size.height, spec.size.num_frames, spec.text.max_text_tokens)
    assert len(spec.id) == 12


def test_names_of_two_models_never_clash() -> None:
    names = [name for d in map(find, SHIPPED) for name in (d.id, *d.aliases)]
    assert len(names) == len(set(names))


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
    assert "Wan-AI/Wan2.1-T2V-14B-Diffusers" in absent.remedy
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


def test_finding_imports_nothing_heavy() -> None:
    code = (
        "import sys; from wanlab.catalog import find; find('t2v'); "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'av', 'huggingface_hub') if m in sys.modules])"
    )
    root = Path(catalog.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
