"""Runs that begin alike are run once until they differ, and none of them can tell."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sharing import CACHES, GUIDANCES, STEPS, Forwards, alone, base_of, check_equal, inputs
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_relatives import tiny_skyreels
from wanlab import models, registry, sweeps
from wanlab.caches.easycache import EasyCache
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError
from wanlab.guidance.cfg import CFG
from wanlab.models import Model
from wanlab.registry import SAMPLERS
from wanlab.watch import Cancelled, Watch

pytestmark = pytest.mark.filterwarnings("ignore:The constants of")


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
    specs["phases"] = base.with_(phase_scales=[5.0, 1.0], phase_boundaries=[0.7])
    specs["phases-apg"] = specs["phases"].with_(guidance={"method": "apg", "norm_threshold": 3.0})
    specs["scale"] = base.with_(guidance_scale=4.0)
    check_equal(wan, specs)
    shared = {key: ran["shared"]["prefix_steps"] for key, _, ran in run(wan, specs)}
    assert shared["cfg_interval"] == 4
    assert shared["cfg"] == shared["phases"] == 5, "the phase of scale 5 ends at noise level 0.7"
    assert shared["slg"] >= 4
    assert shared["scale"] == 0


def test_guidance_scales_of_the_second_expert_and_its_boundary(wan2: Model) -> None:
    base = base_of(wan2)
    specs = {f"{scale}": base.with_(guidance_scale_2=scale) for scale in (None, 3.0, 1.0)}
    specs |= {"later": base.with_(expert_boundary=0.7), "cached": specs["3.0"].with_(cache=fixed("11111011"))}
    check_equal(wan2, specs)
    first = wan2.experts(base.resolve(wan2)).index("transformer_2")
    shared = {key: ran["shared"]["prefix_steps"] for key, _, ran in run(wan2, specs)}
    assert shared["1.0"] == shared["later"] == first
    assert shared["3.0"] == shared["cached"] == 5 > first


def test_noise_levels_that_agree_at_first(wan: Model) -> None:
    levels = [1.0, 0.9, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0]
    specs = {f"{last}": base_of(wan).with_(sigmas=[*levels[:6], last, 0.05, 0.0]) for last in (0.2, 0.15)}
    specs["cached"] = specs["0.2"].with_(cache=CACHES["fixed"])
    check_equal(wan, specs)
    assert {ran["shared"]["prefix_steps"] for key, _, ran in run(wan, specs) if key != "cached"} == {5}


def test_frames_that_are_at_different_steps(tmp_path: Path) -> None:
    """Diffusion forcing: a row of the plan is a step of the run."""
    model = models.load(tiny_skyreels(tmp_path)[1], device="cpu")
    base = model.spec(prompt="a cat", num_steps=5, ar_step=2, max_text_tokens=8)
    specs = {"cfg": base, "interval": base.with_(guidance={"method": "cfg_interval", "stop": 0.5})}
    specs["apg"] = base.with_(guidance=GUIDANCES["apg"])
    found = {}
    for key, latents, ran in sweeps.denoise_together(model, specs, *inputs(model, base)):
        assert torch.equal(latents, alone(model, specs[key])[0]), key
        found[key] = ran["shared"]["prefix_steps"]
    rows = len(model.experts(base.resolve(model)))
    assert found == {"cfg": -(-rows // 2), "interval": -(-rows // 2), "apg": 0}


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


# Siblings

SIBLINGS: dict[str, list[dict[str, Any]]] = {
    "easycache": [{"threshold": t} for t in (0.3, 0.6, 0.9, 1.5)],
    "first_block": [{"threshold": t} for t in (0.005, 0.012, 0.015, 0.1)],
    "dbcache": [
        *({"threshold": t} for t in (0.012, 0.015, 0.1, 1.0)),
        {"threshold": 0.1, "max_cached_steps": 2},
        {"threshold": 0.1, "max_continuous_cached_steps": 1},
        {"threshold": 0.1, "max_accumulated_diff": 0.02},
    ],
    "adacache": [{}, {"max_interval": 2}, {"codebook": "slow"}, {"max_interval": 1}],
    "seacache": [*({"threshold": t} for t in (0.3, 0.6, 5.0)), {"threshold": 5.0, "max_consecutive": 0}],
}


def rows(ran: dict[str, Any], step: int) -> list[Any]:
    """What a report says of a step."""
    parts = {name: ran["cache"][name] for name in ("shares", "signals")}
    return [(name, k, r[str(step)]) for name, part in parts.items() for k, r in part.items() if str(step) in r]


@pytest.mark.parametrize("method", sorted(SIBLINGS))
def test_siblings_share_until_the_first_decision_that_differs(wan: Model, method: str) -> None:
    """Counted by a hook: every different beginning of the single runs' reports is run once."""
    base = base_of(wan).with_(cache=CACHES[method])
    specs = {
        str(i): base.with_(**{f"cache.{name}": value for name, value in options.items()})
        for i, options in enumerate(SIBLINGS[method])
    }
    reports = {key: alone(wan, spec)[1] for key, spec in specs.items()}
    beginnings: dict[str, int] = {}
    for ran in reports.values():
        for step in range(STEPS):
            beginning = repr([rows(ran, i) for i in range(step + 1)])
            beginnings[beginning] = sum(hits[str(step)] for hits in ran["cache"]["hit_map"].values())
    part_runs = {"first_block", "dbcache"}  # whose first block runs whatever they decide
    with Forwards(wan) as counted:
        together = run(wan, specs)
        shared = {key: (latents, ran) for key, latents, ran in together}
    assert together.executed == sum(beginnings.values())
    assert counted.count == (2 * len(beginnings) if method in part_runs else together.executed)
    assert len({repr(r["cache"]["hit_map"]) for r in reports.values()}) > 1, "the options have to matter"
    for key, spec in specs.items():
        assert torch.equal(shared[key][0], alone(wan, spec)[0]), key
        assert shared[key][1]["cache"] == reports[key]["cache"], key
    check_equal(wan, {**specs, "none": base.with_(cache="none"), "fixed": base.with_(cache=CACHES["fixed"])})


