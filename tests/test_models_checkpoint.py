"""What is loaded: another checkpoint, a damaged tokenizer, a bare folder, an unknown device are one error each."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_flux, tiny_wan
from wanlab import models
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec

Definition = dict[str, Any]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Definition]]:
    root = tmp_path_factory.mktemp("shipped")
    return {"wan": tiny_wan(root / "wan"), "wan2": tiny_wan(root / "wan2", 2), "flux": tiny_flux(root / "flux")}


@pytest.fixture
def copy(shipped: dict[str, tuple[Path, Definition]], tmp_path: Path) -> Callable[[str], tuple[Path, Definition]]:
    """A folder of one's own to damage, with its definition."""

    def make(name: str) -> tuple[Path, Definition]:
        folder, definition = shipped[name]
        mine = Path(shutil.copytree(folder, tmp_path / name))
        return mine, {**definition, "weights": {"folder": str(mine)}}

    return make


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes a key out."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


@pytest.mark.parametrize(
    ("name", "component", "key", "value"),
    [
        ("wan", "transformer", "num_layers", 5),
        ("wan", "transformer", "cross_attn_norm", False),
        ("wan", "vae", "temperal_downsample", [True, False, True]),
        ("wan", "text_encoder", "num_heads", 2),
        ("wan2", "transformer_2", "ffn_dim", 64),
        ("flux", "transformer", "guidance_embeds", False),
        ("flux", "vae", "shift_factor", 0.5),
        ("flux", "text_encoder_2", "d_kv", 4),
    ],
)
def test_another_architecture_is_refused(copy: Any, name: str, component: str, key: str, value: Any) -> None:
    """Named: the file, the key, both values, what to do; the key left out of the definition, the folder is accepted."""
    folder, definition = copy(name)
    edit(folder / component / "config.json", **{key: value})
    with pytest.raises(WanlabError, match="another checkpoint") as error:
        models.load(definition, device="cpu")
    wanted = definition["architecture"][component][key]
    for part in (str(folder / component / "config.json"), key, repr(value), repr(wanted), component, definition["id"]):
        assert part in str(error.value)
    models.load({**definition, "architecture": {}}, device="cpu")


def test_what_a_file_leaves_out_is_its_class_s_default(copy: Any) -> None:
    folder, definition = copy("wan")
    definition["architecture"]["transformer"] = {**definition["architecture"]["transformer"], "eps": 1e-6}
    edit(folder / "transformer" / "config.json", eps=None)
    models.load(definition, device="cpu")
    edit(folder / "transformer" / "config.json", patch_size=None, num_layers=None)
    with pytest.raises(WanlabError, match="num_layers = 40"):
        models.load(definition, device="cpu")


def test_a_folder_of_another_family_or_pipeline_is_refused(copy: Any) -> None:
    folder, definition = copy("wan")
    with pytest.raises(WanlabError, match=r"holds a WanPipeline, and the family 'flux' reads a FluxPipeline"):
        models.load({**definition, "family": "flux", "architecture": {}})
    edit(folder / "model_index.json", _class_name="WanAnimatePipeline")
    with pytest.raises(WanlabError, match="WanAnimatePipeline"):
        models.load(definition)
    (folder / "model_index.json").write_text("[1]")
    with pytest.raises(WanlabError, match="no JSON object"):
        models.load(definition)
    folder, definition = copy("flux")
    with pytest.raises(WanlabError, match="FluxPipeline"):
        models.load({**definition, "family": "wan"})


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "vae"])
def test_a_missing_or_strange_component_is_refused(copy: Any, name: str) -> None:
    folder, definition = copy("wan")
    for entry, says in (([None, None], f"lists no {name}"), (["x", "Strange"], "'Strange'"), ("x", "lists 'x'")):
        edit(folder / "model_index.json", **{name: entry})
        with pytest.raises(WanlabError, match=says):
            models.load(definition)
    edit(folder / "model_index.json", **{name: None})
    with pytest.raises(WanlabError, match=f"lists no {name}"):
        models.load({**definition, "architecture": {}})


