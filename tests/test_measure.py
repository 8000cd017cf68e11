"""`measure`: what it times is what `generate` does, samples are kept, pairs are neighbours, nothing stays attached."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_video import picture, tiny_i2v
from wanlab.errors import WanlabError
from wanlab.study import Samples, Speedup, Timing, measure
from wanlab.study import _measure as module

STAGES = ["text", "conditions", "denoise", "decode", "post"]
HALF = {"method": "fixed", "mask": [True, False, True, False]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spec(model: Any) -> Any:
    return model.spec(prompt="a kite", num_steps=4)


@pytest.fixture(scope="module")
def pair(model: Any, spec: Any) -> Timing:
    return measure(model, spec.with_(cache=HALF), repeats=3, warmup=1, against=spec)


def test_samples_by_hand() -> None:
    found = Samples((4.0, 1.0, 3.0, 2.0, 10.0))
    assert found.median == 3.0
    assert found.quartiles == (2.0, 4.0)
    assert found.iqr == 2.0
    assert Samples((5.0,)).iqr == 0.0
    assert Samples((1.0, 2.0)).median == 1.5


def test_every_stage_and_step_of_every_repeat(model: Any, spec: Any) -> None:
    found = measure(model, spec, repeats=3, warmup=2)
    assert (len(found.repeats), len(found.warmup)) == (3, 2)
    assert list(found.stages) == [*STAGES, "total"]
    assert all(len(samples.values) == 3 and min(samples.values) > 0 for samples in found.stages.values())
    assert list(found.steps) == [0, 1, 2, 3]
    assert len(found.step.values) == 12
    for repeat in found.repeats:
        assert sum(repeat.steps.values()) <= repeat.stages["denoise"]
        assert repeat.ran["forwards"] == {"transformer": 8}
    assert found.stages["total"].median >= found.stages["denoise"].median
    assert found.kernels == "sdpa"
    assert found.peak_allocated > 1e7
    assert found.env["torch"] == torch.__version__.split("+")[0] or found.env["torch"] == torch.__version__
    assert found.env["device"] == "cpu"
    assert found.env["clocks"] == {"before": {}, "after": {}}
    assert (found.against, found.speedup) == (None, None)


def test_the_clock_is_read_at_the_stages_borders(model: Any, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts its readings: five stages, four steps inside one of them, no reading between."""
    readings = iter(range(1_000_000))
    monkeypatch.setattr(module.Clock, "mark", lambda self: next(readings))
    found = measure(model, spec, repeats=1, warmup=0)
    assert found.repeats[0].stages == {"text": 1, "conditions": 1, "denoise": 5, "decode": 1, "post": 1}
    assert found.repeats[0].steps == dict.fromkeys(range(4), 1)


def test_a_step_without_a_forward_is_not_listed(model: Any, spec: Any) -> None:
    found = measure(model, spec.with_(guidance={"method": "cfg_zero", "zero_steps": 2}), repeats=1, warmup=0)
    assert list(found.steps) == [2, 3]


def test_measuring_changes_nothing(model: Any, spec: Any, pair: Timing) -> None:
    before = wanlab.generate(model, spec).latents
    measure(model, spec, repeats=1, warmup=0, against=spec.with_(cache=HALF))
    assert torch.equal(wanlab.generate(model, spec).latents, before)
    assert model.attachments() == []


