"""A user's finetunes, ours and WanGP's: references, merging, faults with their place; and a user's own settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wanlab import catalog, weights
from wanlab.catalog import Definition, DefinitionError, find
from wanlab.compat.definition import convert, file_source
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.workspace import Workspace

HUB = "https://huggingface.co/DeepBeepMeep/Wan2.1/resolve/main"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a finetune: a dictionary, or text as it is."""

    def make(name: str, data: dict[str, Any] | str) -> Path:
        path = tmp_path / "finetunes" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(data if isinstance(data, str) else json.dumps(data, indent=1), "utf-8")
        return path

    return make


@pytest.fixture
def here(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def wangp(*urls: str, **more: Any) -> dict[str, Any]:
    return {"model": {"name": "Mine", "architecture": "t2v", "URLs": list(urls), **more}}


def paths(definition: Definition, component: str = "transformer") -> list[str]:
    return [source.path for source in definition.weights.components[component].variants]


# Ours


def test_a_finetune_says_only_what_differs(write: Write, here: Workspace) -> None:
    base = find("wan_t2v_14b")
    write("mine", {"base": "t2v", "title": "Mine", "spec": {"num_steps": 12}, "constants": {"x": 1}})
    mine = find("mine", here)
    assert (mine.id, mine.title, mine.family) == ("mine", "Mine", "wan")
    assert mine.spec["sampling"] == {**base.spec["sampling"], "num_steps": 12}
    assert mine.spec["text"] == base.spec["text"]
    assert mine.constants == {**base.constants, "x": 1}
    assert (mine.weights, mine.architecture) == (base.weights, base.architecture)
    assert (mine.aliases, mine.description) == ((), ""), "names and texts are not inherited"
    with pytest.raises(WanlabError, match="Unknown model"):
        find("mine", Workspace(here.root / "elsewhere"))


def test_weights_of_its_own_leave_the_bases_folder(write: Write, here: Workspace) -> None:
    """Another network is not in the folder of the base, whose VAE and text encoder it keeps."""
    base = find("wan_t2v_14b")
    own = {"variants": [{"path": "/disk/mine.safetensors"}]}
    write("mine", {"base": "t2v", "weights": {"components": {"transformer": own}}})
    mine = find("mine", here).weights
    assert (mine.repo, mine.files) == (None, base.weights.files)
    assert paths(find("mine", here)) == ["/disk/mine.safetensors"]
    assert mine.components["vae"] == base.weights.components["vae"]
    write("bare", {"base": "t2v", "weights": {"folder": "models/bare", "components": None}})
    bare = find("bare", here).weights
    assert (bare.components, bare.folder) == ({}, str(here.root / "models/bare"))


def test_one_called_as_a_shipped_model_changes_that_one(write: Write, here: Workspace) -> None:
    shipped = find("wan_t2v_1_3b")
    for name in ("wan_t2v_1_3b", "t2v_1.3B"):
        path = write(name, {"title": "Changed", "spec": {"num_steps": 9}})
        for alias in ("wan_t2v_1_3b", "t2v_1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"):
            mine = find(alias, here)
            assert (mine.id, mine.title, mine.aliases) == ("wan_t2v_1_3b", "Changed", shipped.aliases)
            assert mine.spec["sampling"]["num_steps"] == 9
            assert mine.weights == shipped.weights
        path.unlink()
    assert find("t2v_1.3B").title == shipped.title


def test_what_ships_does_not_follow_a_changed_base(write: Write, here: Workspace) -> None:
    """A finetune that refers to the changed model does; a shipped variant of it stays what it was."""
    write("t2v", {"constants": {"x": 1}})
    write("mine", {"base": "t2v"})
    assert find("mine", here).constants["x"] == 1
    assert find("vace_14b", here) == find("vace_14b")
    write("t2v", "{")
    assert find("vace_14b", here) == find("vace_14b")
    with pytest.raises(WanlabError, match=r"t2v\.json"):
        find("mine", here)


def test_a_dictionary_may_name_local_files() -> None:
    files = {"transformer": "/disk/net.safetensors", "vae": "~/vae.safetensors"}
    components = {name: {"variants": [{"path": path}]} for name, path in files.items()}
    mine = find({"id": "mine", "base": "wan_t2v_1_3b", "weights": {"components": components}})
    assert {name: paths(mine, name) for name in files} == {name: [path] for name, path in files.items()}
    assert all(mine.weights.components[name].variants[0].is_local for name in files)
    assert mine.architecture == find("wan_t2v_1_3b").architecture


def test_files_of_another_model_are_referred_to_by_its_name() -> None:
    module = [{"path": "extra.safetensors"}]
    mine = find(
        {
            "id": "mine",
            "base": "vace_14b",
            "weights": {
                "components": {
                    "vae": "wan22_ti2v_5b",
                    "transformer": {
                        "variants": ["t2v_fusionix", {"path": "more.safetensors"}],
                        "modules": ["vace_14B", module],
                    },
                }
            },
        }
    )
    assert paths(mine) == [*paths(find("t2v_fusionix")), "more.safetensors"]
    assert paths(mine, "vae") == paths(find("wan22_ti2v_5b"), "vae")
    vace = find("vace_14b").weights.components["transformer"].modules
    assert [len(m) for m in mine.weights.components["transformer"].modules] == [len(vace[0]), 1]


def test_two_experts_stay_alike(write: Write, here: Workspace) -> None:
    """`"transformer_2": "transformer"` means the second expert, whatever a later definition makes of the first."""
    write("mine", {"base": "wan22_t2v_a14b", "architecture": {"transformer": {"num_layers": 3}}})
    mine = find("mine", here).architecture
    assert mine["transformer"] == mine["transformer_2"]
    assert mine["transformer"]["num_layers"] == 3


def test_a_lora_is_what_a_definition_lacks() -> None:
    mine = find({"id": "mine", "base": "t2v", "loras": [{"path": "a.safetensors", "multiplier": "0;1"}]})
    assert "cannot apply LoRAs yet" in mine.missing
    assert mine.loras[0].multiplier == "0;1"
    assert find({"id": "mine", "base": "multitalk"}).missing == find("multitalk").missing


# WanGP's


def test_wangps_finetune(write: Write, here: Workspace) -> None:
    data = wangp(f"{HUB}/a_mbf16.safetensors", f"{HUB}/a_quanto_mfp16_int8.safetensors", description="d", group="wan")
    settings = {"num_inference_steps": 8, "guidance_scale": 1, "resolution": "1280x720", "flow_shift": 5, "seed": -1}
    write("mine", {**data, **settings, "negative_prompt": "", "slg_switch": 0})
    mine, base = find("mine", here), find("wan_t2v_14b")
    assert (mine.id, mine.title, mine.description, mine.family) == ("mine", "Mine", "d", "wan")
    sources = mine.weights.components["transformer"].variants
    assert [(s.repo, s.path, s.stored_as, s.dtype) for s in sources] == [
        ("DeepBeepMeep/Wan2.1", "a_mbf16.safetensors", "float", "bfloat16"),
        ("DeepBeepMeep/Wan2.1", "a_quanto_mfp16_int8.safetensors", "int8", "float16"),
    ]
    spec = GenerationSpec.of({**mine.spec, "model": "mine"})
    assert (spec.size.width, spec.size.height, spec.sampling.num_steps, spec.sampling.flow_shift) == (1280, 720, 8, 5)
    assert spec.text.negative_prompt == base.spec["text"]["negative_prompt"], "an empty one means the model's"
    unread = {"model": {"group": "wan"}, "settings": {"seed": -1, "negative_prompt": "", "slg_switch": 0}}
    assert mine.extra == {"wangp": unread}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{HUB}/umt5/a-bf16.safetensors", {"repo": "DeepBeepMeep/Wan2.1", "path": "umt5/a-bf16.safetensors"}),
        (f"{HUB.replace('main', 'v2')}/a.safetensors?download=true", {"revision": "v2", "path": "a.safetensors"}),
        ("https://a.b/c/d_fp8.safetensors?x=1", {"url": "https://a.b/c/d_fp8.safetensors?x=1", "stored_as": "fp8"}),
        ("https://a.b/c/d.safetensors?x=1", {"path": "d.safetensors"}),
        ("ckpts/a_fp16.safetensors", {"path": "ckpts/a_fp16.safetensors", "dtype": "float16"}),
        ("ckpts\\a-Q8_0.gguf", {"path": "ckpts/a-Q8_0.gguf", "stored_as": "gguf"}),
    ],
)
def test_wangps_names_of_files(text: str, wanted: dict[str, str]) -> None:
    found = file_source(text)
    assert {k: found[k] for k in wanted} == wanted
    assert ("repo" in found) == ("huggingface" in text)
    catalog.FileSource(**found)


