"""open_settings: every kind of file, the translation both ways, and nothing lost."""

from __future__ import annotations

import json
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wanlab
from wanlab import GenerationSpec
from wanlab.compat import KEYS, baseline, migrate, write_text
from wanlab.compat.keys import ATTACHMENTS
from wanlab.errors import WanlabError
from wanlab.runs import RunRecord, write_run
from wanlab.settings import Settings, open_settings
from wanlab.video import write_image, write_video

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = {
    name: json.loads((GOLDEN / "wangp" / f"{name}.json").read_text())[0]["settings"]
    for name in ("real_v6_3", "s25_vace_14b", "lightning_3_phases")
}
SMALL = {
    "type": "WanGP v8.6 by DeepBeepMeep - Wan",
    "model_type": "t2v_1.3B",
    "settings_version": 2.74,
    "prompt": "a kite",
    "seed": 7,
}
MODELS = [
    "t2v",
    "t2v_1.3B",
    "t2v_2_2",
    "i2v",
    "i2v_2_2",
    "vace_14B",
    "vace_14B_2_2",
    "flux",
    "hunyuan",
    "ltxv_13B",
    "x",
]


def quiet(given: Any, **options: Any) -> Settings:
    return Settings.of(given, **options)


def opened(path: Path, **options: Any) -> Settings:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_settings(path, **options)


def written(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_settings_json(tmp_path: Path) -> None:
    settings = wanlab.open_settings(written(tmp_path / "a.json", SMALL))
    assert settings.spec == wanlab.GenerationSpec.of(
        {**wanlab.catalog.find("wan_t2v_1_3b").spec, "model": "wan_t2v_1_3b"}, prompt="a kite", seed=7
    )
    assert settings.wangp == migrate(SMALL)
    assert (settings.kept, settings.not_yet, settings.attachments) == ({}, {}, {})


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.jpg", "a.webp"])
def test_what_wangp_wrote_into_a_file(tmp_path: Path, name: str) -> None:
    path, frames = tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8)
    if name == "a.mp4":
        write_video(path, frames, 16)
    else:
        Image.fromarray(frames[0]).save(path)
    write_text(path, SMALL)
    assert open_settings(path) == quiet(SMALL)


def test_the_json_beside_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(WanlabError, match=r"a\.json is not beside it"):
        open_settings(tmp_path / "a.png")
    written(tmp_path / "a.json", SMALL)
    assert open_settings(tmp_path / "a.png") == quiet(SMALL)


def test_a_queue_as_zip_and_as_json(tmp_path: Path) -> None:
    tasks = [{"id": i, "params": {**SMALL, "seed": i, "image_start": f"task{i}_image_start_0.png"}} for i in (1, 2)]
    with zipfile.ZipFile(tmp_path / "q.zip", "w") as archive:
        archive.writestr("queue.json", json.dumps(tasks))
        archive.writestr("task1_image_start_0.png", b"x")
    for path in (tmp_path / "q.zip", written(tmp_path / "q.json", tasks)):
        with pytest.raises(WanlabError, match=r"holds 2 tasks.*task=1"):
            open_settings(path)
        found = opened(path, task=2)
        assert found.spec.sampling.seed == 2
        assert found.attachments["image_start"][0].path == "task2_image_start_0.png"
        with pytest.raises(WanlabError, match="no task 3"):
            open_settings(path, task=3)
    assert open_settings(written(tmp_path / "one.json", [SMALL])).spec.sampling.seed == 7
    with pytest.raises(WanlabError, match="one task"):
        open_settings(written(tmp_path / "a.json", SMALL), task=2)


def test_our_own_files(tmp_path: Path) -> None:
    spec = GenerationSpec.of({"model": "wan_tiny"}, prompt="a circle", seed=3, num_steps=4)
    comment = json.dumps({"wanlab": {"spec": spec.to_dict(), "run": "0123"}})
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    write_run(tmp_path / "run", RunRecord(id="0123", status="ok", spec=spec.to_dict()), {"a.txt": b"x"})
    paths = [
        written(tmp_path / "spec.json", spec.to_json()),
        written(tmp_path / "hand.json", {"model": "wan_tiny", "prompt": "a circle", "seed": 3, "num_steps": 4}),
        tmp_path / "run",
        tmp_path / "run" / "run.json",
        written(tmp_path / "copy.json", (tmp_path / "run" / "run.json").read_text()),
        write_video(tmp_path / "a.mp4", frames, 16, comment=comment),
        write_image(tmp_path / "a.png", frames[0], comment=comment),
        Settings(spec).save(tmp_path / "saved.json"),
    ]
    for path in paths:
        found = open_settings(path)
        assert (found.spec, found.wangp) == (spec, None), path
    assert open_settings(paths[0], model="wan_t2v_1_3b").spec.model == "wan_t2v_1_3b"