def test_a_second_expert_tells_checkpoints_apart(copy: Any) -> None:
    """Wan 2.2's experts have the architecture of Wan 2.1's one network."""
    (one, definition), (two, other) = copy("wan"), copy("wan2")
    with pytest.raises(WanlabError, match=f"lists transformer_2, which {definition['id']} does not have"):
        models.load({**definition, "weights": {"folder": str(two)}})
    with pytest.raises(WanlabError, match=f"lists no transformer_2, which {other['id']} needs"):
        models.load({**other, "weights": {"folder": str(one)}})


@pytest.mark.parametrize("text", [POINTER, "", "{}", "[]", '{"a": NaN}'], ids=["pointer", "empty", "{}", "[]", "nan"])
@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_error(copy: Any, file: str, text: str) -> None:
    folder, definition = copy("wan")
    (folder / file).write_text(text)
    model = models.load(definition, device="cpu")
    with pytest.raises(WanlabError, match=r"Download this file again; a git-lfs pointer") as error:
        model.encode_text(model.spec())
    assert str(folder / file) in str(error.value)


def test_other_tokenizer_faults_name_the_folder(copy: Any) -> None:
    """Faults that only transformers and tokenizers see, who raise what they like."""
    folder, definition = copy("flux")
    model = models.load(definition, device="cpu")
    good = (folder / "tokenizer_2" / "tokenizer.json").read_text()
    for bad in ('{"model": 1}', '{"model": {"type": "Unigram", "vocab": []}}'):
        (folder / "tokenizer_2" / "tokenizer.json").write_text(bad)
        with pytest.raises(WanlabError, match="holds no tokenizer that can be read") as error:
            model.encode_text(model.spec())
        assert str(folder / "tokenizer_2") in str(error.value)
    (folder / "tokenizer_2" / "tokenizer.json").write_text(good)
    assert set(model.encode_text(model.spec())) == {"prompt"}


@pytest.mark.parametrize("name", ["wan", "flux"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_bare_folder_is_answered_with_its_definition(copy: Any, name: str, kind: type) -> None:
    """And the definition shown works as it stands."""
    folder, _ = copy(name)
    with pytest.raises(WanlabError, match="no id and no default settings") as error:
        models.load(kind(folder))
    shown = re.search(r"wanlab\.load\((\{.*\})\)", str(error.value))
    assert shown is not None
    model = models.load(ast.literal_eval(shown.group(1)), device="cpu")
    assert (model.id, model.family) == (folder.name, name)
    with pytest.raises(WanlabError, match=r"width is not given and .* has no default for it"):
        model.resolve(model.spec(guidance="embedded" if model.takes_guidance else "cfg"))


def test_a_folder_of_no_known_pipeline_is_one_error(tmp_path: Path) -> None:
    for text in (None, '{"_class_name": "OtherPipeline"}', "[]"):
        if text is not None:
            (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(WanlabError, match=r"Choices: FluxPipeline, .*WanPipeline"):
            models.load(tmp_path)


@pytest.mark.parametrize("device", ["mps", "meta", "gpu", "cuda:999", "cuda:-1", "cpu:1", None, torch.device("meta")])
def test_devices_are_the_cpu_and_the_gpus_that_are_there(shipped: Any, device: Any) -> None:
    with pytest.raises(WanlabError, match=r"no device .* Choices: auto, cpu"):
        models.load(shipped["wan"][1], device=device)
    assert models.load(shipped["wan"][1], device=torch.device("cpu")).device == torch.device("cpu")


def test_an_alias_is_the_id_of_the_model(shipped: Any) -> None:
    """One setting, one spec.id, whatever the model is called."""
    definition = {**shipped["wan"][1], "aliases": ["t2v_tiny"]}
    model = models.load(definition, device="cpu")
    spec = model.spec(prompt="x")
    assert model.spec(prompt="x", model="t2v_tiny") == spec
    aliased = spec.with_(model="t2v_tiny")
    assert aliased.id != spec.id == model.canonical(aliased).id
    assert model.canonical(spec) is spec
    assert model.resolve(aliased) == model.resolve(spec)
    with pytest.raises(WanlabError, match="is for model 'wan_tiny'"):
        model.spec(model="wan_tiny")


def test_a_spec_without_the_model_s_defaults_is_told_so(shipped: Any) -> None:
    model = models.load(shipped["wan"][1], device="cpu")
    with pytest.raises(WanlabError, match=r"width is not given: .* where it is 48\. Make specs with model\.spec"):
        model.resolve(GenerationSpec(model=model.id, prompt="x"))