def test_wangps_references_and_modules(write: Write, here: Workspace) -> None:
    write("a", {"model": {"name": "A", "architecture": "vace_14B", "URLs": "t2v", "modules": ["vace_14B"]}})
    write("b", {"model": {"name": "B", "architecture": "vace_14B", "URLs": "a", "URLs2": "t2v_2_2", "modules": "a"}})
    a, b = find("a", here), find("b", here)
    assert a.family == b.family == "vace"
    assert paths(a) == paths(b) == paths(find("t2v"))
    assert paths(b, "transformer_2") == paths(find("t2v_2_2"), "transformer_2")
    modules = find("vace_14b").weights.components["transformer"].modules
    for component in (
        a.weights.components["transformer"],
        *(b.weights.components[f"transformer{n}"] for n in ("", "_2")),
    ):
        assert component.modules == modules
    assert b.architecture["transformer_2"] == b.architecture["transformer"]
    each = [{"URLs": ["ckpts/high.safetensors"], "URLs2": ["ckpts/low.safetensors"]}]
    write(
        "c",
        {"model": {"name": "C", "architecture": "vace_14B", "URLs": "t2v_2_2", "URLs2": "t2v_2_2", "modules": each}},
    )
    c = find("c", here).weights.components
    found = [c[name].modules[0][0].path for name in ("transformer", "transformer_2")]
    assert found == ["ckpts/high.safetensors", "ckpts/low.safetensors"]
    write("d", wangp("ckpts/whole.safetensors", architecture="vace_14B"))
    assert find("d", here).weights.components["transformer"].modules == (), "its file has all"