def test_a_subclass_that_says_nothing_shares_nothing(wan: Model) -> None:
    """It may act otherwise than the class that it is made from."""

    class Mine(EasyCache):
        def around_forward(self, call: Any, latents: Any, ctx: Any, branch: Any) -> Any:
            return super().around_forward(call, latents, ctx, branch) * (1 + self.options.threshold)

    class Rule(CFG):
        def combine(self, predictions: Any, ctx: Any) -> Any:
            return super().combine(predictions, ctx) * (1.01 if ctx.step > 2 else 1.0)

    registry.CACHES.register("mine")(Mine)
    registry.GUIDANCE.register("mine")(Rule)
    try:
        base = base_of(wan)
        options = {"method": "mine", "warmup_steps": 2}
        specs = {f"{t}": base.with_(cache={**options, "threshold": t}) for t in (0.3, 0.6)}
        specs |= {"mine": base.with_(guidance="mine"), "cfg": base}
        for key, latents, _ in run(wan, specs):
            assert torch.equal(latents, alone(wan, specs[key])[0]), key
    finally:
        del registry.CACHES._entries["mine"], registry.GUIDANCE._entries["mine"]


# What may share at all


def test_group_keys(wan: Model, wan2: Model) -> None:
    base = base_of(wan)
    key = sweeps.group_key(wan, base)
    same = [{"cache": CACHES["pab"]}, {"guidance": "apg"}, {"guidance_scale": 2.0}, {"flow_shift": 7.0}]
    same += [{"sigmas": [1 - i / STEPS for i in range(STEPS + 1)]}]
    assert {sweeps.group_key(wan, base.with_(**change)) for change in same} == {key}
    other = [{"seed": 1}, {"prompt": "a dog"}, {"num_steps": 9}, {"sampler": "euler"}, {"batch_branches": True}]
    other += [{"attention": "math"}, {"num_frames": 9}, {"width": 48}, {"unload": "switch"}, {"negative_prompt": "x"}]
    keys = [sweeps.group_key(wan, base.with_(**change)) for change in other]
    assert len({key, *keys}) == 1 + len(other)
    compiled = base.with_(compile_mode="blocks")
    inside = [compiled.with_(cache=CACHES[name]) for name in ("pab", "taylorseer-all")]
    assert len({sweeps.group_key(wan, spec) for spec in (compiled, *inside)}) == 3
    assert sweeps.group_key(wan, compiled.with_(cache=CACHES["taylorseer"])) == sweeps.group_key(wan, compiled)
    boundary = base_of(wan2)
    assert sweeps.group_key(wan2, boundary.with_(expert_boundary=0.5)) == sweeps.group_key(wan2, boundary)


def test_text_and_conditions_that_may_be_shared(wan: Model) -> None:
    base = base_of(wan)
    assert sweeps.text_key(base.with_(seed=3, num_steps=5, cache="easycache")) == sweeps.text_key(base)
    assert sweeps.text_key(base.with_(prompt="a dog")) != sweeps.text_key(base)
    assert sweeps.conditions_key(base.with_(seed=3, prompt="a dog", sampler="euler")) == sweeps.conditions_key(base)
    assert sweeps.conditions_key(base.with_(width=48)) != sweeps.conditions_key(base)
    assert sweeps.conditions_key(base.with_(riflex="on")) != sweeps.conditions_key(base)