def test_saved_settings_hold_everything(tmp_path: Path) -> None:
    for name, sample in SAMPLES.items():
        settings = quiet({**sample, "their_key": [1]}).with_(seed=11, prompt="another")
        path = settings.save(tmp_path / f"{name}.json")
        assert opened(path) == settings
        theirs = settings.save(tmp_path / f"{name}_wangp.json", form="wangp")
        again = opened(theirs)
        assert again.spec == settings.spec
        assert again.wangp == {**settings.wangp, "settings_version": 2.74}
    with pytest.raises(WanlabError, match=r"a\.txt"):
        settings.save(tmp_path / "a.txt")


def test_golden_settings() -> None:
    """What version 1 wrote is read for ever."""
    settings = opened(GOLDEN / "settings_v1.json")
    assert settings.spec.text.prompt == "A fox runs through snow"
    assert settings.spec.guidance.phase_scales == (3.5, 1.0, 1.0)
    assert settings.wangp["their_key"] == {"a": [1]}
    assert set(settings.kept) == {"their_key"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({**SMALL, "type": "ComfyUI workflow"}, "ComfyUI"),
        ({"nodes": []}, "no setting"),
        ({"model": {"name": "x", "architecture": "t2v"}}, "defines a model"),
        ({"loras": [], "loras_mult": ""}, "preset of LoRAs"),
        ("[]", "without tasks"),
        ("[1]", "no settings"),
        ("3", "a.json"),
        ("{", "a.json"),
        ("", "a.json"),
        ('{"seed": 1, "seed": 2}', "given twice"),
        ('{"seed": NaN}', "NaN"),
        ('{"type": "WanGP", "x": ' + "[" * 3000 + "]" * 3000 + "}", "deep"),
        ({**SMALL, "seed": 2**70}, "64 bits"),
        ({**SMALL, "resolution": "big"}, "resolution"),
        ({**SMALL, "num_inference_steps": 0}, "num_steps"),
        ({**SMALL, "video_length": "long"}, "video_length"),
        ({**SMALL, "switch_threshold": 2000, "guidance_phases": 2}, "switch_threshold"),
        ({**SMALL, "guidance_phases": 3, "switch_threshold": 100, "switch_threshold2": 900}, "rise"),
        ({**SMALL, "RIFLEx_setting": 5}, "RIFLEx"),
        ({**SMALL, "video_guide": 3}, "video_guide"),
        ({"prompt": "a preset", "guidance_scale": 3}, "name no model"),
        ({"kind": "wanlab settings", "schema": 99, "spec": {}}, "schema 99"),
        ({"kind": "wanlab settings", "schema": 1, "spec": {"model": "x"}, "wangp": {"seed": "a"}}, "seed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_files_are_named(tmp_path: Path, data: Any, words: str) -> None:
    path = written(tmp_path / "a.json", data)
    with pytest.raises(WanlabError, match=words) as caught:
        open_settings(path)
    assert str(path) in str(caught.value)


def test_wrong_media_and_archives_are_named(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    image.save(tmp_path / "a.png")
    for foreign, words in (
        ({"type": "Other", "seed": 1}, "Other"),
        ({"seed": 1}, "who wrote it"),
        ({"_wangp_metadata_reserved": True}, "carries no settings"),
    ):
        write_text(tmp_path / "a.png", foreign)
        with pytest.raises(WanlabError, match=words):
            open_settings(tmp_path / "a.png")
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 and no more")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("other.txt", "x")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("queue.json", "[" + " " * (20 << 20))
    for name in ("bad.zip", "empty.zip", "bomb.zip", "missing.mp4"):
        with pytest.raises(WanlabError, match=name):
            open_settings(tmp_path / name)
    for wrong in ("", None, "a\0b"):
        with pytest.raises(WanlabError, match="no path"):
            open_settings(wrong)  # type: ignore[arg-type]


def test_one_warning_tells_what_is_unknown_and_what_is_not_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {**SMALL, "zz": 1, "yy": 2, "prompt_enhancer": "T", "seed": -1})
    with pytest.warns(UserWarning, match="nobody knows") as caught:
        settings = open_settings(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert all(word in text for word in ("'zz'", "'yy'", "prompt_enhancer", "random seed", str(path)))
    assert settings.kept == {"zz": 1, "yy": 2}
    assert set(settings.not_yet) == {"prompt_enhancer", "seed"}
    assert all(word in repr(settings) for word in ("zz", "prompt_enhancer"))


# --- translation -----------------------------------------------------------------------------------------------------


def values(**expected: Any) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in expected.items()}


SAYS = [
    ({"resolution": "1280x720"}, values(width=1280, height=720)),
    ({"video_length": 84}, values(num_frames=81)),
    ({"video_length": "10s"}, values(num_frames=161)),
    ({"image_mode": 1, "video_length": 81}, values(num_frames=1)),
    ({"num_inference_steps": 12, "flow_shift": 7.5}, values(num_steps=12, flow_shift=7.5)),
    ({"sample_solver": "dpm++"}, values(sampler="dpmpp_2m")),
    ({"sample_solver": "euler"}, values(sampler="euler")),
    ({"sample_solver": "causvid"}, values(sampler="causvid")),
    ({"sample_solver": "lcm"}, values(sampler="lcm")),
    ({"RIFLEx_setting": 0}, values(riflex="auto")),
    ({"RIFLEx_setting": 1}, values(riflex="on")),
    ({"RIFLEx_setting": 2}, values(riflex="off")),
    ({"force_fps": "24"}, values(fps=24.0)),
    ({"guidance_scale": 6.5, "guidance_phases": 1, "guidance2_scale": 2}, values(guidance_scale=6.5, phase_scales=())),
    (
        {"guidance_phases": 2, "guidance_scale": 4, "guidance2_scale": 1, "switch_threshold": 900},
        values(phase_scales=(4.0, 1.0), phase_boundaries=(0.9,)),
    ),
    (
        {
            "model_type": "t2v_2_2",
            "guidance_phases": 2,
            "guidance_scale": 4,
            "guidance2_scale": 3,
            "switch_threshold": 875,
        },
        values(guidance_scale=4.0, guidance_scale_2=3.0, expert_boundary=0.875, phase_scales=()),
    ),
    (
        SAMPLES["lightning_3_phases"],
        values(phase_scales=(3.5, 1.0, 1.0), phase_boundaries=(0.965, 0.8), expert_boundary=0.8, num_steps=8),
    ),
    (
        {**SAMPLES["lightning_3_phases"], "model_switch_phase": 1},
        values(phase_boundaries=(0.965, 0.8), expert_boundary=0.965),
    ),
    ({"video_prompt_type": "GUV", "denoising_strength": 0.6}, values(denoising_strength=0.6, masking_strength=1.0)),
    (
        {"video_prompt_type": "GVA", "denoising_strength": 0.6, "masking_strength": 0.3},
        values(denoising_strength=0.6, masking_strength=0.3),
    ),
    ({"video_prompt_type": "", "denoising_strength": 0.6}, values(denoising_strength=1.0)),
    (
        {"model_type": "vace_14B", "video_prompt_type": "PV", "control_net_weight": 0.8, "control_net_weight2": 0.5},
        values(control_scale=(0.8,), control_scale_2=(0.5,)),
    ),
    ({"model_type": "vace_14B", "video_prompt_type": "PDV", "control_net_weight": 0.8}, values(control_scale=(0.4,))),
    (
        {"apg_switch": 1},
        values(guidance="apg", guidance__momentum=-0.75, guidance__norm_threshold=55.0, guidance__eta=0.0),
    ),
    ({"cfg_star_switch": 1, "cfg_zero_step": -1}, values(guidance="cfg_zero", guidance__zero_steps=0)),
    ({"cfg_star_switch": 1, "cfg_zero_step": 1}, values(guidance="cfg_zero", guidance__zero_steps=2)),
    (
        {"perturbation_switch": 1, "perturbation_layers": [7, 9], "perturbation_start_perc": 5},
        values(guidance="slg", guidance__layers=(7, 9), guidance__start=0.05, guidance__stop=0.9),
    ),
    (
        {"NAG_scale": 4, "NAG_tau": 3},
        values(guidance="nag", guidance__scale=4.0, guidance__tau=3.0, guidance__alpha=0.5),
    ),
    ({"NAG_scale": 1}, values(guidance="cfg")),
    (
        {"model_type": "flux", "embedded_guidance_scale": 2.5, "flow_shift": 9},
        values(guidance_scale=2.5, flow_shift=5.0),
    ),
    (
        {"skip_steps_cache_type": "tea", "skip_steps_multiplier": 2, "skip_steps_start_step_perc": 25},
        values(cache="teacache", cache__speedup=2.0, cache__start_percent=25.0),
    ),
    (
        {"skip_steps_cache_type": "mag"},
        values(cache="magcache", cache__speedup=1.75, cache__start_percent=0.0, cache__max_skip=2),
    ),
    ({"skip_steps_cache_type": "", "skip_steps_multiplier": 2}, values(cache="none")),
    ({"settings_version": 2.2, "tea_cache_setting": 2.25}, values(cache="teacache", cache__speedup=2.25)),
    ({"settings_version": 2.2, "tea_cache_setting": 0}, values(cache="none")),
    ({"negative_prompt": "rain"}, values(negative_prompt="rain")),
    ({"negative_prompt": " "}, values(negative_prompt="")),
]


@pytest.mark.parametrize(("given", "expected"), SAYS, ids=[str(given)[:60] for given, _ in SAYS])
def test_what_settings_say(given: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = {**SMALL, **given}
    flat = quiet(settings).spec.flat()
    assert {name: flat[name] for name in expected} == expected


@pytest.mark.parametrize(("given", "expected"), SAYS, ids=[str(given)[:60] for given, _ in SAYS])
def test_a_spec_alone_says_the_same_in_wangp_s_words(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Written from the spec over the baseline, without the settings it came from, it is read as the same spec."""
    spec = quiet({**SMALL, **given}).spec
    model = {**SMALL, **given}["model_type"]
    blank = {**baseline(), "model_type": model, "settings_version": 2.74, "RIFLEx_setting": 2, "type": "WanGP"}
    if letters := given.get("video_prompt_type"):
        blank["video_prompt_type"] = letters  # what control media are, a spec says by having them
    leaves = {k: v for k, v in spec.flat().items() if "." not in k and k not in ("model", "guidance", "cache")}
    methods = {"guidance": spec.guidance, "cache": spec.cache}
    rules = {name: {"method": part.method, "options": dict(part.options)} for name, part in methods.items()}
    plain = {k: v for k, v in leaves.items() if v is not None and not (k == "fps" and v > 100)}
    result = quiet(blank).with_(**plain, **rules).to_wangp()
    differ = quiet(result).spec.diff(spec)
    assert {name: pair for name, pair in differ.items() if pair[1] is not None} == {}, "None is the model's own"


def test_an_empty_negative_prompt_is_the_model_s_own() -> None:
    usual = quiet(SMALL).spec.text.negative_prompt
    assert usual
    assert quiet({**SMALL, "negative_prompt": ""}).spec.text.negative_prompt == usual
    none = quiet(SMALL).with_(negative_prompt="")
    assert none.wangp is not None
    assert none.wangp["negative_prompt"] == " "
    assert quiet(none.to_wangp()).spec.text.negative_prompt == ""


def test_a_random_seed_stays_until_one_is_chosen() -> None:
    random_one = quiet({**SMALL, "seed": -1})
    assert "seed" in random_one.not_yet
    assert random_one.to_wangp()["seed"] == -1
    assert random_one.with_(num_steps=9).to_wangp()["seed"] == -1
    for chosen in (
        random_one.with_(seed=0),
        random_one.with_(sampling={"seed": 0}),
        random_one.with_(sampling__seed=0),
    ):
        assert chosen.to_wangp()["seed"] == 0
        assert "seed" not in chosen.not_yet


def test_two_rules_at_once_leave_one_and_say_so() -> None:
    settings = quiet({**SMALL, "apg_switch": 1, "NAG_scale": 3, "perturbation_switch": 1})
    assert settings.spec.guidance.method == "apg"
    assert {"NAG_scale", "perturbation_switch"} <= set(settings.not_yet)
    assert "apg_switch" not in settings.not_yet
    plain = settings.with_(guidance="cfg")
    assert plain.not_yet == {}
    assert plain.wangp is not None
    assert [plain.wangp[key] for key in ("apg_switch", "NAG_scale", "perturbation_switch")] == [0, 1, 0]


def test_what_a_spec_does_not_say_yet_is_listed() -> None:
    found = quiet(SAMPLES["s25_vace_14b"])
    for key in (
        *("video_prompt_type", "activated_loras"),
        *("loras_multipliers", "temporal_upsampling", "spatial_upsampling", "film_grain_intensity"),
        *("postprocess_audio", "sliding_window_size", "keep_frames_video_guide", "video_guide_outpainting"),
        *("mask_expand", "frames_positions", "min_frames_if_references", "repeat_generation"),
    ):
        assert found.not_yet.get(key), key
    for key in (
        "skip_steps_cache_type",
        "skip_steps_start_step_perc",
        "client_id",
        "apg_switch",
        "seed",
        "NAG_scale",
        "film_grain_saturation",
        "override_profile",
    ):
        assert key not in found.not_yet, key
    short = quiet({**SAMPLES["s25_vace_14b"], "video_length": 81})
    assert "sliding_window_size" not in short.not_yet, "one window is no window"
    assert "background" not in str(quiet({**SMALL, "remove_background_images_ref": 0}).not_yet)


def test_prompts_that_wangp_takes_apart_are_told() -> None:
    for prompt, mode in (
        ("# note\na", "PG"),
        ("a\n\nb", "PG"),
        ("a\nb", "G"),
        ('! {x}="a"\n{x}', "PG"),
        ("a[/new_shot]", "PG"),
    ):
        assert "prompt" in quiet({**SMALL, "prompt": prompt, "multi_prompts_gen_type": mode}).not_yet, prompt
    for prompt, mode in (("a\nb", "PG"), ("a\n\nb", "FG")):
        assert "prompt" not in quiet({**SMALL, "prompt": prompt, "multi_prompts_gen_type": mode}).not_yet


def test_models() -> None:
    assert quiet({**SMALL, "model_type": "t2v"}).spec.model == "wan_t2v_14b"
    finetune = quiet({**SMALL, "model_type": "mine", "base_model_type": "t2v_1.3B"})
    assert finetune.spec.model == "mine", "no other weights stand for it"
    assert finetune.spec.size.fps == 16
    assert "wan_t2v_1_3b" in finetune.not_yet["model_type"]
    assert "bare" in quiet({**SMALL, "model_type": "nobody"}).not_yet["model_type"]
    moved = quiet({**SMALL, "model_filename": "x"}).with_(model="wan_t2v_14b")
    assert moved.wangp is not None
    assert moved.wangp["model_type"] == "t2v"
    assert "model_filename" not in moved.wangp
    assert quiet({"prompt": "x"}, model="wan_t2v_1_3b").spec.model == "wan_t2v_1_3b"
    with pytest.raises(WanlabError, match="WanGP has no model"):
        Settings(GenerationSpec(model="wan_tiny")).to_wangp()


def test_media_are_named_by_the_spec_s_leaves() -> None:
    media = quiet(SAMPLES["s25_vace_14b"]).media
    assert (media["video"].path, media["mask"].path) == ("dance.mp4", "mask.mp4")
    assert [a.path for a in media["keyframes"]] == ["a.png", "b.png", "c.png"]
    assert media["keyframe_positions"] == (0, 80, 48)
    assert [a.path for a in media["references"]] == ["d.png"]


def test_a_spec_becomes_wangp_s_settings() -> None:
    spec = quiet(SMALL).spec.with_(num_steps=9, guidance={"method": "nag", "scale": 5.0}, num_frames=33)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Settings(spec).to_wangp()
    assert set(found) == {*baseline(), "type", "model_type", "settings_version"}
    assert "WanGP" in found["type"]
    assert (found["model_type"], found["settings_version"]) == ("t2v_1.3B", 2.74)
    assert quiet(found).spec == spec


def test_what_wangp_cannot_say_is_told() -> None:
    spec = quiet(SMALL).spec.with_(sigmas=[1.0, 0.5, 0.0], num_frames=82)
    with pytest.warns(UserWarning, match=r"sampling\.sigmas") as caught:
        Settings(spec).to_wangp()
    assert len(caught) == 1
    assert "size.num_frames" in str(caught[0].message)
    assert caught[0].filename == __file__
    many = quiet(SMALL).spec.with_(phase_scales=[4, 3, 2, 1], phase_boundaries=[0.9, 0.8, 0.7])
    with pytest.raises(WanlabError, match="at most 3 phases"):
        Settings(many).to_wangp()
    two = quiet({**SMALL, "model_type": "t2v_2_2"})
    with pytest.raises(WanlabError, match="where a guidance phase begins"):
        two.with_(phase_scales=[4, 1], phase_boundaries=[0.9], expert_boundary=0.5)


# --- nothing is lost -------------------------------------------------------------------------------------------------


def any_value(name: str, draw: random.Random) -> Any:
    """A value that WanGP's interface could have saved under a key."""
    key = KEYS[name]
    special = {
        "video_prompt_type": lambda: "".join(draw.sample("VGUPDSLCMAXYNIKFTR0#+", draw.randint(0, 6))),
        "image_prompt_type": lambda: "".join(draw.sample("TSEVL", draw.randint(0, 4))),
        "audio_prompt_type": lambda: draw.choice(["", "A", "AB", "XA", "KV", None]),
        "resolution": lambda: f"{16 * draw.randint(10, 90)}x{16 * draw.randint(10, 90)}",
        "video_length": lambda: draw.choice([1, 5, 17, 81, 84, 241, "10s", 81.0]),
        "image_mode": lambda: draw.choice([0, 0, 0, 1, 2]),
        "force_fps": lambda: draw.choice(["", "auto", "control", "24", 25]),
        "seed": lambda: draw.choice([-1, 0, draw.randrange(2**32)]),
        "num_inference_steps": lambda: draw.randint(1, 60),
        "sample_solver": lambda: draw.choice(["", "unipc", "euler", "dpm++", "causvid", "lcm", "lightning"]),
        "RIFLEx_setting": lambda: draw.choice([0, 1, 2]),
        "guidance_phases": lambda: draw.choice([0, 1, 2, 3]),
        "model_switch_phase": lambda: draw.choice([1, 2]),
        "switch_threshold": lambda: draw.randint(500, 1000),
        "switch_threshold2": lambda: draw.randint(0, 500),
        "flow_shift": lambda: draw.choice([1, 3.0, 5, 12.5]),
        "NAG_scale": lambda: draw.choice([1, 1, 3.5]),
        "NAG_tau": lambda: draw.choice([1, 2.5, 3.5]),
        "NAG_alpha": lambda: draw.choice([0, 0.5, 2]),
        "skip_steps_cache_type": lambda: draw.choice(["", "tea", "mag", "spectrum"]),
        "skip_steps_multiplier": lambda: draw.choice([1.5, 1.75, 2, 2.0, 2.5, 0.08, 3]),
        "skip_steps_start_step_perc": lambda: draw.choice([0, 10, 25.0]),
        "cfg_zero_step": lambda: draw.choice([-1, 0, 3]),
        "perturbation_layers": lambda: draw.choice([[9], [7, 9], [], None]),
        "perturbation_start_perc": lambda: draw.randint(0, 40),
        "perturbation_end_perc": lambda: draw.randint(50, 100),
        "denoising_strength": lambda: draw.choice([0, 0.5, 1, 1.0]),
        "masking_strength": lambda: draw.choice([0.1, 1]),
        "activated_loras": lambda: draw.choice([[], ["a.safetensors"], ["a", "b"]]),
        "loras_multipliers": lambda: draw.choice(["", "1;0 0.8", "# c\n1"]),
        "frames_positions": lambda: draw.choice(["", "1 L", "5,9"]),
        "negative_prompt": lambda: draw.choice(["", " ", "rain"]),
        "custom_settings": lambda: draw.choice([{}, {"a": [1, {"b": None}]}]),
        "model_mode": lambda: draw.choice([None, 0, 2, "en"]),
        "multi_prompts_gen_type": lambda: draw.choice([0, 1, 2, "G", "PG", "W", "PW", "FG"]),
        "override_profile": lambda: draw.choice([-1, 4, 3.5, "-1"]),
    }
    if name in special:
        return special[name]()
    if name in ATTACHMENTS:
        return draw.choice([None, "a.png", ["a.png", "b.mp4|start_frame=1,end_frame=9"]])
    if isinstance(key.default, str):
        return draw.choice(["", "some text", "风筝\n", key.default])
    return draw.choice([key.default, 0, 1, 2.5])


def any_settings(seed: int) -> dict[str, Any]:
    """Settings of any version and model: any of the 113 keys, older keys, keys that nobody knows."""
    draw = random.Random(seed)
    share = draw.choice([0.1, 0.5, 1.0])
    found = {name: any_value(name, draw) for name in draw.sample(list(KEYS), len(KEYS)) if draw.random() < share}
    found |= {"model_type": draw.choice(MODELS), "type": "WanGP v0"}
    if found.get("guidance_phases") == 3:  # WanGP refuses thresholds that rise
        found |= {name: any_value(name, draw) for name in ("switch_threshold", "switch_threshold2")}
    if draw.random() < 0.8:
        found["settings_version"] = draw.choice([1, 2.1, 2.23, 2.24, 2.3, 2.35, 2.5, 2.56, 2.6, 2.74, 3])
    older = {"slg_switch": 1, "slg_layers": [5], "tea_cache_setting": 2.0, "MMAudio_setting": 1, "prompts": "old"}
    found |= {name: value for name, value in older.items() if draw.random() < 0.2}
    unknown = {"zz": 1.0, "theirs": {"a": [None, True, "x"]}, "generation_time": 12, "window_no": 2, "hdr": False}
    return found | {name: value for name, value in unknown.items() if draw.random() < 0.3}


@pytest.mark.parametrize("block", range(6))
def test_any_settings_come_back_as_they_were(block: int) -> None:
    """To the key's order, the value and its kind: 5 stays 5 and 5.0 stays 5.0."""
    for seed in range(block * 60, block * 60 + 60):
        given = any_settings(seed)
        expected = migrate(given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = quiet(given).to_wangp()
        assert json.dumps(found) == json.dumps(expected), seed


def test_any_settings_survive_our_own_file(tmp_path: Path) -> None:
    for seed in range(40):
        settings = quiet(any_settings(seed))
        again = opened(settings.save(tmp_path / "a.json"))
        assert again == settings, seed
        assert json.dumps(again.to_wangp()) == json.dumps(settings.to_wangp())


CHANGES: dict[str, list[Any]] = {
    "prompt": ["x"],
    "negative_prompt": ["", "snow"],
    "width": [640],
    "num_frames": [1, 33, 49],
    "num_steps": [4],
    "seed": [0, 5],
    "flow_shift": [2.5, 6.0],
    "sampler": ["euler", "unipc"],
    "riflex": ["on", "auto", "off"],
    "guidance_scale": [2.25],
    "guidance": [
        "cfg",
        "cfg_zero",
        {"method": "slg", "layers": [3], "start": 0.2},
        {"method": "nag", "scale": 2.0},
        "apg",
    ],
    "cache": [
        "none",
        {"method": "teacache", "speedup": 2.0},
        {"method": "magcache", "speedup": 1.6, "start_percent": 5},
    ],
    "denoising_strength": [0.35],
    "control_scale": [[0.25]],
    "fps": [12.0],
}


def test_changes_arrive_in_wangp_s_settings_and_nothing_else_changes() -> None:
    """What is read back from the changed settings is the changed spec, and no other key has moved."""
    for seed in range(120):
        draw = random.Random(seed)
        given = {**any_settings(seed), "model_type": draw.choice(["vace_14B", "vace_1.3B"]), "guidance_phases": 1}
        given |= {"video_length": 81, "image_mode": 0, "resolution": "832x480", "settings_version": 2.74}
        name = draw.choice(list(CHANGES))
        before, value = quiet(given), draw.choice(CHANGES[name])
        after = before.with_(**{name: value})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = after.to_wangp()
        group = next(key.converter for key in KEYS.values() if name in key.leaves)
        own = {key.name for key in KEYS.values() if key.converter == group} | {"video_prompt_type", "prompts"}
        again = quiet(found)
        assert again.spec == after.spec, (seed, name, value, again.spec.diff(after.spec))
        assert before.wangp is not None
        moved = {key for key in {*found, *before.wangp} if found.get(key) != before.wangp.get(key)}
        assert moved <= own, (seed, name, value)
