"""Calibration: numbers equal to a direct measurement, usable at once, stored whole or not at all; plans as pictures."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import caches, models, stages
from wanlab.caches import teacache
from wanlab.catalog import find
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.study import Calibration, calibrate, read_calibration, show_plan
from wanlab.study._plan import UNDECIDED, plan_strips

STEPS = 8
PROMPTS = ("a cat", "a dog on a chair")


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan"), request.param)[1], device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


@pytest.fixture(autouse=True)
def _few_prompts() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*polynomials of fewer than 50 are unstable")
        yield


def residuals(model: Model, prompt: str, stream: str = "video", **changes: Any) -> dict[tuple[str, int], Tensor]:
    """(branch, step) -> what the blocks add, float64, read from their first input and last output."""
    found: dict[tuple[str, int], Tensor] = {}
    at: list[Any] = []
    handles = [model.on_begin(lambda ctx: at.append(ctx))]

    def look(call: Any, streams: Any, **span: Any) -> Any:
        after = call(streams, **span)
        residual = after.tokens[stream].double() - streams.tokens[stream].double()
        found[at[-1].branch, at[-1].step] = residual
        return after

    handles += [stack.site.wrap(look, "recorder") for stack in model.stacks.values()]
    try:
        spec = model.spec(prompt=prompt, num_steps=STEPS, **changes)
        stages.denoise(model, spec, stages.encode_text(model, spec), stages.encode_conditions(model, spec))
    finally:
        for handle in handles:
            handle.remove()
    return found


def test_magcache_equals_a_direct_measurement(model: Model) -> None:
    found = calibrate(model, PROMPTS, "magcache", seeds=(0, 1), spec=model.spec(num_steps=STEPS))
    clips = [residuals(model, p, seed=s) for p in PROMPTS for s in (0, 1)]
    for name, ratios in zip(found.branches, found.ratios, strict=True):
        for step in range(1, STEPS):
            pairs = [(clip[name, step], clip[name, step - 1]) for clip in clips]
            expected = [float((now.norm(dim=-1) / before.norm(dim=-1)).mean()) for now, before in pairs]
            assert ratios[step - 1] == pytest.approx(np.mean(expected), abs=2e-5)
    assert found.branches == ("cond", "uncond")
    assert len({ratio for ratios in found.ratios for ratio in ratios}) > STEPS


def test_teacache_fits_each_expert(model: Model) -> None:
    spec = model.spec(num_steps=20)
    found = calibrate(model, PROMPTS, "teacache", spec=spec)
    run = caches.Run.of(model, model.resolve(spec.with_(prompt="a")))
    assert tuple(found.coefficients) == tuple(dict.fromkeys(run.experts))
    changed = np.array(found.residual_changes)
    for projected, (name, signals) in enumerate(
        [("coefficients", found.signal_changes), ("ret_coefficients", found.ret_signal_changes)]
    ):
        for expert, values in getattr(found, name).items():
            own = run.steps_of(expert)
            rows = model.time_embeddings(teacache.step_timesteps(run)[own], expert, projected=bool(projected))
            moved = teacache.changes(rows, len(own))[1:]
            steps = np.array(own[1:]) - 1
            assert np.array(signals)[steps] == pytest.approx(moved, rel=1e-9)
            fit = np.polyval(values, moved)
            best = np.polyval(np.polyfit(moved, changed[steps], 4), moved)
            assert fit == pytest.approx(best, abs=2e-4), "the clips' mean is fitted alike: all have the same signals"


def test_options_and_constants_work_at_once(model: Model) -> None:
    """What was measured goes into a spec, and as constants into a definition, and there is nothing to warn of."""
    spec = model.spec(prompt="a cat", num_steps=20)
    for method, more in (("magcache", {"threshold": 0.2}), ("teacache", {"threshold": 0.3, "ret_steps": True})):
        found = calibrate(model, PROMPTS[:1], method, spec=spec)
        given = spec.with_(cache={"method": method, **found.options(**more)})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            caches.check(model, given)
            definition = model.definition.model_dump(mode="json", by_alias=True) | {"constants": found.constants()}
            own = models.load(definition, device="cpu")
            plain = own.spec(prompt="a cat", num_steps=20, cache={"method": method, **more, "strict": True})
            prepared = [caches.prepared(m, m.resolve(s)) for m, s in ((model, given), (own, plain))]
        assert prepared[0].options == prepared[1].options
        with pytest.warns(caches.ConstantsWarning, match="num_steps 20 instead of 24"):
            caches.check(model, given.with_(num_steps=24))


def test_stored_and_read(model: Model, tmp_path: Path) -> None:
    file, told = tmp_path / "a" / "cal.json", []
    spec = model.spec(num_steps=STEPS)
    found = calibrate(
        model, PROMPTS, "magcache", spec=spec, save=file, on_progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 2), (2, 2)]
    assert read_calibration(file) == found
    assert found.made_for == {"model": model.id, "sampler": "unipc", "num_steps": STEPS, "flow_shift": 3.0}
    data = json.loads(file.read_text())
    assert (data["schema"], data["fingerprint"], data["num_prompts"]) == (1, model.fingerprint, 2)
    assert (data["size"], data["guidance"], data["experts"]) == ([48, 32, 9], "cfg", model.experts(spec))
    for wrong, words in (({**data, "schema": 2}, "schema"), ({**data, "ratio": 1}, "ratio"), ([1], "1")):
        file.write_text(json.dumps(wrong))
        with pytest.raises(WanlabError, match=words):
            read_calibration(file)
    file.write_text("{")
    with pytest.raises(WanlabError, match="cannot be read"):
        read_calibration(file)


@pytest.mark.parametrize("at", [1, 2])
def test_interrupted(model: Model, tmp_path: Path, at: int) -> None:
    """Nothing stays attached, nothing is written, and the next run equals a fresh one."""
    spec = model.spec(prompt="a cat", num_steps=STEPS)
    fresh = wanlab.generate(model, spec).latents

    def stop(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    count = [0]

    def in_a_step(ctx: Any) -> None:
        count[0] += 1
        if count[0] == 5 * at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, PROMPTS, "magcache", spec=spec, save=tmp_path / "cal.json", on_progress=stop)
    handle = model.on_begin(in_a_step)
    try:
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, PROMPTS, "teacache", spec=spec.with_(num_steps=20), save=tmp_path / "cal.json")
    finally:
        handle.remove()
    assert list(tmp_path.iterdir()) == []
    assert model.attachments() == []
    assert torch.equal(wanlab.generate(model, spec).latents, fresh)


def test_nothing_is_measured_under_a_cache(model: Model) -> None:
    spec = model.spec(prompt=PROMPTS[0], num_steps=8, cache={"method": "fixed", "mask": [True, False] * 4})
    with caches.attach(model, spec), pytest.raises(WanlabError, match="without one"):
        calibrate(model, PROMPTS[:1], "magcache", spec=spec)
    assert model.attachments() == []


def test_flux_is_measured_by_its_modulated_input(flux: Model) -> None:
    found = calibrate(flux, PROMPTS, "teacache", spec=flux.spec(num_steps=STEPS))
    assert found.ret_coefficients == {}
    assert all(0 < change < 2 for change in found.signal_changes)
    cache = {"method": "teacache", **found.options(threshold=0.5)}
    result = wanlab.generate(flux, prompt="a cat", num_steps=STEPS, cache=cache)
    assert 0 < result.ran["cache"]["reused"] < STEPS
    with pytest.raises(WanlabError, match="has no ret_coefficients"):
        found.options(ret_steps=True)
    one = calibrate(flux, PROMPTS[:1], "magcache", spec=flux.spec(num_steps=STEPS))
    assert (one.branches, len(one.options()["mag_ratios"])) == (("cond",), STEPS - 1)


def test_bad_input(model: Model) -> None:
    with pytest.raises(WanlabError, match="Choices: magcache, teacache"):
        calibrate(model, PROMPTS, "magcash")
    for prompts in ("a cat", []):
        with pytest.raises(WanlabError, match="Give a list of each"):
            calibrate(model, prompts, "magcache")
    late = model.spec(num_steps=STEPS, guidance={"method": "cfg_interval", "start": 0.5})
    with pytest.raises(WanlabError, match="branch uncond does not run at every step"):
        calibrate(model, PROMPTS, "magcache", spec=late)
    with pytest.raises(WanlabError, match=r"runs \d steps, and teacache needs 6"):
        calibrate(model, PROMPTS, "teacache", spec=model.spec(num_steps=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 prompts: polynomials of fewer than 50"):
            calibrate(model, PROMPTS[:1], "teacache", spec=model.spec(num_steps=20))


def test_wan_tiny_ships_what_was_measured() -> None:
    folder = Path(__file__).parents[1] / "experiments" / "caches" / "calibration"
    constants = find("wan_tiny").constants
    model = models.load("wan_tiny", device="cpu")
    own = model.spec().sampling.num_steps
    for method in ("magcache", "teacache"):
        for num_steps in (own, 50):
            found = read_calibration(folder / f"wan_tiny_{method}_{num_steps}.json")
            assert (found.num_steps, found.num_prompts, found.fingerprint) == (num_steps, 64, model.fingerprint)
            assert (found.constants().items() <= constants.items()) == (num_steps == own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("magcache", "teacache"):
            strips = plan_strips(model.spec(prompt="a", cache={"method": name, "strict": True}), model)
            assert 1.2 < strips.speedup < 2.5
    assert not model.parts["transformer"].loaded


# Pictures


def test_plan_of_a_spec_and_of_what_ran(model: Model) -> None:
    """The strips are the plan; those of the result what ran; a branch that does not run is blank."""
    ratios = [0.99] * (2 * (STEPS - 1))
    guidance = {"method": "cfg_interval", "start": 0.25, "stop": 0.75}
    spec = model.spec(
        prompt="a cat", num_steps=STEPS, guidance=guidance, cache={"method": "magcache", "mag_ratios": ratios}
    )
    strips = plan_strips(spec, model)
    assert np.isnan(strips.shares["uncond"]).tolist() == [not 2 <= step < 6 for step in range(STEPS)]
    rows = [row[~np.isnan(row)] for row in strips.shares.values()]
    assert strips.speedup == sum(map(len, rows)) / sum(row.sum() for row in rows)
    result = wanlab.generate(model, spec)
    ran = plan_strips(result, model)
    for name, row in strips.shares.items():
        assert np.array_equal(row, ran.shares[name], equal_nan=True)
    assert ran.speedup == pytest.approx(result.ran["cache"]["ideal_speedup"])
    figure = show_plan(spec, model)
    image = figure.axes[0].images[0].get_array()
    assert np.array_equal(np.ma.filled(image, -5), np.nan_to_num(np.stack(list(strips.shares.values())), nan=-5))
    assert f"{strips.speedup:.2f}x" in figure.get_suptitle()
    assert "magcache (threshold 0.12)" in figure.get_suptitle()
    two = len(model.experts_present) == 2
    assert ("transformer_2 from step" in figure.axes[0].child_axes[0].get_xlabel()) == two
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cond", "uncond"]


def test_plan_of_a_method_that_decides_as_it_runs(flux: Model) -> None:
    """Certain are the first and the last step; the result shows the signal against the threshold."""
    cache = {"method": "teacache", "coefficients": [1.0, 0.0], "threshold": 0.2}
    spec = flux.spec(prompt="a cat", num_steps=STEPS, cache=cache)
    strips = plan_strips(spec, flux)
    assert strips.shares["cond"].tolist() == [1.0, *[UNDECIDED] * (STEPS - 2), 1.0]
    assert "at most 4.00x" in show_plan(spec, flux).get_suptitle()
    result = wanlab.generate(flux, spec)
    figure = show_plan(result, flux)
    drawn = figure.axes[1].lines[0].get_ydata()
    told = {int(k): v for k, v in result.ran["cache"]["signals"]["transformer/cond/-1"].items()}
    assert all(math.isclose(drawn[step], value) for step, value in told.items())
    assert figure.axes[1].lines[1].get_ydata()[0] == 0.2
    assert "as it ran" in figure.get_suptitle()


def test_plan_without_a_model_or_a_cache() -> None:
    """The spec names its model, whose networks stay unread; no cache computes everything."""
    model = models.load("wan_tiny", device="cpu")
    plain = plan_strips(model.spec(prompt="a"))
    assert (plain.speedup, plain.is_open) == (1.0, False)
    assert not plain.run.model.parts["transformer"].loaded
    spec = model.spec(prompt="a", batch_branches=True, cache="magcache")
    assert list(plan_strips(spec).shares) == ["cond+uncond"]
    with pytest.raises(WanlabError, match="has no plan"):
        show_plan("wan_tiny")  # type: ignore[arg-type]


def test_figure_of_a_calibration(model: Model) -> None:
    published = {"Wan 2.1 1.3B": find("wan_t2v_1_3b").constants["mag_ratios"]["ratios"]}
    found = calibrate(model, PROMPTS[:1], "magcache", spec=model.spec(num_steps=STEPS))
    axes = found.figure(published).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"Wan 2.1 1.3B", f"{model.id} cond", f"{model.id} uncond"} == set(labels)
    assert isinstance(found, Calibration)
    axes = calibrate(model, PROMPTS[:1], "teacache", spec=model.spec(num_steps=20)).figure().axes[0]
    assert len(axes.lines) == 1 + len(model.experts_present)