def test_the_forecast_needs_no_weights() -> None:
    """A described model; what only its weights or the run would tell counts as computed, and is named."""
    model = models.describe("wan_t2v_1_3b", dtype="bfloat16")
    base = model.spec(prompt="a cat", num_steps=50, flow_shift=3.0)
    specs = [base, base.with_(cache="teacache"), base.with_(cache="easycache"), base.with_(cache="magcache")]
    forecast = sweeps.forecast(model, specs)
    assert forecast.unknown == (1, 2)
    assert len(forecast.groups) == 1
    assert forecast.alone == 300 + sweeps.forecast(model, specs[3:]).alone
    assert forecast.shared < forecast.alone
    assert sweeps.forecast(model, [base, base.with_(seed=1)]).ratio == 1.0


def test_what_cannot_share_is_refused(wan: Model) -> None:
    base = base_of(wan)
    text, conditions = inputs(wan, base)
    with pytest.raises(WanlabError, match=r"a and b cannot share steps: they differ in sampling\.seed"):
        sweeps.denoise_together(wan, {"a": base, "b": base.with_(seed=1)}, text, conditions)
    with pytest.raises(WanlabError, match="needs the negative prompt"):
        sweeps.denoise_together(wan, {"a": base}, {"prompt": text["prompt"]}, conditions)
    with pytest.raises(WanlabError, match="nothing to denoise"):
        sweeps.denoise_together(wan, {}, text, conditions)
    with wan.on_begin(print), pytest.raises(WanlabError, match=r"attached .* by hand"):
        sweeps.denoise_together(wan, {"a": base}, text, conditions)
    assert not wan.attachments()


# Memory and stops


def test_residuals_are_kept_only_where_they_are_reused(wan: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that reuses at its end alone holds nothing before, and reports what the single run holds."""
    base = base_of(wan)
    specs = {"late": base.with_(cache=fixed("11111110")), "none": base}
    kept: list[int] = []
    executor: list[Fixed] = []
    original = Fixed.keep_residual

    def keep(self: Fixed, *args: Any) -> None:
        original(self, *args)
        kept.append(sum(len(memory.tensors) for memory in self.snapshot().values()))
        executor.append(self)

    monkeypatch.setattr(Fixed, "keep_residual", keep)
    ran = {key: ran for key, _, ran in run(wan, specs)}
    assert kept == [0] * 12 + [1, 2]
    assert ran["late"]["cache"] == alone(wan, specs["late"])[1]["cache"]
    assert ran["late"]["cache"]["state_bytes"] > 0
    assert not executor[0].snapshot(), "nothing stays behind"


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled, ValueError])
def test_a_stop_at_every_step_leaves_the_model_clean(wan: Model, error: type[BaseException]) -> None:
    """Whatever ends a step; what was pending goes on afterwards, but for the variants that it happened to."""
    names = ("none", "magcache", "easycache", "dbcache")
    specs = {key: spec for key, spec in all_caches(base_of(wan)).items() if key in names}
    expected = {key: latents for key, latents, _ in run(wan, specs)}
    total = []
    for key, _, _ in run(wan, specs, watch=Watch(lambda *_: total.append(1))):
        assert key in specs
    for stop in range(0, len(total), 4):
        count = itertools.count()

        def step(*_: Any, at: int = stop, count: Any = count) -> None:
            if next(count) == at:
                raise error

        together = run(wan, specs, watch=Watch(step))
        found: dict[str, Any] = {}
        with pytest.raises(error):
            take(together, found)
        assert not wan.attachments()
        assert not wan.lock.owner
        lost = set(together.lost)
        assert lost
        take(together, found)
        assert set(found) == set(specs) - lost
        for key, latents in found.items():
            assert torch.equal(latents, expected[key]), (key, stop)
    assert torch.equal(alone(wan, specs["none"])[0], expected["none"])


def take(together: sweeps.Together, found: dict[str, Any]) -> None:
    for key, latents, _ in together:
        found[key] = latents


def test_the_iterator_may_be_left(wan: Model) -> None:
    specs = all_caches(base_of(wan))
    key, latents, _ = next(run(wan, specs))
    assert not wan.attachments()
    assert not wan.lock.owner
    assert torch.equal(alone(wan, specs[key])[0], latents)
