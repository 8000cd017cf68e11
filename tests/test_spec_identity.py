"""Ids and schema versions: equal everywhere, unmoved by what is added later."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from wanlab.errors import WanlabError
from wanlab.registry import CACHES, GUIDANCE
from wanlab.spec import (
    PARTS,
    GenerationSpec,
    HashDefault,
    MediaRef,
    Part,
    Unhashed,
    canonical_json,
    content,
    content_id,
)
from wanlab.spec import migrations as migrations_module
from wanlab.spec.part import marker

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(GOLDEN.glob("spec_v*.json"))


def golden(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# Golden files: one a version, for ever. Never edit one; a new schema or field gets a migration or a HashDefault.


def test_there_is_a_golden_file_of_every_version() -> None:
    assert [p.name for p in VERSIONS] == [f"spec_v{n}.json" for n in range(1, migrations_module.SCHEMA + 1)]


@pytest.mark.parametrize("path", VERSIONS, ids=lambda p: p.stem)
def test_old_specs_are_read_and_keep_their_ids(path: Path) -> None:
    for entry in golden(path)["specs"]:
        spec = GenerationSpec.from_json(entry["spec"])
        assert spec.id == entry["id"], entry["about"]
        assert GenerationSpec.from_json(spec.to_json()).id == entry["id"]
        assert content(spec)["model"] == entry["spec"]["model"]


def test_what_is_hashed_is_the_same_bytes() -> None:
    """Nothing of the interpreter enters an id: not its repr, its order of keys or its version."""
    lines = (GOLDEN / "canonical_v1.jsonl").read_bytes().splitlines()
    entries = golden(GOLDEN / "spec_v1.json")["specs"]
    for entry, line in zip(entries, lines, strict=True):
        assert canonical_json(GenerationSpec.from_json(entry["spec"]).content()) == line, entry["about"]
        assert hashlib.sha256(line).hexdigest().startswith(entry["id"])


def test_numbers_and_text_have_one_spelling() -> None:
    numbers = {"b": [1e-7, 1e22, 1e16, 5e-324, 0.1 + 0.2, -0.0, 2**63 - 1, True, None]}
    assert canonical_json(numbers) == (
        b'{"b":[1e-07,1e+22,1e+16,5e-324,0.30000000000000004,0.0,9223372036854775807,true,null]}'
    )
    assert canonical_json({"b": "\u2028\x7f/", "a": {"é": {}, "c": "🪁"}}) == (
        rb'{"a":{"c":"\ud83e\ude81"},"b":"\u2028\u007f/"}'
    )


def test_the_newest_golden_file_has_every_field_that_has_no_hash_default() -> None:
    """A field added to a released schema needs a HashDefault, or ids would move."""
    document = golden(VERSIONS[-1])["specs"][0]["spec"]
    for part, cls in PARTS.items():
        for name, field in cls.model_fields.items():
            assert name in document[part] or marker(field, HashDefault), f"{part}.{name} needs a HashDefault"
    fields = golden(VERSIONS[-1])["media_ref"]
    added = {n for n, f in MediaRef.model_fields.items() if not marker(f, HashDefault) and not marker(f, Unhashed)}
    assert added <= set(fields)


def test_the_newest_golden_file_has_every_option_that_has_no_hash_default() -> None:
    known = golden(VERSIONS[-1])["options"]
    for kind, registry in (("cache", CACHES), ("guidance", GUIDANCE)):
        for method, options in known[kind].items():
            cls = getattr(registry.get(method), "Options", Part)
            for name, field in cls.model_fields.items():
                assert name in options or marker(field, HashDefault), f"{kind} {method}: {name} needs a HashDefault"


# The same id everywhere

PRINT_IDS = """
import json, sys
sys.path.insert(0, {root!r})
from wanlab.spec import GenerationSpec
print([GenerationSpec.from_json(e["spec"]).id for e in json.load(open({file!r}, encoding="utf-8"))["specs"]])
"""


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_ids_are_equal_in_another_process(seed: str, tmp_path: Path) -> None:
    code = PRINT_IDS.format(root=str(ROOT), file=str(VERSIONS[-1]))
    environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str([e["id"] for e in golden(VERSIONS[-1])["specs"]])


MAKE_SPEC = """
import sys
sys.path.insert(0, {root!r})
from wanlab.spec import GenerationSpec
spec = GenerationSpec.of({{"model": "wan_tiny", "guidance": "cfg"}}, prompt="a", cache="none", attention="auto", seed=3)
GenerationSpec.from_json(spec.with_(sampler="euler").to_json())
GenerationSpec.model_json_schema()
print([m for m in ("torch", "diffusers", "transformers", "numpy", "wanlab.sampling") if m in sys.modules])
"""


def test_making_and_reading_a_spec_imports_no_method(tmp_path: Path) -> None:
    code = MAKE_SPEC.format(root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_order_of_settings_is_no_part_of_the_id() -> None:
    document = GenerationSpec(model="m", prompt="x", seed=3).to_dict()
    backwards = {k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in reversed(document.items())}
    assert GenerationSpec.from_json(backwards).id == GenerationSpec.from_json(document).id


def test_every_setting_moves_the_id() -> None:
    spec = GenerationSpec(model="m")
    picture = {"sha256": "ab" * 32, "kind": "image", "name": "a.png"}
    changes: dict[str, Any] = {
        "model": "n", "dtype": "float32", "vae_dtype": "float32", "prompt": "p", "negative_prompt": "n",
        "max_text_tokens": 5, "width": 32, "height": 32, "num_frames": 5, "fps": 8, "sampler": "euler", "num_steps": 3,
        "flow_shift": 1, "seed": 1, "sigmas": [1, 0], "expert_boundary": 0.5, "guidance_scale": 1,
        "guidance_scale_2": 1, "batch_branches": True, "on_oom": "retry", "compile_mode": "blocks", "crf": 0,
        "strip_prompt": True, "image": picture, "last_image": picture, "video": picture, "mask": picture,
        "audio": picture, "references": [picture], "guidance": "cfg_interval", "stored_as": "fp8", "video_2": picture,
        "mask_2": picture, "pose_video": picture, "face_video": picture, "fit": "pad", "control_scale": [0.5],
        "control_scale_2": [0.5], "denoising_strength": 0.5, "masking_strength": 0.5, "riflex": "on",
        "unload": "switch", "ar_step": 5, "causal_block_size": 5,
    }  # fmt: skip
    keyframe = spec.with_(keyframes=[picture], keyframe_positions=[0])
    phases = spec.with_(phase_scales=[5, 1], phase_boundaries=[0.9])
    pairs = [keyframe, keyframe.with_(keyframe_positions=[-1]), phases, phases.with_(phase_boundaries=[0.8])]
    only_one_value = {"quantisation", "loras"}
    in_pairs = {"keyframes", "keyframe_positions", "phase_scales", "phase_boundaries"}
    assert set(changes) | only_one_value | in_pairs >= set(GenerationSpec(model="m").flat()) - {
        "cache", "attention", "memory", "window",
    }  # fmt: skip
    ids = {spec.id, *(spec.with_(**{name: value}).id for name, value in changes.items()), *(s.id for s in pairs)}
    assert len(ids) == len(changes) + len(pairs) + 1


def test_auto_stays_the_word() -> None:
    spec = GenerationSpec(model="m")
    assert content(spec)["weights"]["dtype"] == "auto"
    assert spec.id != spec.with_(dtype="float32").id


def test_numbers_that_are_equal_hash_equally() -> None:
    spec = GenerationSpec(model="m")
    assert spec.with_(guidance_scale=5).id == spec.with_(guidance_scale=5.0).id
    assert spec.with_(guidance_scale=-0.0).id == spec.with_(guidance_scale=0.0).id


def test_a_files_name_is_no_part_of_the_id() -> None:
    spec = GenerationSpec(model="m")
    one = spec.with_(image={"sha256": "ab" * 32, "kind": "image", "name": "a.png"})
    two = spec.with_(image={"sha256": "ab" * 32, "kind": "image", "name": "b.png"})
    assert one != two
    assert one.id == two.id
    assert one.id != spec.with_(image={"sha256": "cd" * 32, "kind": "image"}).id


# What is added later


class First(Part):
    steps: int = 3


class Later(Part):
    steps: int = 4
    """Its default has changed since."""
    gain: Annotated[float, HashDefault(0.0)] = 1.0
    """New; until then the program did what 0.0 does."""
    layers: Annotated[tuple[int, ...], HashDefault([])] = ()


def test_a_later_field_at_its_hash_default_moves_no_id() -> None:
    old = content_id(content(First(steps=3)))
    assert content_id(content(Later(steps=3, gain=0.0))) == old
    assert content_id(content(Later(steps=3, gain=0))) == old
    assert content_id(content(Later(steps=3))) != old
    assert content_id(content(Later(steps=3, gain=0.0, layers=[1]))) != old


class OldCache:
    Options = First


class NewCache:
    Options = Later


def test_option_defaults_are_part_of_the_id_and_frozen_in_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CACHES._entries, "test_grows", OldCache)
    spec = GenerationSpec(model="m")
    old = spec.with_(cache="test_grows")
    assert old.id == spec.with_(cache="test_grows", cache__steps=3).id
    recorded = old.to_json()
    assert json.loads(recorded)["cache"]["options"] == {"steps": 3}

    monkeypatch.setitem(CACHES._entries, "test_grows", NewCache)
    again = GenerationSpec.from_json(recorded)
    assert again.id == old.id
    assert again.cache.bind() == Later(steps=3, gain=0.0)
    assert spec.with_(cache="test_grows").cache.bind() == Later(steps=4, gain=1.0)
    assert spec.with_(cache="test_grows").id != old.id


class LaterCompile(PARTS["compile"]):
    fullgraph: Annotated[bool, HashDefault(False)] = True
    """Added later, with another default than what the program did before."""


class LaterSpec(GenerationSpec):
    compile: LaterCompile = LaterCompile()


def test_a_setting_that_a_document_lacks_reads_as_its_hash_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from wanlab.spec import generation
    from wanlab.spec.changes import Layout

    old = GenerationSpec(model="m", seed=3)
    monkeypatch.setattr(generation, "LAYOUT", Layout(("model", "schema"), {**PARTS, "compile": LaterCompile}))
    read = LaterSpec.from_json(old.to_json())
    assert read.compile.fullgraph is False
    assert read.id == old.id
    new = LaterSpec.of({"model": "m"}, seed=3)
    assert new.compile.fullgraph is True
    assert new.id != old.id


def test_migrations_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(document: dict[str, Any]) -> dict[str, Any]:
        sampling = dict(document["sampling"])
        sampling["num_steps"] = sampling.pop("steps")
        return {**document, "sampling": sampling}

    def double(document: dict[str, Any]) -> dict[str, Any]:
        sampling = document["sampling"]
        return {**document, "sampling": {**sampling, "num_steps": 2 * sampling["num_steps"]}}

    monkeypatch.setitem(migrations_module.MIGRATIONS, 1, rename)
    monkeypatch.setitem(migrations_module.MIGRATIONS, 2, double)
    old = {"schema": 1, "model": "m", "sampling": {"steps": 4}}
    kept = json.dumps(old)
    new = migrations_module.upgrade(old, 3)
    assert new == {"schema": 3, "model": "m", "sampling": {"num_steps": 8}}
    assert json.dumps(old) == kept
    assert migrations_module.upgrade({**new, "schema": 2}, 3)["sampling"]["num_steps"] == 16
    with pytest.raises(WanlabError, match="Upgrade wanlab"):
        migrations_module.upgrade({"schema": 4}, 3)


def test_schema_is_dumped_under_its_own_name() -> None:
    assert GenerationSpec(model="m").to_dict()["schema"] == migrations_module.SCHEMA

    class Record(Part):
        schema_version: int = Field(1, alias="schema")

    assert Record().model_dump(by_alias=True) == {"schema": 1}
