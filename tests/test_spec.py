"""The spec: what a user may write, what is refused and in which words."""

from __future__ import annotations

import enum
import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.spec_examples import DEFAULT, PICTURE, Periodic, Strict
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.spec import GenerationSpec, MediaRef
from wanlab.spec.parts import CacheSpec, GuidanceSpec, SamplingSpec


@pytest.fixture(autouse=True)
def _caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CACHES._entries, "test_periodic", Periodic)
    monkeypatch.setitem(CACHES._entries, "test_strict", Strict)
    monkeypatch.setitem(CACHES._entries, "test_plain", object())


@pytest.fixture
def spec() -> GenerationSpec:
    return GenerationSpec.of(DEFAULT, prompt="a red circle moves right", seed=7)


def refusal(spec: GenerationSpec, **changes: Any) -> str:
    with pytest.raises(WanlabError) as caught:
        spec.with_(**changes)
    assert not isinstance(caught.value, ValidationError)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


# What may be written


def test_of_puts_changes_over_the_models_defaults(spec: GenerationSpec) -> None:
    assert (spec.model, spec.size.width, spec.sampling.num_steps, spec.sampling.seed) == ("wan_tiny", 96, 20, 7)
    assert spec.sampling.sampler == "unipc"
    assert GenerationSpec.of(DEFAULT, num_steps=4).sampling.num_steps == 4
    assert GenerationSpec.of(DEFAULT, size={"width": 32}).size.height == 96


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 8, "guidance_scale": 2.5, "crf": 30},
        {"sampling.num_steps": 8, "guidance.guidance_scale": 2.5, "output.crf": 30},
        {"sampling__num_steps": 8, "guidance__guidance_scale": 2.5, "output__crf": 30},
        {"sampling": {"num_steps": 8}, "guidance": {"guidance_scale": 2.5}, "output": {"crf": 30}},
        {"num_steps": np.int64(8), "guidance_scale": np.float32(2.5), "crf": np.uint8(30)},
        {"sampling": SamplingSpec(num_steps=8, seed=7), "guidance": GuidanceSpec(guidance_scale=2.5), "crf": 30},
    ],
)
def test_flat_dotted_and_nested_are_the_same(spec: GenerationSpec, changes: dict[str, Any]) -> None:
    expected = json.loads(spec.to_json())
    expected["sampling"]["num_steps"], expected["guidance"]["guidance_scale"], expected["output"]["crf"] = 8, 2.5, 30
    assert json.loads(spec.with_(**changes).to_json()) == expected
    assert GenerationSpec.of(spec.to_dict(), **changes) == spec.with_(**changes)


class Word(enum.StrEnum):
    EULER = "euler"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", np.int64(3), 3),
        ("seed", np.uint64(2**63 - 1), 2**63 - 1),
        ("guidance_scale", 3, 3.0),
        ("guidance_scale", np.float64(1.5), 1.5),
        ("strip_prompt", np.bool_(True), True),
        ("sigmas", [1, 0.5, 0], (1.0, 0.5, 0.0)),
        ("sigmas", np.array([1.0, 0.25, 0.0]), (1.0, 0.25, 0.0)),
        ("prompt", Path("a/b"), "a/b"),
        ("prompt", np.str_("é 🪁"), "é 🪁"),
        ("sampler", Word.EULER, "euler"),
        ("width", np.array(64), 64),
        ("image", MediaRef(**PICTURE), MediaRef(**PICTURE)),
        ("references", [PICTURE], (MediaRef(**PICTURE),)),
        ("max_text_tokens", None, None),
    ],
)
def test_values_of_numpy_lists_paths_and_records_arrive(
    spec: GenerationSpec, name: str, value: Any, expected: Any
) -> None:
    found = spec.with_(**{name: value}).flat()[name]
    assert found == expected
    assert type(found) is type(expected)


def test_torch_scalars_arrive(spec: GenerationSpec) -> None:
    torch = pytest.importorskip("torch")
    assert spec.with_(seed=torch.tensor(5), sigmas=torch.tensor([1.0, 0.5, 0.0])).sampling.sigmas == (1.0, 0.5, 0.0)


def test_the_constructor_takes_what_with_takes(spec: GenerationSpec) -> None:
    made = GenerationSpec(**{**DEFAULT, "prompt": "a red circle moves right", "sampling.seed": np.int64(7)})
    assert made == spec


def test_explicit_sigmas_say_the_number_of_steps(spec: GenerationSpec) -> None:
    given = spec.with_(sigmas=[1, 0.6, 0.2, 0])
    assert given.sampling.num_steps == 3
    assert given.with_(sigmas=None, num_steps=20) == spec
    assert "num_steps = 5" in refusal(given, num_steps=5)
    for wrong in ([1, 0.5, 0.6, 0], [1, 0.5], [0.0], [], [1.1, 0], [1, 1, 0]):
        assert "sigmas" in refusal(spec, sigmas=wrong)


# Methods and their options


