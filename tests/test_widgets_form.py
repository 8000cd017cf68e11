"""The form: what is written is read back, only what the model can do is shown, mistakes are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.widgets import SpecForm

CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "text": {"prompt": 'two\nlines, "quotes", ünï', "negative_prompt": "<b>", "max_text_tokens": 64},
    "sizes": {"width": 32, "height": 96, "num_frames": 1, "fps": 23.976},
    "an illegal size": {"width": 33, "num_frames": 99_999},
    "a seed beyond a browser's numbers": {"seed": 2**62 + 1},
    "sigmas": {"sigmas": [1.0, 0.7, 0.1, 0.0]},
    "a cache with options": {"cache": {"method": "fixed", "mask": [True, False, True, True], "num": None}},
    "guidance with options": {"guidance": {"method": "cfg_interval", "start": 0.25}, "guidance_scale": -1.5},
    "output": {"crf": 0, "strip_prompt": True},
    "a method this model has not": {"guidance": {"method": "embedded", "true_cfg_scale": 2.0}},
    "weights and memory": {"dtype": "bfloat16", "on_oom": "retry", "compile_mode": "blocks"},
    "two experts' settings": {"expert_boundary": 0.5, "guidance_scale_2": 4.0},
    "media": {"image": {"sha256": "0" * 64, "name": "a.png", "kind": "image"}},
}
CHANGES["a cache with options"]["cache"].pop("num")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


def raw(form: SpecForm) -> dict[str, Any]:
    """What the inputs themselves say, by dotted name, whatever the form was made from."""
    values = {name: field.read() for name, field in form._fields.items()}
    return values | {f"{p}.{n}": f.read() for p, fields in form._options.items() for n, f in fields.items()}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("narrow", [True, False])
def test_form_to_spec_to_form_is_the_identity(model: Any, name: str, narrow: bool) -> None:
    spec = model.spec(**CHANGES[name])
    form = SpecForm(model.spec(prompt="another", num_steps=9), model.offers if narrow else None)
    form.spec = spec
    assert form.spec == spec
    shown = raw(form)
    nested = spec.to_dict()
    for dotted, value in shown.items():
        part, _, leaf = dotted.partition(".")
        assert value == nested[part].get(leaf, nested[part].get("options", {}).get(leaf)), dotted
    again = SpecForm(form.spec, model.offers if narrow else None)
    assert raw(again) == shown
    assert again.spec == spec


def test_every_choice_made_by_hand_arrives(model: Any) -> None:
    """Each input is set as a hand would, from the defaults; the spec says the same as `with_`."""
    form = SpecForm(model.spec(), model.offers)
    hand = {
        "text.prompt": "a fox",
        "sampling.seed": "4611686018427387905",
        "sampling.num_steps": "6",
        "sampling.sampler": "euler",
        "size.width": "32",
        "guidance.guidance_scale": "2.5",
        "cache.method": "fixed",
        "output.strip_prompt": True,
    }
    for name, value in hand.items():
        form.field(name).widget.value = value
    mask = form._options["cache"]["mask"]
    assert mask.widget.value == "111111"  # one a step, which changes nothing
    mask.widget.value = "101010"
    assert form.spec == model.spec(
        prompt="a fox", seed=2**62 + 1, num_steps=6, sampler="euler", width=32, guidance_scale=2.5, strip_prompt=True,
        cache={"method": "fixed", "mask": [True, False] * 3},
    )  # fmt: skip
    form.field("cache.method").widget.value = "none"
    assert form.spec.cache == model.spec().cache
    assert not form._options["cache"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("sampling.sigmas", "[1, 0.5", "cannot be read"),
        ("sampling.sigmas", "1, 0", "cannot be read"),
        ("sampling.sigmas", "[0.5, 1, 0]", "fall strictly"),
        ("sampling.seed", "", "is empty"),
        ("sampling.seed", "-1", "Give 0 or more"),
        ("size.width", "many", "cannot be read"),
        ("sampling.num_steps", "2.5", "whole number"),
        ("sampling.num_steps", "-3", "Give 1 or more"),
        ("sampling.num_steps", "abc", "Write a number"),
        ("guidance.guidance_scale", "3,5", "Write a number"),
        ("guidance.guidance_scale", "", "is empty"),
        ("size.width", '"96"', "whole number"),
    ],
)
def test_what_cannot_be_read_is_named(model: Any, name: str, text: str, words: str) -> None:
    form = SpecForm(model.spec(), model.offers)
    calls: list[int] = []
    form.on_change(lambda: calls.append(1))
    form.field(name).widget.value = text
    assert calls
    with pytest.raises(WanlabError, match=words) as error:
        _ = form.spec
    assert name.partition(".")[2] in str(error.value)


RULES = ("apg", "cfg", "cfg_interval", "cfg_zero", "nag", "slg")


def test_only_what_the_model_can_do_is_shown(model: Any, tmp_path: Path) -> None:
    def shown(loaded: Any) -> set[str]:
        form = SpecForm(loaded.spec(), loaded.offers)
        return {name for name, row in form._rows.items() if row.layout.display != "none"}

    two = wanlab.load(tiny_wan(tmp_path / "two", experts=2)[1], device="cpu")
    flux = wanlab.load(tiny_flux(tmp_path / "flux")[1], device="cpu")
    experts = {"sampling.expert_boundary", "guidance.guidance_scale_2"}
    assert not experts & shown(model)
    assert experts < shown(two)
    assert shown(two) - experts == shown(model)
    video = {"media.video", "media.mask", "media.fit", "sampling.denoising_strength", "sampling.masking_strength"}
    clips = {"size.num_frames", "size.fps", "sampling.flow_shift", "sampling.riflex", "guidance.method"}
    assert shown(model) - shown(flux) == clips | (video & shown(model))
    for name in ("weights.dtype", "memory.on_oom", "memory.method", "window.method", "lora.loras", "media.image"):
        assert name not in shown(model) | shown(flux)
    assert SpecForm(model.spec(), model.offers).field("guidance.method").widget.options == RULES


def test_offers_agree_with_resolve(model: Any) -> None:
    """Ends of the bounds are legal, one step beyond is not; every word on offer resolves."""
    for dotted, (low, high, step) in model.offers.bounds.items():
        leaf = dotted.partition(".")[2]
        for value in (low, low + step, high):
            model.resolve(model.spec(**{leaf: value}))
        for value in (low - step, high + step):
            with pytest.raises(WanlabError):
                model.resolve(model.spec(**{leaf: value}))
    for dotted, words in model.offers.choices.items():
        if dotted != "memory.on_oom":
            for word in words:
                layers = {"guidance.layers": [1]} if word == "slg" else {}  # its usual block 9 is not in a tiny one
                model.resolve(model.spec(**{dotted: word}, **layers))


def test_every_input_has_help_and_a_label(model: Any) -> None:
    form = SpecForm(model.spec(cache={"method": "fixed", "mask": [True] * 4}), model.offers)
    fields = [*form._fields.values(), *form._options["cache"].values()]
    for field in fields:
        assert field.help, field.name
        assert field.widget.description == field.name.partition(".")[2]
    assert "multiple of 4" not in form.field("size.width").help
    assert "1 more than a multiple of 4" in form.field("size.num_frames").help


def test_folded_groups_say_what_was_changed(model: Any) -> None:
    changed = model.spec(cache={"method": "fixed", "mask": [True, False, True, False]})
    form = SpecForm(changed, model.offers, model.spec())
    titles = {name: group.titles[0] for name, group in form._groups.items() if group is not None}
    assert titles["cache"] == "cache · fixed, mask 1010"
    assert titles["attention"] == "attention"
    assert titles["sampling"] == "sampling"
    assert titles["size"] == "size · width 48, height 32, num_frames 9, fps 16.0"
    form.field("sampling.flow_shift").widget.value = "7.0"
    assert form._groups["sampling"].titles[0] == "sampling · flow_shift 7.0"
    form.field("output.strip_prompt").widget.value = True
    assert form._groups["output"].titles[0] == "output · strip_prompt True"


def test_a_form_needs_no_torch_until_it_is_narrowed() -> None:
    code = """
import sys
from wanlab.widgets import GeneratePanel, ModelPicker, SpecForm
panel = GeneratePanel("wan_tiny", prompt="a")
assert panel.spec.text.prompt == "a"
ModelPicker()
assert "torch" not in sys.modules, "torch"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=60)


def test_unknown_fields_are_named(model: Any) -> None:
    with pytest.raises(WanlabError, match=r"no input for 'sampling\.steps'"):
        SpecForm(GenerationSpec.of({"model": "x"})).field("sampling.steps")
