"""MagCache and TeaCache on models: the plan is the published one, the run follows it, bad constants are named."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

import wanlab
from tests import layouts
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_relatives import tiny_skyreels
from tests.tiny_video import picture, tiny_i2v
from wanlab import caches, catalog, models, weights
from wanlab.caches import ConstantsWarning, magcache, teacache
from wanlab.caches.fixed import Fixed
from wanlab.catalog import find
from wanlab.errors import WanlabError
from wanlab.files import resource
from wanlab.models import Model
from wanlab.result import Result
from wanlab.sites import StepContext

STEPS = 12
RATIOS = [1 - 0.004 * i / 10 - 0.015 * (i % 2) for i in range(2 * (STEPS - 1))]  # unlike in both branches
POLY = [2.0, 0.5, 0.0]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture(scope="module")
def wan2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan2"), 2)[1], device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


def mag(**options: Any) -> dict[str, Any]:
    return {"method": "magcache", "mag_ratios": RATIOS, "threshold": 0.05, **options}


def tea(**options: Any) -> dict[str, Any]:
    return {"method": "teacache", "coefficients": POLY, **options}


def masks(model: Model, cache: Any, **changes: Any) -> dict[str, list[bool]]:
    """The prepared masks by forward, where that forward runs."""
    spec = model.resolve(model.spec(prompt="a cat", cache=cache, **{"num_steps": STEPS, **changes}))
    fixed = caches.prepared(model, spec)
    assert isinstance(fixed, Fixed)
    found: dict[str, list[bool]] = {}
    for step, _, name in caches.Run.of(model, spec).forwards:
        found.setdefault(name, []).append(fixed.options.branch_masks.get(name, fixed.options.mask)[step])
    return found


def ran(result: Result) -> dict[str, list[bool]]:
    found: dict[str, dict[int, bool]] = {}
    for path, steps in result.ran["cache"]["hit_map"].items():
        found.setdefault(path.split("/")[1], {}).update({int(k): v for k, v in steps.items()})
    return {name: [hits[step] for step in sorted(hits)] for name, hits in found.items()}


# Magcache


def test_magcache_is_the_published_plan_and_runs(wan: Model) -> None:
    """No network is read for the plan; the run computes what it says and tells the method's name."""
    fresh = models.load(wan.definition, device="cpu")
    expected = magcache.plan(RATIOS, STEPS, 0.05, 2, 0.2)
    assert 0 < sum(expected) < len(expected)
    found = masks(fresh, mag())
    assert found == {"cond": expected[0::2], "uncond": expected[1::2]}
    assert not any(part.loaded for part in fresh.parts.values())
    result = wanlab.generate(wan, prompt="a cat", num_steps=STEPS, cache=mag())
    assert ran(result) == found
    assert (result.ran["cache"]["method"], result.ran["cache"]["computed"]) == ("magcache", sum(expected))


def test_no_threshold_is_exact(wan: Model) -> None:
    plain = wanlab.generate(wan, prompt="a cat", num_steps=STEPS).latents
    for cache in (mag(threshold=0), tea(threshold=0)):
        result = wanlab.generate(wan, prompt="a cat", num_steps=STEPS, cache=cache)
        assert torch.equal(result.latents, plain)
        assert result.ran["cache"]["reused"] == 0


def test_every_kind_of_guidance(wan: Model) -> None:
    """The conditional branch takes the even list, every other the odd one; one that starts late computes first."""
    plan = magcache.plan(RATIOS, STEPS, 0.05, 2, 0.2)
    even, odd = plan[0::2], plan[1::2]
    assert even != odd
    assert masks(wan, mag(), guidance_scale=1.0) == {"cond": even}
    third = masks(wan, mag(), guidance={"method": "slg", "layers": [1], "scale": 2.0, "start": 0, "stop": 1})
    assert third == {"cond": even, "uncond": odd, "skip": odd}
    together = masks(wan, mag(), batch_branches=True)
    assert together == {"cond+uncond": [a or b for a, b in zip(even, odd, strict=True)]}
    late = masks(wan, mag(), guidance={"method": "cfg_interval", "start": 0.5, "stop": 0.9})
    assert late["cond"] == even
    assert late["uncond"] == by_hand(odd_ratios(), range(6, 11))
    both = masks(wan, mag(), guidance={"method": "cfg_interval", "start": 0.5, "stop": 0.9}, batch_branches=True)
    pairs = zip(by_hand(even_ratios(), range(6, 11)), by_hand(odd_ratios(), range(6, 11)), strict=True)
    assert both["cond+uncond"] == [a or b for a, b in pairs]
    assert both["cond"] == [*even[:6], True], "after a pause what was kept is too old"
    for changes in ({"batch_branches": True}, {"guidance": {"method": "cfg_interval", "start": 0.5, "stop": 0.9}}):
        result = wanlab.generate(wan, prompt="a cat", num_steps=STEPS, cache=mag(), **changes)
        assert ran(result) == masks(wan, mag(), **changes)