def test_naming_a_method_drops_the_earlier_ones_options(spec: GenerationSpec) -> None:
    first = spec.with_(cache={"method": "test_periodic", "period": 3}, on_oom="retry")
    assert first.cache.options == {"period": 3, "threshold": 0.1, "layers": ()}
    assert first.with_(cache="test_periodic").cache.options["period"] == 2
    assert first.with_(cache="none") == spec.with_(on_oom="retry")
    assert first.with_(guidance_scale=2.0).cache == first.cache


@pytest.mark.parametrize(
    "changes",
    [
        {"cache": {"method": "test_periodic", "period": 3}},
        {"cache": {"method": "test_periodic", "options": {"period": 3}}},
        {"cache": "test_periodic", "cache__period": 3},
        {"cache.period": 3, "cache.method": "test_periodic"},
    ],
)
def test_options_are_written_in_every_form(spec: GenerationSpec, changes: dict[str, Any]) -> None:
    changed = spec.with_(**changes)
    assert changed.cache.method == "test_periodic"
    bound = changed.cache.bind()
    assert bound == Periodic.Options(period=3)
    assert isinstance(bound, Periodic.Options)
    assert spec.with_(cache=CacheSpec(method="test_periodic", period=3)) == changed
    assert changed.with_(cache__threshold=0.5).cache.bind() == Periodic.Options(period=3, threshold=0.5)


def test_common_leaves_survive_a_change_of_method(spec: GenerationSpec) -> None:
    changed = spec.with_(guidance={"method": "cfg_interval", "start": 0.25, "guidance_scale": 3})
    assert changed.guidance.guidance_scale == 3
    assert changed.with_(guidance="cfg").guidance == GuidanceSpec(guidance_scale=3)


def test_an_option_of_another_method_is_refused(spec: GenerationSpec) -> None:
    assert "cache 'none' has no option 'period'" in refusal(spec, cache__period=3)
    assert "has no option 'mask'" in refusal(spec, cache={"method": "test_periodic", "mask": [True]})
    assert "Did you mean 'period'?" in refusal(spec, cache={"method": "test_periodic", "perod": 3})
    assert "has no option 'start'" in refusal(spec, guidance__start=0.5)
    assert "has no option" in refusal(spec, memory__budget=3)
    assert "has no option" in refusal(spec, cache={"method": "test_plain", "period": 3})
    recorded = {**json.loads(spec.to_json()), "cache": {"method": "test_periodic", "options": {"perod": 3}}}
    with pytest.raises(WanlabError, match="no option 'perod'"):
        GenerationSpec.from_json(recorded).cache.bind()


def test_illegal_options_are_refused(spec: GenerationSpec) -> None:
    assert "cache.period = 0 is not allowed" in refusal(spec, cache={"method": "test_periodic", "period": 0})
    assert "cache.mask is missing" in refusal(spec, cache="test_strict")
    assert "Give cache.mask. One entry for each step" in refusal(spec, cache="fixed")
    assert "not a finite number" in refusal(spec, cache={"method": "test_periodic", "threshold": float("nan")})
    assert spec.with_(cache="test_strict", cache__mask=[True, False]).cache.bind().model_dump() == {
        "mask": (True, False)
    }