def test_wangps_other_files(write: Write, here: Workspace) -> None:
    more = {
        "loras": [f"{HUB}/l1.safetensors", f"{HUB}/l2.safetensors", "l3.safetensors"],
        "loras_multipliers": [0.5, "0;1"],
        "preload_URLs": [f"{HUB}/p.safetensors"],
        "VAE_URLs": ["ckpts/vae_bf16.safetensors"],
        "text_encoder_URLs": ["ckpts/t5_bf16.safetensors", "ckpts/t5_quanto_int8.safetensors"],
        "text_encoder_folder": "umt5-xxl",
    }
    write("mine", wangp("a.safetensors", **more))
    mine = find("mine", here)
    assert [lora.multiplier for lora in mine.loras] == [0.5, "0;1", 1.0]
    assert [source.path for source in mine.preload] == ["p.safetensors"]
    assert paths(mine, "vae") == ["ckpts/vae_bf16.safetensors"]
    assert [s.stored_as for s in mine.weights.components["text_encoder"].variants] == ["float", "int8"]
    assert "cannot apply LoRAs" in mine.missing
    assert mine.extra["wangp"]["model"] == {"text_encoder_folder": "umt5-xxl"}
    write("other", wangp("b.safetensors", loras="mine"))
    assert find("other", here).loras == mine.loras


@pytest.mark.parametrize(
    ("settings", "two", "wanted"),
    [
        ({"guidance_phases": 2, "switch_threshold": 875, "guidance2_scale": 3}, True, (0.875, 3, (), ())),
        ({"switch_threshold": 900, "guidance2_scale": 3.5}, True, (0.9, 3.5, (), ())),
        (
            {"guidance_phases": 3, "switch_threshold": 965, "switch_threshold2": 800, "guidance2_scale": 1}
            | {"guidance3_scale": 1, "model_switch_phase": 2},
            True,
            (0.8, 3, (0.965, 0.8), (4, 1, 1)),
        ),
        ({"guidance_phases": 2, "switch_threshold": 500, "guidance2_scale": 1}, False, (None, None, (0.5,), (4, 1))),
        ({"guidance_phases": 1, "switch_threshold": 500}, False, (None, None, (), ())),
    ],
)
def test_wangps_phases(
    settings: dict[str, Any], two: bool, wanted: tuple[Any, ...], write: Write, here: Workspace
) -> None:
    data = wangp("a.safetensors", **({"URLs2": ["b.safetensors"]} if two else {}))
    write("mine", {**data, "guidance_scale": 4, **settings})
    spec = GenerationSpec.of({**find("mine", here).spec, "model": "mine"})
    guidance = spec.guidance
    found = (spec.sampling.expert_boundary, guidance.guidance_scale_2, guidance.phase_boundaries, guidance.phase_scales)
    assert found == wanted


