"""`estimate`: counts of forwards equal those of real runs, floors are figures over rates, nothing is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_relatives import tiny_skyreels
from tests.tiny_video import picture
from wanlab.errors import WanlabError
from wanlab.registry import GUIDANCE
from wanlab.sites import NO_CONDITIONS, Branch, StepContext
from wanlab.study import Card
from wanlab.study._cards import CARDS, find_card

H100 = CARDS["h100"]


def test_the_anchor_of_wan_14b() -> None:
    """1.678 PFLOPs a forward and, at the measured 743 TFLOP/s, 2258 ms: the project's own anchors."""
    found = wanlab.estimate("wan_t2v_14b", width=832, height=480, num_frames=81, num_steps=50, card="H100")
    assert round(found.forward.total / 1e12) == 1678
    assert found.forwards == {"transformer": {"cond": 50, "uncond": 50}}
    assert found.total_flops == 100 * found.forward.total
    measured, peak = found.floors["measured"], found.floors["peak"]
    assert measured.forward == pytest.approx(2.258, abs=2e-3)
    assert measured.step == pytest.approx(2 * measured.forward)
    assert measured.run == pytest.approx(50 * measured.step)
    assert peak.run == pytest.approx(found.total_flops / 989.4e12)
    assert found.spec.weights.dtype == "bfloat16"  # as it would be loaded there
    assert found.weight_bytes["transformer"] == pytest.approx(2 * 14.289e9, rel=3e-3)
    assert found.num_forwards == found.computed_forwards == 100
    assert (found.cache_state_bytes, found.ideal_speedup) == (0, 1.0)


@pytest.mark.parametrize(
    ("experts", "settings"),
    [
        (1, {}),
        (2, {"guidance_scale_2": 1.0}),
        (1, {"guidance_scale": 1.0}),
        (1, {"guidance": {"method": "cfg_zero", "zero_steps": 1}}),
        (1, {"guidance": {"method": "cfg_interval", "start": 0.3, "stop": 0.6}}),
        (1, {"guidance": {"method": "slg", "layers": (1,), "scale": 2.0, "start": 0.3}}),
        (1, {"guidance": {"method": "nag"}}),
    ],
    ids=lambda v: str(v) if isinstance(v, int) else "-".join(map(str, v)) or "plain",
)
def test_forwards_are_those_that_run(experts: int, settings: dict[str, Any], tmp_path: Path) -> None:
    """By expert and branch, counted at the clock of a real run; and every forward's operations."""
    model = wanlab.load(tiny_wan(tmp_path, experts)[1], device="cpu")
    spec = model.spec(prompt="a kite", **settings)
    found, seen = wanlab.estimate(model, spec), {}
    with model.on_begin(lambda ctx: _count(seen, ctx)):
        wanlab.generate(model, spec)
    assert found.forwards == seen
    assert found.num_steps == len(model.experts(model.resolve(spec)))
    for expert, branches in seen.items():
        for name, count in branches.items():
            every = [branch for branch in _branches(model, spec) if branch.name == name]
            assert found.branch_flops[expert][name] == count * model.workload(spec, every[0], expert).total


def _branches(model: Any, spec: Any) -> list[Branch]:
    """The branches of a step in the middle, as the rule gives them."""
    rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
    text = {"prompt": {}, "negative_prompt": {}}
    return [
        branch
        for expert in reversed(model.experts_present)
        for branch in rule.branches(StepContext(2, 4, 0.5, expert=expert), text, NO_CONDITIONS)
    ]


def _count(seen: dict[str, dict[str, int]], ctx: Any) -> None:
    branches = seen.setdefault(ctx.expert, {})
    branches[ctx.branch] = branches.get(ctx.branch, 0) + 1


def test_frames_at_steps_of_their_own(tmp_path: Path) -> None:
    model = wanlab.load(tiny_skyreels(tmp_path)[1], device="cpu")
    spec = model.spec(prompt="a kite", num_steps=2, num_frames=13, ar_step=1, causal_block_size=2)
    found, seen = wanlab.estimate(model, spec), {}
    with model.on_begin(lambda ctx: _count(seen, ctx)):
        wanlab.generate(model, spec)
    assert found.forwards == seen
    assert found.num_steps == 3


def test_bytes_of_weights_are_those_in_memory(tmp_path: Path) -> None:
    for build, name in ((tiny_wan, "wan"), (tiny_flux, "flux")):
        for dtype in ("float32", "bfloat16"):
            model = wanlab.load(build(tmp_path / name)[1], device="cpu", dtype=dtype)
            found = wanlab.estimate(model)
            for part in model.parts.values():
                _ = part.module
                assert found.weight_bytes[part.name] == part.num_bytes


def test_a_model_that_is_loaded_and_its_name_agree() -> None:
    model = wanlab.load("wan_tiny", device="cpu")
    given, named = wanlab.estimate(model, num_steps=3), wanlab.estimate("wan_tiny", num_steps=3)
    assert given.to_dict() == named.to_dict()
    assert not any(part.loaded for part in model.parts.values())
    spec = model.spec(num_steps=3)
    assert wanlab.estimate(spec).to_dict() == wanlab.estimate("wan_tiny", spec).to_dict() == named.to_dict()