def even_ratios() -> list[float]:
    return [1.0, *RATIOS[0::2]]


def odd_ratios() -> list[float]:
    return [1.0, *RATIOS[1::2]]


def by_hand(ratios: list[float], steps: range) -> list[bool]:
    """The rule from the first of these steps on, which computes; no retention."""
    found, product, error, length = [True], 1.0, 0.0, 0
    for step in steps[1:]:
        product, length = product * ratios[step], length + 1
        error += abs(1 - product)
        found.append(not (error < 0.05 and length <= 2))
        if found[-1]:
            product, error, length = 1.0, 0.0, 0
    return found


def test_magcache_over_two_experts(wan2: Model) -> None:
    run = caches.Run.of(wan2, wan2.resolve(wan2.spec(prompt="a cat", num_steps=STEPS)))
    split = run.split_step
    assert split is not None
    assert 0 < split < STEPS
    for keep in (False, True):
        plan = magcache.plan(RATIOS, STEPS, 0.05, 2, 0.2, split_step=split, keep_first_phase=keep)
        found = masks(wan2, mag(keep_first_phase=keep))
        assert found == {"cond": plan[0::2], "uncond": plan[1::2]}
    result = wanlab.generate(wan2, prompt="a cat", num_steps=STEPS, cache=mag())
    assert ran(result) == masks(wan2, mag())


def test_without_retention_each_expert_starts_with_a_computed_step(wan2: Model) -> None:
    run = caches.Run.of(wan2, wan2.resolve(wan2.spec(prompt="a cat", num_steps=STEPS)))
    found = masks(wan2, mag(retention=0.0, threshold=5.0, max_skip=50))
    assert found["uncond"] == [step in (0, run.split_step) for step in range(STEPS)]


def test_a_run_that_starts_later_uses_the_end_of_the_list(tmp_path: Path) -> None:
    ratios = magcache.ratios_by_step(RATIOS, STEPS, 2)
    model = models.load(tiny_wan(tmp_path)[1], device="cpu")
    spec = model.spec(prompt="a cat", num_steps=STEPS, cache=mag(retention=0.0))
    run = caches.Run.of(model, model.resolve(spec))
    later = replace(run, sigmas=run.sigmas[4:], experts=run.experts[4:], branches=run.branches[4:])
    cache = magcache.MagCache(spec.cache.bind())
    assert cache._ratios(later).tolist() == ratios[4:].tolist()
    assert cache.masks(later)["cond"].tolist() == by_hand(ratios[4:, 0].tolist(), range(STEPS - 4))


def test_one_branch_and_lists_of_other_lengths(wan: Model) -> None:
    one = mag(mag_ratios=RATIOS[0::2], num_branches=1)
    plan = magcache.plan(RATIOS[0::2], STEPS, 0.05, 2, 0.2, num_branches=1)
    assert masks(wan, one) == {"cond": plan, "uncond": plan}
    plan = magcache.plan(RATIOS, 30, 0.05, 2, 0.2)
    assert masks(wan, mag(), num_steps=30) == {"cond": plan[0::2], "uncond": plan[1::2]}