def test_options_cannot_be_changed_in_place(spec: GenerationSpec) -> None:
    options = spec.with_(cache="test_strict", cache__mask=[True, False]).cache.options
    for change in (
        lambda: options.update(mask=()),
        lambda: operator.setitem(options, "mask", ()),
        lambda: options.pop("mask"),
        lambda: options.clear(),
        lambda: operator.setitem(options["mask"], 0, False),
    ):
        with pytest.raises(TypeError):
            change()


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_step": 3}, "Unknown setting 'num_step'. Did you mean 'num_steps'?"),
        ({"sampling.num_step": 3}, "Did you mean 'num_steps'?"),
        ({"strength": 0.5}, "Did you mean 'denoising_strength'?"),
        ({"num_inference_steps": 3}, "Did you mean 'num_steps'?"),
        ({"conditioning_scale": 3}, "Did you mean 'control_scale'?"),
        ({"sampling": {"scheduler": "euler"}}, "Did you mean 'sampler'?"),
        ({"guidance": 3.0}, "Did you mean guidance_scale=3.0?"),
        ({"sampling": {"num_step": 3}}, "Unknown setting 'sampling.num_step'"),
        ({"sampling__seeds": 3}, "Did you mean 'seed'?"),
        ({"samplin.seed": 3}, "Did you mean 'seed'?"),
        ({"cahce": "none"}, "Did you mean 'cache'?"),
        ({"zzz": 1}, "spec.flat()"),
        ({"image": {**PICTURE, "nme": "x"}}, "Did you mean 'name'?"),
        ({"cache": "perodic"}, "Unknown cache 'perodic'"),
        ({"cache": "test_periodc"}, "Did you mean 'test_periodic'?"),
        ({"sampler": "eular"}, "Did you mean 'euler'?"),
        ({"attention": "nope"}, "Unknown attention 'nope'"),
        ({"guidance": "cfgg"}, "Did you mean 'cfg'?"),
        ({"memory": "profile5"}, "Choices: resident"),
        ({"num_steps": 0}, "sampling.num_steps = 0 is not allowed: it should be greater than or equal to 1. Give 1"),
        ({"num_steps": -1}, "Give 1 or more"),
        ({"num_steps": True}, "whole number"),
        ({"num_steps": "5"}, "without quotes"),
        ({"num_steps": 3.5}, "whole number"),
        ({"num_steps": None}, "whole number"),
        ({"num_steps": [3]}, "whole number"),
        ({"seed": -1}, "Give 0 or more"),
        ({"seed": 2**63}, "64 bits"),
        ({"seed": 10**5000}, "64 bits"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan is not a finite number"),
        ({"guidance_scale": float("-inf")}, "finite"),
        ({"guidance_scale": np.float32("inf")}, "finite"),
        ({"guidance_scale": "5"}, "without quotes"),
        ({"sigmas": [1, float("nan"), 0]}, "sigmas[1] = nan"),
        ({"flow_shift": 0}, "Give more than 0"),
        ({"expert_boundary": 1.5}, "Give at most 1"),
        ({"crf": 52}, "Give at most 51"),
        ({"width": 0}, "Give 1 or more"),
        ({"fps": -16}, "Give more than 0"),
        ({"strip_prompt": 1}, "true or false"),
        ({"dtype": "int8"}, "'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"quantisation": "int8"}, "should be 'none'"),
        ({"loras": ["kite"]}, "not possible yet"),
        ({"prompt": "a" * 100_000}, "text.prompt has 100,000 characters, at most 20,000 are allowed. Shorten it."),
        ({"negative_prompt": "a" * 20_001}, "text.negative_prompt has 20,001 characters"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"prompt": 5}, "Give text"),
        ({"prompt": b"bytes"}, "cannot be stored as JSON"),
        ({"seed": 1 + 2j}, "cannot be stored as JSON"),
        ({"references": {1, 2}}, "cannot be stored as JSON"),
        ({"image": "kite.png"}, "media.image: 'kite.png' does not exist"),
        ({"image": {**PICTURE, "sha256": "../x"}}, "media.image.sha256"),
        ({"image": {**PICTURE, "kind": "movie"}}, "media.image.kind"),
        ({"image": {"sha256": "ab" * 32}}, "media.image.kind is missing"),
        ({"references": [PICTURE, {**PICTURE, "kind": "x"}]}, "media.references[1].kind"),
        ({"sampling": "euler"}, "sampling = 'euler' is not allowed: it is a group of settings"),
        ({"cache": 3}, "a method's name or a dict"),
        ({"cache": None}, "a method's name or a dict"),
        ({"cache": {}, "seed": "x"}, "without quotes"),
        ({"cache__options": 3}, "not a dict"),
        ({"post": {"upscale": 2}}, "Unknown setting 'post.upscale'"),
        ({"seed": 1, "sampling.seed": 1}, "sampling.seed is given twice"),
        ({"cache": "none", "cache.method": "none"}, "cache.method is given twice"),
        ({"schema": 2}, "schema = 2"),
        ({"model": ""}, "model = ''"),
        ({"": 1}, "Unknown setting ''"),
        ({"sampling.": 1}, "Unknown setting 'sampling.'"),
        ({"sampling": {1: 2}}, "Keys are text"),
    ],
)
def test_mistakes_are_named_with_the_remedy(spec: GenerationSpec, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(spec, **changes)


def test_several_mistakes_are_one_error(spec: GenerationSpec) -> None:
    text = refusal(spec, num_steps=0, seed=-1, crf=99)
    assert text.startswith("3 settings are wrong")
    assert all(name in text for name in ("sampling.num_steps = 0", "sampling.seed = -1", "output.crf = 99"))


def test_parts_refuse_too() -> None:
    with pytest.raises(WanlabError, match="Did you mean 'num_steps'"):
        SamplingSpec(num_step=3)
    with pytest.raises(WanlabError, match="model is missing"):
        GenerationSpec(prompt="x")
    with pytest.raises(WanlabError, match="Give 1 or more"):
        Periodic.Options(period=0)
    with pytest.raises(WanlabError, match="Give 1 or more"):
        Periodic.Options(period=3).with_(period=0)


def test_a_spec_never_changes(spec: GenerationSpec) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec.model = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        spec.sampling.seed = 1  # type: ignore[misc]
    with pytest.raises(WanlabError, match="checks nothing"):
        spec.model_copy(update={"model": 3})


def test_one_number_stands_for_a_tuple_of_it() -> None:
    spec = GenerationSpec.of(DEFAULT)
    one = spec.with_(control_scale=0.8, phase_scales=3)
    assert (one.media.control_scale, one.guidance.phase_scales) == ((0.8,), (3.0,))
    assert one.id == spec.with_(media={"control_scale": [0.8]}, phase_scales=[3.0]).id
    with pytest.raises(WanlabError, match="control_scale"):
        spec.with_(control_scale=True)
    with pytest.raises(WanlabError, match="sigmas"):
        spec.with_(sigmas=1.0)