def test_wangps_definition_of_a_shipped_model_changes_it(write: Write, here: Workspace) -> None:
    write("moviigen", {"model": {"visible": False}})
    write("vace_14B", {"model": {"name": "V", "URLs": ["ckpts/v.safetensors"]}, "num_inference_steps": 7})
    listed = [row.id for row in catalog.catalogue(here)]
    assert "wan_moviigen_14b" not in listed
    assert find("moviigen", here).id == "wan_moviigen_14b", "hidden, not gone"
    vace, shipped = find("vace_14b", here), find("vace_14b")
    assert (vace.title, paths(vace), vace.weights.repo) == ("V", ["ckpts/v.safetensors"], None)
    assert vace.weights.components["transformer"].modules == shipped.weights.components["transformer"].modules
    assert vace.spec["sampling"] == {**shipped.spec["sampling"], "num_steps": 7}


def test_formats_that_are_not_read_are_left_out() -> None:
    model = {"name": "a", "architecture": "t2v", "URLs": ["a_nvfp4.safetensors", "a_bf16.safetensors"]}
    [source] = convert({"model": model}, "a")["weights"]["components"]["transformer"]["variants"]
    assert source["path"] == "a_bf16.safetensors"
    with pytest.raises(WanlabError, match="no file in a format that wanlab reads"):
        convert({"model": {**model, "URLs": ["a_nvfp4.safetensors"]}}, "a")


# Faults

