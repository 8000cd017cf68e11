"""WanGP's settings of every version: what its own `fix_settings` made of them is in tests/golden/wangp, for ever."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from wanlab.compat import KEYS, MIGRATIONS, SETTINGS_VERSION, baseline, migrate, model_ids, stamped, wangp_model
from wanlab.compat import migrations as module
from wanlab.compat.keys import ATTACHMENTS
from wanlab.compat.mapping import GROUPS
from wanlab.errors import WanlabError
from wanlab.spec import LEAVES

GOLDEN = Path(__file__).parent / "golden" / "wangp"
CASES = [(path.stem, case) for path in sorted(GOLDEN.glob("*.json")) for case in json.loads(path.read_text())]
# Rows whose work a later row of the table does again wherever the architecture is known
DOUBLED = {
    "G is no letter of image_prompt_type",
    "video_prompt_type is there",
    "no references",
    "the first reference is the subject",
}


def test_the_table_has_wangp_s_113_keys() -> None:
    assert len(KEYS) == 113
    assert len(ATTACHMENTS) == 15
    assert set(baseline()) == set(KEYS) - set(ATTACHMENTS)
    values = baseline()
    assert values["custom_settings"] is not baseline()["custom_settings"]
    assert (values["NAG_tau"], values["flow_shift"], values["skip_steps_multiplier"]) == (3.5, 3, 1.75)


def test_every_key_has_a_converter_or_says_what_is_lacking() -> None:
    groups = {group.name: group for group in GROUPS}
    idle = {"client_id", "keep_intermediate_sliding_windows", "output_filename"}
    for key in KEYS.values():
        assert bool(key.converter) != bool(key.lacks) or key.name in idle, key.name
        if key.converter:
            assert set(key.leaves) == set(groups[key.converter].leaves), key.name
    assert {key.converter for key in KEYS.values()} - {""} == set(groups)
    assert {leaf for group in GROUPS for leaf in group.leaves} <= {*LEAVES, "guidance", "cache"}


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case['note']}" for name, case in CASES])
def test_golden(name: str, case: dict[str, Any]) -> None:
    before = copy.deepcopy(case["settings"])
    assert migrate(case["settings"]) == case["migrated"]
    assert case["settings"] == before, "migrate changed its input"


def test_versions_of_the_golden_files_are_those_of_the_table() -> None:
    boundaries = {m.below for m in MIGRATIONS if 2.1 < m.below < 100}
    assert {float(path.stem[8:12]) for path in GOLDEN.glob("version_*.json")} == boundaries | {2.24, 2.56}


def test_every_row_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a row, some golden file is read otherwise."""
    for i, row in enumerate(MIGRATIONS):
        if row.what in DOUBLED:
            continue
        monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS[:i] + MIGRATIONS[i + 1 :])
        assert any(_differs(case) for _, case in CASES), (i, row.what, row.below)


def _differs(case: dict[str, Any]) -> bool:
    try:
        return migrate(case["settings"]) != case["migrated"]
    except TypeError:  # a number is left where letters are expected
        return True


def test_the_version_is_never_rewritten_and_stamped_only_for_files() -> None:
    old = {"model_type": "infinitetalk", "video_prompt_type": "UV", "settings_version": 2.2, "audio_prompt_type": "A"}
    once = migrate(old)
    assert once["settings_version"] == 2.2
    assert once["video_prompt_type"] == "RUV"
    assert migrate(once)["video_prompt_type"] == "RRUV", "so what is written must be stamped"
    assert migrate(stamped(once)) == stamped(once)
    assert stamped(once)["settings_version"] == SETTINGS_VERSION
    assert stamped({"settings_version": 9.9})["settings_version"] == 9.9


def test_presets_without_a_version_are_read_as_238() -> None:
    preset = {"model_type": "animate", "video_prompt_type": "PV1"}
    assert migrate(preset)["video_prompt_type"] == "PV#1"
    assert migrate(preset, 2.38)["video_prompt_type"] == "PV1"


def test_rules_that_need_an_architecture_leave_an_unknown_one_alone() -> None:
    settings = {"model_type": "theirs", "video_prompt_type": "KIZ", "image_prompt_type": "QS", "settings_version": 2.74}
    assert migrate(settings) | settings == migrate(settings)


def test_models_are_found_by_id_base_and_file_name() -> None:
    assert len(model_ids()) == 217
    named = wangp_model({"model_type": "vace_14B_lightning_3p_2_2"})
    assert (named.architecture, named.handler, named.has_two_networks) == ("vace_14B_2_2", "wan", True)
    finetune = wangp_model({"model_type": "mine", "base_model_type": "i2v_2_2"})
    assert (finetune.id, finetune.architecture, finetune.has_two_networks) == ("mine", "i2v_2_2", True)
    assert wangp_model({"model_filename": "ckpts/wan2.1_Vace_1.3B_mbf16.safetensors"}).id == "vace_1.3B"
    assert wangp_model({}).id == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"video_prompt_type": ["V"]},
        {"image_prompt_type": ["S"]},
        {"tea_cache_setting": "2"},
        {"custom_settings": "x"},
        {"settings_version": "2.3"},
        {"settings_version": True},
        {"video_length": "ten s"},
        {"video_length": "0s"},
        {"video_length": "5s", "force_fps": -3},
        {"guidance_scale": "five"},
        {"activated_loras": "a.safetensors"},
    ],
    ids=str,
)
def test_values_of_a_wrong_kind_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(WanlabError, match="|".join(wrong)):
        migrate({"model_type": "t2v", **wrong})