def test_media_that_the_model_needs_may_be_missing() -> None:
    without = wanlab.estimate("wan_i2v_480p_14b")
    assert without.forward.tokens["text"] == (512 + 257, 5120)
    assert wanlab.estimate("wan_i2v_480p_14b", image=picture(1)).total_flops == without.total_flops


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("h200", "H200"),
        ("NVIDIA H200", "H200"),
        ("H100 SXM", "H100 SXM"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H20", None),
        ("cpu", None),
    ],
)
def test_cards_by_their_names(name: str, card: str | None) -> None:
    found = find_card(name)
    assert (found.name if found else None) == card


def test_every_card_is_found_by_its_own_name_and_has_a_source() -> None:
    for card in CARDS.values():
        assert find_card(card.name) is card
        assert card.source
        assert (card.measured is None) == (not card.measured_source)
        assert card.measured is None or card.measured < card.peak


def test_an_unknown_card_and_none_say_so() -> None:
    found = wanlab.estimate("wan_tiny", card="GTX 1080")
    assert (found.card, found.floors) == (None, {})
    assert "Nothing is known of the speed of 'GTX 1080'" in str(found)
    if not torch.cuda.is_available():
        none = wanlab.estimate("wan_tiny")
        assert (none.card, none.floors) == (None, {})
        assert "There is no GPU here" in none._repr_html_()
    with pytest.raises(WanlabError, match="is no card"):
        wanlab.estimate("wan_tiny", card=4090)  # type: ignore[arg-type]


def test_a_card_of_ones_own() -> None:
    mine = Card("mine", 1e12, "its box", 5e11, "a stopwatch")
    found = wanlab.estimate("wan_tiny", card=mine, dtype="float32")
    assert found.floors["measured"].forward == pytest.approx(found.forward.total / 5e11)
    assert "float32" in str(found)
    with pytest.raises(WanlabError, match="operations a second"):
        Card("mine", 0, "its box")


def test_shows_itself_and_is_json() -> None:
    found = wanlab.estimate("wan22_t2v_a14b", card="H100")
    text, page = str(found), found._repr_html_()
    for word in ("forwards of transformer_2", "H100 SXM", "attention's share", "vae", "75,600"):
        assert word in text
        assert word.replace("'", "&#x27;") in page
    data = json.loads(json.dumps(found.to_dict()))
    assert data["total_flops"] == found.total_flops
    assert data["floors"]["peak"]["rate"] == 989.4e12
    assert data["forward"]["total"] == data["forward"]["linear"] + data["forward"]["attention"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_branches": True},
        {"guidance": {"method": "cfg_interval", "start": 0.25, "stop": 1.0}},  # begins where the mask would reuse
        {"cache": {"method": "fixed", "mask": (True, False, True, False), "branch_masks": {"uncond": (True,) * 4}}},
    ],
    ids=["plain", "batched", "interval", "by branch"],
)
@pytest.mark.parametrize("experts", [1, 2])
def test_what_a_cache_saves_is_what_the_run_reports(experts: int, settings: dict[str, Any], tmp_path: Path) -> None:
    model = wanlab.load(tiny_wan(tmp_path, experts)[1], device="cpu")
    mask = {"method": "fixed", "mask": (True, False, True, False)}
    spec = model.spec(prompt="a kite", **{"num_steps": 4, "cache": mask, **settings})
    found, report = wanlab.estimate(model, spec), wanlab.generate(model, spec).ran["cache"]
    together = 2 if "batch_branches" in settings else 1
    assert found.computed_forwards == together * report["computed"]
    assert found.ideal_speedup == report["ideal_speedup"]
    assert found.cache_state_bytes == report["state_bytes"]
    assert f"{found.computed_forwards} of {found.num_forwards} forwards computed" in str(found)


@pytest.mark.parametrize(
    ("arguments", "changes", "match"),
    [
        (("wan_t2v_14",), {}, "Unknown model"),
        (("wan_tiny",), {"width": 97}, "width = 97 is not legal"),
        (("wan_tiny",), {"colour": 1}, "Unknown setting"),
        (("wan_tiny",), {"cache": {"method": "fixed", "mask": [True, False]}}, "2 entries"),
        (("wan_tiny",), {"num_steps": 2, "guidance": {"method": "cfg_zero", "zero_steps": 2}}, "for nothing"),
        ((3,), {}, "names no model"),
    ],
)
def test_mistakes(arguments: tuple[Any, ...], changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WanlabError, match=match):
        wanlab.estimate(*arguments, **changes)


def test_two_specs() -> None:
    spec = wanlab.load("wan_tiny", device="cpu").spec()
    with pytest.raises(WanlabError, match="two specs"):
        wanlab.estimate(spec, spec)
    with pytest.raises(WanlabError, match="for model 'wan_tiny'"):
        wanlab.estimate("wan_t2v_14b", spec)