def test_a_list_of_its_own_from_pictures(tmp_path: Path) -> None:
    """A model of both, text and pictures, has a list for each (Wan 2.2 5B)."""
    _, own = tiny_i2v(tmp_path, "5b")
    own = {**own, "constants": {**own["constants"], "mag_ratios": {"ratios": RATIOS, "with_image": RATIOS[::-1]}}}
    model = models.load(own, device="cpu")
    plans = [magcache.plan(r, STEPS, 0.05, 2, 0.2) for r in (RATIOS, RATIOS[::-1])]
    assert plans[0] != plans[1]
    given = {"method": "magcache", "threshold": 0.05}
    assert masks(model, given)["cond"] == plans[0][0::2]
    assert masks(model, given, image=np.asarray(picture(0)))["cond"] == plans[1][0::2]


# Teacache


@pytest.mark.parametrize("kind", ["wan", "wan2", "skyreels"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_time_embeddings_equal_the_networks(kind: str, dtype: str, tmp_path: Path) -> None:
    """Read without the network, equal to the loaded one's condition embedder in float32."""
    make = {"wan": tiny_wan, "wan2": lambda folder: tiny_wan(folder, 2), "skyreels": tiny_skyreels}[kind]
    model = models.load(make(tmp_path)[1], device="cpu", dtype=dtype)
    timesteps = torch.linspace(1000, 1, 9)
    for expert in model.experts_present:
        found = [model.time_embeddings(timesteps, expert, projected=p) for p in (False, True)]
        assert not model.parts[expert].loaded
        embedder = model.parts[expert].module.condition_embedder
        with torch.no_grad():
            state = {name: value.float() for name, value in embedder.state_dict().items()}
            time = torch.func.functional_call(
                embedder.time_embedder,
                {k.removeprefix("time_embedder."): v for k, v in state.items() if k.startswith("time_embedder.")},
                embedder.timesteps_proj(timesteps).float(),
            )
            moved = torch.nn.functional.silu(time) @ state["time_proj.weight"].T + state["time_proj.bias"]
        assert torch.equal(found[0], time)
        torch.testing.assert_close(found[1], moved, rtol=1e-5, atol=1e-6)
        for projected, before in enumerate(found):
            assert torch.equal(model.time_embeddings(timesteps, expert, projected=bool(projected)), before)
    if len(model.experts_present) == 2:
        one, two = (model.time_embeddings(timesteps, expert) for expert in model.experts_present)
        assert not torch.equal(one, two)


@pytest.mark.parametrize("layout", ["diffusers", "original", "fp8", "int8"])
def test_single_tensors_of_every_layout(layout: str, tmp_path: Path) -> None:
    """`load_tensors` gives what `load_component` puts into the network."""
    folder, definition = tiny_wan(tmp_path / "folder")
    state = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    if layout != "diffusers":
        state = layouts.wan_original(state)
    if layout in ("fp8", "int8"):
        state = (layouts.scaled_fp8 if layout == "fp8" else layouts.quanto_int8)(state)[0]
    save_file(state, tmp_path / "one.safetensors")
    component = weights.Component(
        "transformer", (tmp_path / "one.safetensors",), definition["architecture"]["transformer"]
    )
    whole = weights.load_component(WanTransformer3DModel, component, torch.bfloat16).state_dict()
    names = [name for name in whole if name.startswith(("condition_embedder.time", "blocks.2.attn1.to_k"))]
    found = weights.load_tensors(WanTransformer3DModel, component, names, torch.bfloat16)
    assert found.keys() == set(names)
    for name, value in found.items():
        assert value.dtype == whole[name].dtype
        assert torch.equal(value, whole[name]), name
    with pytest.raises(WanlabError, match="lacks 1 of 1 tensors"):
        weights.load_tensors(WanTransformer3DModel, component, ["blocks.9.ffn.net.2.weight"], torch.float32)


@pytest.mark.parametrize("ret", [False, True])
def test_teacache_is_the_published_plan_and_runs(wan: Model, ret: bool) -> None:
    spec = wan.resolve(wan.spec(prompt="a cat", num_steps=STEPS))
    times = torch.tensor([float(int(1000 * s)) for s in wan.sigmas(spec)[:-1].tolist()])
    rows = wan.time_embeddings(times, "transformer", projected=ret)
    moved = teacache.increments(teacache.changes(rows, STEPS), POLY)
    threshold = float(2.5 * np.median(moved[1:]))
    plan = teacache.plan(rows, POLY, threshold, STEPS, ret)
    assert 2 < sum(plan) < len(plan)
    options = tea(threshold=threshold, ret_steps=ret)
    assert masks(wan, options) == {"cond": plan[0::2], "uncond": plan[1::2]}
    assert masks(wan, options, batch_branches=True) == {"cond+uncond": plan[0::2]}
    result = wanlab.generate(wan, prompt="a cat", num_steps=STEPS, cache=options)
    assert ran(result) == {"cond": plan[0::2], "uncond": plan[1::2]}
    assert result.ran["cache"]["method"] == "teacache"
    late = masks(wan, options, guidance={"method": "cfg_interval", "start": 0.5})
    assert late["cond"] == plan[0::2]
    assert late["uncond"][0]


def test_teacache_of_two_experts(wan2: Model) -> None:
    """Each expert's plan is that of its own steps, embedding and polynomial."""
    spec = wan2.resolve(wan2.spec(prompt="a cat", num_steps=30))
    run = caches.Run.of(wan2, spec)
    polys = {"transformer": [1.0, 0.0], "transformer_2": [0.5, 0.0]}
    expected: list[bool] = []
    times = teacache.step_timesteps(run)
    for expert, poly in polys.items():
        own = run.steps_of(expert)
        rows = wan2.time_embeddings(times[own], expert)
        expected += teacache.plan(rows, poly, 1.1, len(own), num_branches=1)
    assert masks(wan2, tea(coefficients=polys, threshold=1.1), num_steps=30)["cond"] == expected
    assert not all(expected[: run.split_step])
    assert not all(expected[run.split_step :])
    with pytest.raises(WanlabError, match="a polynomial for each expert"):
        masks(wan2, tea())
    with pytest.raises(WanlabError, match="no coefficients for transformer_2"):
        masks(wan2, tea(coefficients={"transformer": POLY}))


def test_smart_speedups(wan: Model) -> None:
    """The threshold is WanGP's, the start computes, and the conditional branch comes near the wanted speed-up."""
    threshold = magcache.smart_threshold(RATIOS, 20, 2.0, start_step=4)
    ratios = magcache.ratios_by_step(RATIOS, 20, 2)
    starts = np.zeros(ratios.shape, bool)
    starts[0] = True
    usable = np.broadcast_to((np.arange(20) > 4)[None, :, None], (1, 20, 2))
    expected = magcache.walk(ratios, usable, starts, np.array([threshold]), np.array([2]))[0]
    found = masks(wan, {"method": "magcache", "mag_ratios": RATIOS, "speedup": 2.0, "start_percent": 20}, num_steps=20)
    assert found["cond"] == expected[:, 0].tolist()
    assert found["uncond"] == expected[:, 1].tolist()
    assert abs(sum(found["cond"]) - 10) <= 1
    found = masks(wan, tea(coefficients=[0.1, 0.0], speedup=1.5), num_steps=20)
    assert abs(sum(found["cond"]) - 13) <= 2
    assert found["cond"][-1]
    for options in ({"speedup": 2.0, "threshold": 0.3}, {"start_percent": 10}, {"num_branches": 1, "mag_ratios": None}):
        with pytest.raises(WanlabError, match="no effect"):
            wan.spec(cache=mag(threshold=0.12) | options)
    with pytest.raises(WanlabError, match="speedup"):
        wan.spec(cache=mag(threshold=0.12, speedup=3))


# Where content decides


def test_teacache_on_flux_looks_at_the_first_blocks_input(flux: Model) -> None:
    """Hits are those that the recorded signals give by the published rule; the first and the last step compute."""
    signals: list[torch.Tensor] = []
    stack = flux.stacks["transformer"]

    def look(call: Any, streams: Any, **span: Any) -> Any:
        signals.append(flux.modulated_input(streams, "transformer"))
        return call(streams, **span)

    handle = stack.site.wrap(look, "recorder")
    try:
        options = tea(coefficients=[1.0, 0.0], threshold=0.2)
        result = wanlab.generate(flux, prompt="a cat", num_steps=STEPS, cache=options)
    finally:
        handle.remove()
    moved = [0.0] + [((b - a).abs().mean() / a.abs().mean()).item() for a, b in itertools.pairwise(signals)]
    expected, total = [], 0.0
    for step in range(STEPS):
        total += moved[step]
        expected.append(step in (0, STEPS - 1) or not total < 0.2)
        total = 0.0 if expected[-1] else total
    assert ran(result) == {"cond": expected}
    assert 2 < sum(expected) < STEPS
    with pytest.raises(WanlabError, match="depends on content"):
        caches.check(flux, flux.spec(prompt="a", cache=tea(speedup=2.0)))


def test_teacache_by_content_begins_anew_with_other_blocks(tmp_path: Path) -> None:
    model = models.load(tiny_flux(tmp_path, guidance_embeds=False)[1], device="cpu")
    rule = {"method": "slg", "layers": [1], "start": 0.3, "stop": 0.6}
    options = tea(coefficients=[0.0, 0.0], threshold=0.2)  # everything that may be reused is
    result = wanlab.generate(model, prompt="a cat", num_steps=10, guidance_scale=3.5, guidance=rule, cache=options)
    hits = {name: [step for step, hit in enumerate(rows) if hit] for name, rows in ran(result).items()}
    assert hits == {"cond": [0, 9], "uncond": [0, 3, 6, 9]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_teacache_sums_halves_in_float32(flux: Model, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of half precision's own resolution would not add up to a threshold."""
    first = torch.randn(1, 500, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    second = (1.013 * first.float()).to(dtype)
    cache = caches.prepared(flux, flux.resolve(flux.spec(cache=tea(coefficients=[1.0, 0.0]))))
    assert cache is not None
    monkeypatch.setattr(flux, "modulated_input", lambda streams, expert: streams)
    with cache.attach(flux):
        for signal in (first, second):
            cache.signal(signal, StepContext(0, 8, 1.0))  # type: ignore[arg-type]
        found = cache.memory(StepContext(0, 8, 1.0)).numbers["change"]
    moved = (second - first).double().abs().mean() / first.double().abs().mean()
    assert found == pytest.approx(float(moved), rel=1e-5)


def test_state_is_predicted(flux: Model, wan: Model, wan2: Model) -> None:
    both = {"transformer": [0.1, 0.0], "transformer_2": [0.1, 0.0]}
    runs = [(flux, tea(coefficients=[1.0, 0.0])), (wan, mag()), (wan, tea()), (wan2, mag())]
    for model, cache in [*runs, (wan2, tea(coefficients=both))]:
        result = wanlab.generate(model, prompt="a cat", num_steps=STEPS, cache=cache)
        assert result.ran["cache"]["state_bytes"] == caches.predict_bytes(model, result.spec)


def test_interrupted_runs_leave_nothing(flux: Model, wan: Model) -> None:
    for model, cache in ((flux, tea(coefficients=[1.0, 0.0], threshold=0.2)), (wan, mag())):
        spec = model.spec(prompt="a cat", num_steps=6, cache=cache)
        fresh = wanlab.generate(model, spec).latents

        for at in range(5):

            def stop(step: int, *_: Any, at: int = at) -> None:
                if step == at:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                wanlab.generate(model, spec, on_step=stop)
            assert model.attachments() == []
        assert torch.equal(wanlab.generate(model, spec).latents, fresh)


# Bad input


def test_missing_foreign_and_other_constants(wan: Model) -> None:
    with pytest.raises(WanlabError, match=r"none are known for wan_random_1.*calibrate"):
        caches.check(wan, wan.spec(cache="magcache"))
    with pytest.raises(WanlabError, match="none are known"):
        caches.check(wan, wan.spec(cache="teacache"))
    with pytest.raises(WanlabError, match="made for wan_t2v_14b, and the model is wan_random_1"):
        caches.check(wan, wan.spec(num_steps=STEPS, cache=mag(made_for={"model": "wan_t2v_14b"})))
    made = {"model": "wan_random_1", "sampler": "euler", "num_steps": 50, "flow_shift": 3.0}
    spec = wan.spec(num_steps=STEPS, cache=mag(made_for=made))
    with pytest.warns(ConstantsWarning, match="sampler euler instead of unipc, num_steps 50 instead of 12: the plan"):
        caches.check(wan, spec)
    with pytest.raises(WanlabError, match="num_steps 50 instead of 12"):
        caches.check(wan, spec.with_(**{"cache.strict": True}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caches.check(wan, wan.spec(num_steps=STEPS, cache=mag(made_for={**made, "sampler": "unipc", "num_steps": 12})))
    with pytest.raises(WanlabError, match="for 2 branches"):
        caches.check(wan, wan.spec(cache=mag(mag_ratios=RATIOS[:-1])))


@pytest.mark.parametrize("cache", [mag(), tea(), tea(ret_steps=True), mag(retention=1.0)])
def test_too_few_steps(wan: Model, cache: dict[str, Any]) -> None:
    spec = wan.spec(prompt="a cat", num_steps=STEPS if cache.get("retention") else 2, cache=cache)
    if cache["method"] == "magcache" and "retention" not in cache:
        spec = spec.with_(num_steps=1)
    with pytest.raises(WanlabError, match="they are too few"):
        wanlab.generate(wan, spec)
    assert wan.attachments() == []


def test_a_finetune_that_inherits_constants_says_so(tmp_path: Path) -> None:
    """What a definition has from its base warns, or raises under strict, unless its publisher uses it for both."""
    _, own = tiny_wan(tmp_path)
    entry = {"ratios": RATIOS, "made_for": {"model": "wan_t2v_14b", "num_steps": STEPS}}
    model = models.load(own | {"constants": {"mag_ratios": entry}}, device="cpu")
    spec = model.spec(prompt="a cat", num_steps=STEPS, cache="magcache")
    with pytest.warns(ConstantsWarning, match="model wan_t2v_14b instead of wan_random_1"):
        caches.check(model, spec)
    with pytest.raises(WanlabError, match="measured with model wan_t2v_14b"):
        caches.check(model, spec.with_(**{"cache.strict": True}))
    model = models.load(own | {"constants": {"mag_ratios": entry | {"also": ["wan_random_1"]}}}, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caches.check(model, spec)


# Definitions

IDS = sorted(path.stem for path in resource("defaults").glob("*.json"))


@pytest.mark.parametrize("name", IDS)
def test_published_constants_are_sound_and_of_the_same_network(name: str) -> None:
    """Also those that a definition has from its base: of a network with the same width, depth and experts."""
    definition = find(name)
    for key in ("mag_ratios", "teacache"):
        entry = definition.constants.get(key)
        if entry is None:
            continue
        assert definition.sources[f"constants.{key}"]
        origin = find(entry["made_for"]["model"])
        assert _network(origin) == _network(definition), f"{name} has {key} of {origin.id}"
        assert origin.constants[key] == entry or _parts(origin.constants[key]) == _parts(entry)
        if key == "mag_ratios":
            num_branches, num_steps = entry.get("num_branches", 2), entry["made_for"]["num_steps"]
            for ratios in (entry["ratios"], entry.get("with_image", entry["ratios"])):
                assert magcache.ratios_by_step(ratios, num_steps, num_branches).shape == (num_steps, num_branches)
                assert len(ratios) == num_branches * (num_steps - 1)
        else:
            assert all(len(entry[k]) == 5 for k in ("coefficients", "ret_coefficients") if k in entry)


def _parts(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in ("made_for", "also")}


def _network(definition: catalog.Definition) -> Any:
    network = definition.architecture["transformer"]
    size = [network.get(k) for k in ("num_layers", "num_attention_heads", "attention_head_dim", "freq_dim")]
    return size, "transformer_2" in definition.architecture


def test_who_has_constants() -> None:
    have = {n: [k for k in ("mag_ratios", "teacache") if find(n).constants.get(k)] for n in IDS}
    both = ["mag_ratios", "teacache"]
    for name in ("wan_t2v_14b", "wan_t2v_1_3b", "wan_i2v_480p_14b", "wan_i2v_720p_14b", "vace_14b", "vace_1_3b"):
        assert have[name] == both
    assert have["wan22_t2v_a14b"] == have["wan22_i2v_a14b"] == have["wan22_ti2v_5b"] == ["mag_ratios"]
    assert have["flux_dev"] == ["teacache"]
    assert have["vace_14b_2_2"] == have["wan_animate_14b"] == have["wan_fun_inp_1_3b"] == []
    assert find("wan22_i2v_a14b").constants["mag_ratios"]["keep_first_phase"]
    assert not find("wan22_t2v_a14b").constants["mag_ratios"].get("keep_first_phase")