def test_two_specs_in_turns(model: Any, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = module._generation
    monkeypatch.setattr(module, "_generation", lambda m, s: order.append(s.cache.method) or real(m, s))
    measure(model, spec.with_(cache=HALF), repeats=2, warmup=1, against=spec)
    assert order == ["fixed", "none", "none", "fixed", "fixed", "none"]


def test_realised_and_ideal_speedup(pair: Timing) -> None:
    assert pair.against is not None
    assert pair.speedup is not None
    ratios = [
        b.stages["denoise"] / a.stages["denoise"] for a, b in zip(pair.repeats, pair.against.repeats, strict=True)
    ]
    assert pair.speedup.realised.values == tuple(ratios)
    assert pair.speedup.ideal == 2.0
    assert pair.speedup.efficiency == np.median(ratios) / 2
    assert pair.repeats[0].ran["cache"]["reused"] == 4
    assert "ideal 2.000x" in str(pair)


def test_the_ideal_is_between_caches_and_for_equal_forwards_only() -> None:
    plain = {"forwards": {"transformer": 8}}
    half, third = ({**plain, "cache": {"ideal_speedup": x}} for x in (2.0, 3.0))
    assert module._ideal(half, plain) == 2.0
    assert module._ideal(plain, half) == 0.5
    assert module._ideal(third, half) == 1.5
    assert module._ideal(plain, plain) is None
    assert module._ideal(half, {"forwards": {"transformer": 4}}) is None
    assert Speedup(Samples((2.0, 3.0)), None).efficiency is None


def test_a_frame_of_all_samples(pair: Timing) -> None:
    frame = pair.frame
    assert list(frame.columns) == ["run", "phase", "repeat", "stage", "step", "seconds"]
    assert len(frame) == 2 * 4 * (5 + 4)
    assert set(frame.run) == {pair._label, pair.against._label if pair.against else ""}
    whole = frame[(frame.run == pair._label) & (frame.phase == "measured") & (frame.step == -1)]
    medians = whole.groupby("stage").seconds.median()
    for name in STAGES:
        assert medians[name] == pair.stages[name].median


def test_shows_itself_and_is_json(pair: Timing) -> None:
    text, page = str(pair), pair._repr_html_()
    for word in ("denoise", "a step", "peak allocated", "sdpa", "3 runs after 1 of warm-up", "cache fixed"):
        assert word in text
        assert word in page
    assert json.loads(json.dumps(pair.to_dict()))["speedup"]["ideal"] == 2.0
    assert len(pair.to_dict()["against"]["repeats"]) == 3


def test_pictures_and_other_families(tmp_path: Path) -> None:
    for build, changes in ((tiny_i2v, {"image": picture(1)}), (tiny_flux, {})):
        model = wanlab.load(build(tmp_path / build.__name__)[1], device="cpu")
        found = measure(model, model.spec(prompt="a kite", num_steps=2, **changes), repeats=1, warmup=0)
        assert list(found.steps) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"repeats": 0}, "repeats = 0 is no number of runs. Give 1 or more"),
        ({"repeats": True}, "repeats = True"),
        ({"repeats": 2.0}, "repeats = 2.0"),
        ({"warmup": -1}, "warmup = -1 is no number of runs. Give 0 or more"),
        ({"against": "fast"}, "'fast' is not a spec"),
    ],
)
def test_mistakes(model: Any, spec: Any, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WanlabError, match=match):
        measure(model, spec, **changes)


def test_a_spec_that_cannot_run_stops_before_anything_does(model: Any, spec: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_generation", lambda *_: pytest.fail("it ran"))
    with pytest.raises(WanlabError, match="3 entries for 4 steps"):
        measure(model, spec, against=spec.with_(cache={"method": "fixed", "mask": [True, False, True]}))
    with pytest.raises(WanlabError, match="not a loaded model"):
        measure("wan_tiny", spec)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", range(6))
def test_an_interrupt_leaves_nothing(model: Any, spec: Any, at: int) -> None:
    wanted = wanlab.generate(model, spec).latents
    calls = iter(range(100))

    def interrupt(ctx: Any) -> None:
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)

    with model.on_begin(interrupt), pytest.raises(KeyboardInterrupt):
        measure(model, spec.with_(cache=HALF), repeats=2, warmup=0, against=spec)
    assert model.attachments() == []
    assert model.lock.owner == ""
    assert torch.equal(wanlab.generate(model, spec).latents, wanted)


@pytest.mark.gpu
def test_events_agree_with_the_clock() -> None:
    """On a GPU: stages add up to what a clock around all of it says, and the GPU's state is told."""
    import time

    model = wanlab.load("wan_tiny", device="cuda")
    spec = model.spec(prompt="a kite", num_steps=4)
    measure(model, spec, repeats=1, warmup=1)
    start = time.perf_counter()
    found = measure(model, spec, repeats=3, warmup=0, against=spec.with_(cache=HALF))
    outside = time.perf_counter() - start
    inside = sum(found.stages["total"].values) + sum(found.against.stages["total"].values) if found.against else 0
    assert 0.5 * outside <= inside <= outside
    assert found.peak_reserved is not None
    assert found.peak_reserved >= found.peak_allocated > 0
    assert found.env["gpu"]