DEEP = '{"base": "t2v",\n"constants": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}"
FAULTS = {
    "not JSON": ('{\n"base": "t2v",\n"family": ', "not valid JSON.*line 3"),
    "empty": ("", "not valid JSON"),
    "a list": ("[1]", "no JSON object"),
    "twice": ('{\n"base": "t2v",\n"constants": {"x": 1,\n"x": 2}}', r"'x' is given twice \(line 4\)"),
    "twice, after a text": ('{\n"base": "\\"{",\n\n"base": "t2v"}', r"'base' is given twice \(line 4\)"),
    "NaN": ('{"base": "t2v",\n"constants": {"x": "NaN", "y": [NaN]}}', r"NaN is not a number of JSON \(line 2\)"),
    "infinite": ('{"base": "t2v",\n\n"constants": {"x": -Infinity}}', r"-Infinity .* \(line 3\)"),
    "too deep": (DEEP, r"nested too deeply \(line 2\)|nested deeper than 64 levels \(line 2\)"),
    "deep": ('{"base":\n' + "[" * 70 + "]" * 70 + "}", r"deeper than 64 levels \(line 2\)"),
    "unknown key": ('{"base": "t2v",\n"famly": 1}', "line 2: Unknown setting 'famly'.*Did you mean 'family'"),
    "inner key": ('{"base": "t2v",\n"weights": {\n"repos": "a/b"}}', "line 3: Unknown setting 'weights.repos'"),
    "type": ('{"base": "t2v",\n"visible":\n3}', "line 2: visible = 3 is not allowed"),
    "setting": ('{"base": "t2v",\n"spec": {\n"num_stepz": 3}}', "line 3: Unknown setting 'num_stepz'"),
    "unknown base": ('{"family": "wan",\n"base": "t2w"}', "line 2: Unknown model 't2w'.*Did you mean 't2v'"),
    "no family": ('{"title": "a"}', "family is missing"),
    "outside": (
        '{"base": "t2v", "weights": {"components": {"vae":\n{"variants": [{"path":\n"../../x.safetensors"}]}}}}',
        "line 3: .*'../../x.safetensors' leads outside the workspace",
    ),
    "folder outside": ('{"base": "t2v",\n"weights": {"folder": "a/../../b"}}', "line 2: .*'a/../../b' leads outside"),
    "wangp outside": ('{"model": {"architecture": "t2v",\n"URLs": ["../x.safetensors"]}}', "line 2: .*leads outside"),
    "wangp hub path": (
        f'{{"model": {{"architecture": "t2v",\n"URLs": ["{HUB}/../../x.safetensors"]}}}}',
        "leads outside",
    ),
    "wangp family": ('{"model": {\n"architecture": "hunyuan",\n"URLs": ["a"]}}', "line 2: Unknown model 'hunyuan'"),
    "wangp bare": ('{"model": {"URLs": ["a"]}}', "architecture is missing"),
    "wangp files": ('{"model": {"architecture": "t2v", "URLs": [3]}}', "model.URLs = .*Give a list of files"),
    "wangp http": ('{"model": {"architecture": "t2v",\n"URLs": ["http://a.b/c"]}}', "url = 'http://a.b/c'"),
    "absolute pattern": ('{"base": "t2v",\n"weights": {"files": ["/x/*"]}}', "line 2: .*leads outside"),
    "no pattern": ('{"base": "t2v",\n"weights": {"files": [""]}}', "line 2: .*leads outside"),
    "half a **": ('{"base": "t2v",\n"weights": {"files": ["a**"]}}', r"line 2: .*pattern 'a\*\*' is none"),
    "long folder": (f'{{"base": "t2v", "weights": {{"folder": "{"a" * 300}"}}}}', "is too long"),
    "long path": (
        f'{{"base": "t2v", "weights": {{"components": {{"vae": {{"variants": [{{"path": "{"a" * 300}"}}]}}}}}}}}',
        "is too long",
    ),
    "another home": ('{"base": "t2v",\n"weights": {"folder": "~nobody_here/x"}}', "line 2: .*a home that is not yours"),
    "repo outside": ('{"base": "t2v",\n"weights": {"repo": "../.."}}', "line 2: .*leads outside"),
    "long repo": (f'{{"base": "t2v",\n"weights": {{"repo": "a/{"b" * 300}"}}}}', "line 2: weights.repo"),
    "revision outside": ('{"base": "t2v",\n"weights": {"revision": "../../x"}}', "line 2: .*leads outside"),
    "asset outside": ('{"base": "t2v",\n"weights": {"asset": "/etc"}}', "line 2: .*leads outside"),
    "no such family": ('{"base": "t2v",\n"family": "wun"}', "line 2: Unknown family 'wun'.*Did you mean 'wan'"),
    "value": ('{"base": "t2v",\n"spec": {\n"num_steps": -3}}', "num_steps = -3"),
    "a shipped name": ('{"base": "t2v",\n"aliases": ["vace_14B"]}', "'vace_14B' already belongs to 'vace_14b'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_place_and_hides_nobody(fault: str, write: Write, here: Workspace) -> None:
    text, match = FAULTS[fault]
    path = write("broken", text)
    write("mine", {"base": "t2v"})
    rows = {row.id: row for row in catalog.catalogue(here)}
    assert len(rows) == len(catalog.catalogue(Workspace(here.root / "none"))) + 2
    assert not [row for row in rows.values() if row.error and row.id != "broken"]
    assert str(path) in rows["broken"].error
    with pytest.raises(WanlabError, match=f"(?s){match}") as caught:
        find("broken", here)
    assert str(caught.value) == rows["broken"].error
    assert str(caught.value).count(str(path)) == 1
    assert "broken" in repr(catalog.catalogue(here))
    assert find("mine", here).weights == find("t2v").weights


@pytest.mark.parametrize("name", ["..", ".", "\U0001f600" * 70])
def test_an_id_that_cannot_name_a_file_is_refused(name: str, write: Write, here: Workspace) -> None:
    write("broken", {"base": "t2v", "id": name})
    rows = [row for row in catalog.catalogue(here) if row.error]
    assert [row.id for row in rows] == [name]


def test_a_folder_that_may_not_be_read_hides_nobody(
    write: Write, here: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("closed", {"base": "t2v", "weights": {"folder": "closed"}})
    glob = Path.glob

    def refuse(self: Path, pattern: str) -> Any:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", refuse)
    rows = {row.id: row for row in catalog.catalogue(here)}
    assert len(rows) > 20
    assert [row.id for row in rows.values() if row.error] == ["closed"]
    assert "Permission denied" in rows["closed"].error
    with pytest.raises(WanlabError, match=r"cannot be looked for: .*closed"):
        weights.locate(find("closed", here), here)


def test_a_circle_is_told_with_its_chain(write: Write, here: Workspace) -> None:
    write("a", '{\n"base": "b"}')
    write("b", '{"base": "t2v", "weights": {"components":\n{"transformer": "c"}}}')
    write("c", {"model": {"name": "C", "architecture": "t2v", "URLs": "a"}})
    write("self", {"base": "self"})
    for name, chain in {"a": "a -> b -> c -> a", "b": "b -> c -> a -> b", "self": "self -> self"}.items():
        with pytest.raises(DefinitionError, match=f"leads back to itself: {chain}"):
            find(name, here)
    write("t2v", {"model": {"URLs": "t2v"}})
    with pytest.raises(DefinitionError, match=r"t2v\.json, line \d+: 't2v' leads back .*: wan_t2v_14b -> wan_t2v_14b"):
        find("t2v", here)
    assert sum(bool(row.error) for row in catalog.catalogue(here)) == 5


def test_ten_references_are_followed(write: Write, here: Workspace) -> None:
    for i in range(12):
        write(f"m{i}", {"base": f"m{i + 1}"})
    write("m12", {"family": "wan", "constants": {"x": 1}})
    with pytest.raises(DefinitionError, match=r"'m11' is more than 10 references away: m0 -> m1 -> .* -> m11"):
        find("m0", here)
    assert find("m2", here).constants == {"x": 1}


def test_two_files_of_one_id_are_told_apart(write: Write, here: Workspace) -> None:
    write("a", {"id": "mine", "base": "t2v"})
    write("b", {"id": "mine", "base": "t2v"})
    with pytest.raises(WanlabError, match=r"b\.json: the name 'mine' already belongs to 'mine'"):
        find("b", here)
    assert find("mine", here).id == "mine"


# The user's own settings


def test_a_users_defaults_lie_over_the_models(here: Workspace) -> None:
    definition = find("wan_t2v_14b")
    assert catalog.read_user_defaults(definition.id, here) == {}
    plain = GenerationSpec.of({**definition.spec, "model": "m"})
    assert GenerationSpec.of({**catalog.user_defaults(definition, here), "model": "m"}) == plain
    path = catalog.write_user_defaults(definition.id, {"num_steps": 8, "sampling.flow_shift": 4.0}, here)
    assert json.loads(path.read_text()) == {"schema": 1, "sampling": {"num_steps": 8, "flow_shift": 4.0}}
    found = catalog.user_defaults(definition, here)
    assert found["sampling"] == {**definition.spec["sampling"], "num_steps": 8, "flow_shift": 4.0}
    assert found["text"] == definition.spec["text"]
    path.write_text('{"guidance_scale": 2.5, "model": "wan_t2v_14b"}')  # flat, by hand
    assert catalog.read_user_defaults(definition.id, here) == {"guidance": {"guidance_scale": 2.5}}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"num_stepz": 3}', "Did you mean 'num_steps'"),
        ('{"num_steps": 0}', "num_steps"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": "1"}', "is not a version"),
    ],
)
def test_wrong_defaults_are_named_and_kept(text: str, match: str, here: Workspace) -> None:
    path = here.configs / "wan_t2v_14b.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(WanlabError, match=match) as caught:
        catalog.user_defaults(find("t2v"), here)
    assert str(path) in str(caught.value)
    assert path.read_text() == text
    with pytest.raises(WanlabError):
        catalog.write_user_defaults("../x", {}, here)
    with pytest.raises(WanlabError):
        catalog.write_user_defaults("wan_t2v_14b", {"num_steps": 0}, here)


def test_the_last_settings_are_kept_and_never_fatal(here: Workspace) -> None:
    spec = GenerationSpec.of({**find("t2v").spec, "model": "wan_t2v_14b"}, prompt="a kite", seed=7)
    assert catalog.read_last("wan_t2v_14b", here) is None
    assert catalog.save_last(spec, here) == ""
    assert catalog.read_last("wan_t2v_14b", here) == spec
    assert json.loads((here.configs / "wan_t2v_14b.last.json").read_text())["schema"] == 1
    assert catalog.read_user_defaults("wan_t2v_14b", here) == {}, "the last settings are no defaults"
    secret = spec.with_(strip_prompt=True)
    assert catalog.save_last(secret, here) == ""
    kept = catalog.read_last("wan_t2v_14b", here)
    assert kept is not None
    assert (kept.text.prompt, kept.sampling.seed) == ("", 7)
    blocked = Workspace(here.root / "blocked")
    blocked.root.mkdir()
    blocked.configs.write_text("a file where the folder belongs")
    assert "Cannot write" in catalog.save_last(spec, blocked)
    assert "refused" in catalog.save_last(spec.with_(model="../x"), here)


def test_a_full_spec_in_place_of_defaults_is_the_last_settings(here: Workspace) -> None:
    """Panels once kept the last settings where the defaults are now: a prompt must not become one unasked."""
    definition = find("wan_t2v_14b")
    spec = GenerationSpec.of({**definition.spec, "model": definition.id}, prompt="a kite", num_steps=3)
    path = here.configs / "wan_t2v_14b.json"
    path.parent.mkdir()
    path.write_text(spec.to_json(indent=2))
    assert catalog.read_user_defaults(definition.id, here) == {}
    assert catalog.default_spec(definition, here).sampling.num_steps == definition.spec["sampling"]["num_steps"]
    assert catalog.read_last(definition.id, here) == spec
    catalog.write_user_defaults(definition.id, {"num_steps": 8}, here)
    assert catalog.default_spec(definition, here).sampling.num_steps == 8
    assert catalog.read_last(definition.id, here) == spec, "what was there is kept"
    newer = spec.with_(seed=5)
    assert catalog.save_last(newer, here) == ""
    assert catalog.read_last(definition.id, here) == newer


def test_what_of_a_spec_may_become_defaults() -> None:
    definition = find("wan_t2v_14b")
    plain = GenerationSpec.of({**definition.spec, "model": definition.id})
    assert catalog.own_settings(definition, plain.with_(prompt="a kite", seed=5)) == {}
    spec = plain.with_(num_steps=8, guidance={"method": "cfg_interval", "start": 0.2})
    own = {"sampling.num_steps": 8, "guidance": "cfg_interval", "guidance.start": 0.2, "guidance.stop": 1.0}
    assert catalog.own_settings(definition, spec) == own


def test_a_users_definition_is_told_from_what_ships(write: Write, here: Workspace) -> None:
    """With its file, and never without a title."""
    mine = write("mine", {"family": "wan", "base": "wan_t2v_14b"})
    over = write("wan_t2v_1_3b", {"spec": {"sampling": {"num_steps": 9}}})
    write("bad", {"family": "wan", "base": "nobody"})
    rows = {row.id: row for row in catalog.catalogue(here)}
    assert (rows["mine"].title, rows["mine"].defined_in) == (find("wan_t2v_14b").title, str(mine))
    assert rows["wan_t2v_1_3b"].defined_in == str(over)
    assert rows["wan_tiny"].defined_in == ""
    assert all(row.title for row in rows.values())
    assert catalog.defined_in("t2v_1.3B", here) == over
    assert catalog.defined_in("wan_tiny", here) is None
    assert f"{rows['mine'].title} (yours)" in repr(catalog.catalogue(here))
    assert find({"id": "bare", "family": "wan"}, here).title == "bare"


def test_an_unknown_model_is_answered_with_the_nearest_sound_names(write: Write, here: Workspace) -> None:
    write("vace_14", {"family": "wan", "base": "nobody"})
    write("vace_145", {"family": "wan", "base": "vace_14"})
    (here.finetunes / "vace_146.json").write_text("{")
    write("vace_147", {"family": "wan", "base": "wan_t2v_14b"})
    with pytest.raises(WanlabError, match=r"Did you mean 'vace_14\w'.*`wanlab models` lists all") as caught:
        find("vace_148", here)
    assert 2 <= len(caught.value.choices) <= 5
    assert {"vace_14b", "vace_147"} <= set(caught.value.choices)
    assert not {"vace_14", "vace_145", "vace_146"} & set(caught.value.choices)
