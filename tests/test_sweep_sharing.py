"""Runs that begin alike are run once until they differ, and none of them can tell."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sharing import CACHES, GUIDANCES, Forwards, alone, base_of, check_equal, inputs
from tests.tiny import tiny_flux, tiny_wan
from wanlab import models, registry, sweeps
from wanlab.models import Model
from wanlab.registry import SAMPLERS

Pytestmark = pytest.mark.filterwarnings("ignore::wanlab.caches.ConstantsWarning")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture(scope="module")
def wan2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan2"), 2)[1], device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


def all_caches(base: Any) -> dict[str, Any]:
    return {"none": base, **{name: base.with_(cache=cache) for name, cache in CACHES.items()}}


# Equal bits


def test_every_method_and_sampler_is_here() -> None:
    """Those of the package; tests of other files may have registered more."""

    def own(kind: Any) -> set[str]:
        return {name for name in kind.names() if kind.get(name).__module__.startswith("wanlab.")}

    assert {cache["method"] for cache in CACHES.values()} == own(registry.CACHES)
    assert {g["method"] for g in GUIDANCES.values()} == own(registry.GUIDANCE) - {"dual", "embedded"}
    assert set(SAMPLER_CHANGES) == own(SAMPLERS)


SAMPLER_CHANGES: dict[str, dict[str, Any]] = {
    name: {"sampler": name} for name in ("unipc", "euler", "dpmpp_2m", "lcm", "causvid")
}


@pytest.mark.parametrize("changes", [{}, {"batch_branches": True}], ids=["sequential", "batched"])
def test_all_caches_in_one_group(wan2: Model, changes: dict[str, Any]) -> None:
    """Two experts; with each other and with none, one branch after another and as one batch."""
    specs = all_caches(base_of(wan2, **changes))
    together = check_equal(wan2, specs)
    forecast = sweeps.forecast(wan2, list(specs.values()))
    assert len(forecast.groups) == 1
    assert together.executed <= forecast.shared < forecast.alone


def test_caches_that_look_inside_flux(flux: Model) -> None:
    specs = all_caches(base_of(flux))
    specs["teacache"] = specs["none"].with_(cache={"method": "teacache", "coefficients": [1.0, 0.0], "threshold": 0.3})
    specs["teacache-low"] = specs["teacache"].with_(cache__threshold=0.1)
    specs["magcache"] = specs["magcache"].with_(cache__mag_ratios=[1.01, 0.99] * 4)
    check_equal(flux, specs)


@pytest.mark.parametrize("sampler", sorted(SAMPLER_CHANGES))
def test_samplers(wan: Model, sampler: str) -> None:
    base = base_of(wan).with_(sampler=sampler)
    names = ("none", "magcache", "easycache", "dbcache", "taylorseer")
    check_equal(wan, {name: spec for name, spec in all_caches(base).items() if name in names})


def test_rules_share_the_steps_in_which_they_are_the_same(wan: Model) -> None:
    """A rule outside its window, or with a scale of 1, is plain guidance; and each takes a cache along."""
    base = base_of(wan)
    cached = {"method": "magcache", "mag_ratios": CACHES["magcache"]["mag_ratios"], "retention": 0.3}
    specs = {name: base.with_(guidance=guidance) for name, guidance in GUIDANCES.items()}
    specs |= {f"{name}-cached": spec.with_(cache=cached) for name, spec in specs.items()}
    specs["phases"] = base.with_(phase_scales=[5.0, 1.0], phase_boundaries=[0.8])
    specs["phases-apg"] = specs["phases"].with_(guidance={"method": "apg", "norm_threshold": 3.0})
    specs["scale"] = base.with_(guidance_scale=4.0)
    check_equal(wan, specs)
    shared = {key: ran["shared"]["prefix_steps"] for key, _, ran in run(wan, specs)}
    assert shared["cfg_interval"] == shared["cfg"] == 4
    assert shared["slg"] >= 4
    assert shared["scale"] == 0


def test_guidance_scales_of_the_second_expert_and_its_boundary(wan2: Model) -> None:
    base = base_of(wan2)
    specs = {f"{scale}": base.with_(guidance_scale_2=scale) for scale in (None, 3.0, 1.0)}
    specs |= {"later": base.with_(expert_boundary=0.7), "cached": specs["3.0"].with_(cache=CACHES["easycache"])}
    check_equal(wan2, specs)
    first = wan2.experts(base.resolve(wan2)).index("transformer_2")
    shared = {key: ran["shared"]["prefix_steps"] for key, _, ran in run(wan2, specs)}
    assert shared["1.0"] == shared["later"] == first
    assert shared["3.0"] == shared["cached"] > first


def test_noise_levels_that_agree_at_first(wan: Model) -> None:
    levels = [1.0, 0.9, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0]
    specs = {f"{last}": base_of(wan).with_(sigmas=[*levels[:6], last, 0.05, 0.0]) for last in (0.2, 0.15)}
    specs["cached"] = specs["0.2"].with_(cache=CACHES["fixed"])
    check_equal(wan, specs)
    assert {ran["shared"]["prefix_steps"] for key, _, ran in run(wan, specs) if key != "cached"} == {5}


def run(model: Model, specs: dict[str, Any], **more: Any) -> sweeps.Together:
    return sweeps.denoise_together(model, specs, *inputs(model, base_of(model)), **more)


# Counted work


def test_26_settings_of_magcache_take_less_than_a_third(wan: Model, repository: Path) -> None:
    """The published ratios of Wan 2.1 1.3B; 50 steps, two branches; a hook on the first block counts."""
    definition = json.loads((repository / "defaults" / "wan_t2v_1_3b.json").read_text())
    ratios = definition["constants"]["mag_ratios"]["ratios"]
    base = base_of(wan).with_(num_steps=50, width=16, height=16, num_frames=1)
    grid = itertools.product((0.06, 0.12, 0.18, 0.24, 0.30), (1, 2, 3, 4, 5))
    mag = {"method": "magcache", "retention": 0.2, "mag_ratios": ratios}
    specs = {f"{t}-{n}": base.with_(cache={**mag, "threshold": t, "max_skip": n}) for t, n in grid}
    specs["none"] = base
    forecast = sweeps.forecast(wan, list(specs.values()))
    assert (len(specs), forecast.alone, forecast.shared) == (26, 1280, 376)
    assert forecast.ratio <= 0.30
    with Forwards(wan) as shared:
        together = run(wan, specs)
        latents = {key: found for key, found, _ in together}
    assert shared.count == together.executed == 376
    with Forwards(wan) as single:
        for key in ("none", "0.06-1", "0.18-3", "0.3-5"):
            assert torch.equal(alone(wan, specs[key])[0], latents[key]), key
    assert single.count == sum(sweeps.forecast(wan, [specs[k]]).alone for k in ("none", "0.06-1", "0.18-3", "0.3-5"))


def test_plans_that_are_known_take_what_the_forecast_says(wan: Model) -> None:
    base = base_of(wan)
    masks = ("10101010", "10111011", "10111011", "10111010")
    specs = {f"{i}": base.with_(cache=fixed(mask)) for i, mask in enumerate(masks)}
    specs |= {"none": base, "mag": base.with_(cache=CACHES["magcache"])}
    specs["one"] = base.with_(cache=fixed("11111111"), cache__branch_masks={"uncond": fixed("10101010")["mask"]})
    forecast = sweeps.forecast(wan, list(specs.values()))
    with Forwards(wan) as counted:
        together = check_and_count(wan, specs)
    assert counted.count == together.executed == forecast.shared
    tree = sweeps.plan(wan, specs)
    assert len(tree) == 1
    assert tree[0].total == forecast.shared
    assert tree[0].keys == tuple(specs)


def fixed(mask: str) -> dict[str, Any]:
    return {"method": "fixed", "mask": [letter == "1" for letter in mask]}


def check_and_count(model: Model, specs: dict[str, Any]) -> sweeps.Together:
    together = run(model, specs)
    for _ in together:
        pass
    return together
