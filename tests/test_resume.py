"""Runs that stop and go on, by hand or from checkpoints, are the runs that did not, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sharing import CACHES, GUIDANCES, STEPS, alone, base_of, inputs
from tests.tiny import tiny_wan
from wanlab import models, stages, sweeps
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sampling import SamplerState, load_state, save_state
from wanlab.sweeps import _checkpoint
from wanlab.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore:The constants of")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan2"), 2)[1], device="cpu")


# By hand


@pytest.mark.parametrize("name", CACHES)
def test_a_cached_run_stops_and_goes_on_at_every_step(wan: Model, name: str, tmp_path: Path) -> None:
    """Through a file; what the first part does afterwards leaves no trace; the report is that of the whole run."""
    spec = base_of(wan, cache=CACHES[name])
    text, conditions = inputs(wan, spec)
    whole, told = alone(wan, spec)
    state: SamplerState | None = None
    for stop in range(STEPS + 1):
        state = stages.denoise_to(wan, spec, text, conditions, stop, state)
        assert state.index == stop
        if stop not in (1, 2, 3, 5, 8):
            continue
        save_state(state, tmp_path / "state")
        kept = {key: tensor.clone() for key, tensor in state.to_tensors().items()}
        latents, ran = stages.denoise_recorded(wan, spec, text, conditions, load_state(tmp_path / "state"))
        assert torch.equal(latents, whole), stop
        assert ran["cache"] == told["cache"], stop
        assert torch.equal(stages.denoise(wan, spec, text, conditions, state), whole), stop
        assert all(torch.equal(tensor, kept[key]) for key, tensor in state.to_tensors().items()), "changed in place"
    assert torch.equal(state.latents, whole)


@pytest.mark.parametrize("sampler", ["unipc", "euler", "dpmpp_2m", "lcm", "causvid"])
@pytest.mark.parametrize("guidance", ["apg", "slg"])
def test_samplers_and_rules_stop_and_go_on(wan: Model, sampler: str, guidance: str) -> None:
    spec = base_of(wan, cache=CACHES["easycache"], guidance=GUIDANCES[guidance]).with_(sampler=sampler)
    text, conditions = inputs(wan, spec)
    whole, _ = alone(wan, spec)
    state = stages.denoise_to(wan, spec, text, conditions, 3)
    state = stages.denoise_to(wan, spec, text, conditions, 5, state)
    assert torch.equal(stages.denoise(wan, spec, text, conditions, state), whole)


def test_a_state_forks_to_options_that_only_decide(wan: Model) -> None:
    """A threshold may change on the way; a state of another cache is refused, and can be left behind."""
    spec = base_of(wan, cache=CACHES["easycache"])
    text, conditions = inputs(wan, spec)
    state = stages.denoise_to(wan, spec, text, conditions, 2)  # the warm-up
    never = spec.with_(cache__threshold=0.0)
    assert torch.equal(stages.denoise(wan, never, text, conditions, state), alone(wan, never)[0])
    for other in ("none", "dbcache", "magcache", "taylorseer"):
        cache = "none" if other == "none" else CACHES[other]
        with pytest.raises(WanlabError, match=r"remembers, and the spec has none|cannot be read by") as error:
            stages.denoise(wan, spec.with_(cache=cache), text, conditions, state)
        assert "replace(state, cache={})" in str(error.value)
        assert not wan.attachments()
        found = stages.denoise(wan, spec.with_(cache=cache), text, conditions, replace(state, cache={}))
        assert torch.isfinite(found).all()
    split = spec.with_(cache=CACHES["dbcache"])
    half = stages.denoise_to(wan, split, text, conditions, 4)
    with pytest.raises(WanlabError, match="num_first=2"):
        stages.denoise(wan, split.with_(cache__num_first=2), text, conditions, half)


def test_a_fixed_plan_is_read_by_whatever_lowers_to_one(wan: Model) -> None:
    spec = base_of(wan, cache=CACHES["magcache"])
    text, conditions = inputs(wan, spec)
    state = stages.denoise_to(wan, spec, text, conditions, 1)
    fixed = spec.with_(cache=CACHES["fixed"])
    assert torch.equal(stages.denoise(wan, fixed, text, conditions, state), alone(wan, fixed)[0])


def test_a_stop_that_is_not_reached_is_refused(wan: Model) -> None:
    spec = base_of(wan)
    text, conditions = inputs(wan, spec)
    with pytest.raises(WanlabError, match=f"up to step {STEPS + 1} of {STEPS}"):
        stages.denoise_to(wan, spec, text, conditions, STEPS + 1)


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_states_of_every_schema_are_read(schema: int) -> None:
    """The files were written when the schema was new; they stay as they are."""
    state = load_state(GOLDEN / f"state_v{schema}.safetensors")
    assert state.index == 3
    assert torch.equal(state.latents, torch.arange(8.0).reshape(1, 2, 1, 2, 2))
    assert torch.equal(state.history[0], torch.ones(1, 2, 1, 2, 2))
    assert set(state.guidance) == ({"average"} if schema > 1 else set())
    assert set(state.cache) == ({"peak", "tensors/transformer/cond/-1/video"} if schema > 2 else set())


# From checkpoints


class Stopped(BaseException):
    """Ends a run as a kill would: between two steps, with nothing said."""


def grid(wan: Model) -> dict[str, Any]:
    names = ("fixed", "magcache", "easycache", "dbcache", "taylorseer", "pab")
    base = base_of(wan, guidance=GUIDANCES["apg"])
    specs = {"none": base, **{name: base.with_(cache=CACHES[name]) for name in names}}
    specs["easycache-low"] = specs["easycache"].with_(cache__threshold=0.3)
    specs["plain"] = base.with_(guidance=GUIDANCES["cfg"])
    return specs


def start(wan: Model, folder: Path, specs: dict[str, Any], every: int | None = 1, stop: int = -1) -> sweeps.Together:
    steps = iter(range(10_000))

    def step(*_: Any) -> None:
        if next(steps) == stop:
            raise Stopped

    checkpoint = sweeps.Checkpoints(folder, wan.fingerprint, every)
    return sweeps.denoise_together(wan, specs, *inputs(wan, base_of(wan)), watch=Watch(step), checkpoint=checkpoint)


def take(together: sweeps.Together, found: dict[str, Any]) -> None:
    for key, latents, ran in together:
        found[key] = (latents, ran)


@pytest.mark.parametrize("every", [1, 3])
def test_a_sweep_that_is_stopped_again_and_again(wan: Model, every: int, tmp_path: Path) -> None:
    """Every few steps, by new processes as it were; what is done is not asked for again."""
    specs = grid(wan)
    expected: dict[str, Any] = {}
    whole = start(wan, tmp_path / "whole", specs)
    take(whole, expected)
    found: dict[str, Any] = {}
    executed = tries = 0
    while set(found) != set(specs):
        left = {key: spec for key, spec in specs.items() if key not in found}
        together = start(wan, tmp_path / "part", left, every, stop=7)
        try:
            take(together, found)
        except Stopped:
            tries += 1
        executed += together.executed
        assert tries < 40
    assert tries >= 3
    for key, spec in specs.items():
        latents, told = alone(wan, spec)
        assert torch.equal(found[key][0], latents), key
        assert torch.equal(expected[key][0], latents), key
        assert {**found[key][1], "shared": 0} == {**told, "shared": 0}, key
    assert whole.executed <= executed <= whole.executed + 2 * tries * (every + 1)
    assert not list((tmp_path / "part").iterdir()), "nothing is left behind"


def test_few_files_are_kept(wan: Model, tmp_path: Path) -> None:
    specs = grid(wan)
    with pytest.raises(Stopped):
        take(start(wan, tmp_path, specs, 1, stop=12), {})
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    kept = {key: sorted(r["step"] for r in records if key in r["keys"]) for key in specs}
    assert max(map(len, kept.values())) >= 2
    for record in records:
        assert any(record["step"] in kept[key][-2:] for key in record["keys"])


def test_a_checkpoint_that_does_not_fit_is_not_used(wan: Model, tmp_path: Path) -> None:
    """Of other weights, of other numerics, damaged, or of another spec of the same key; the older one serves then."""
    specs = {"none": base_of(wan), "easycache": base_of(wan, cache=CACHES["easycache"])}
    expected = {key: alone(wan, spec)[0] for key, spec in specs.items()}

    def resumed(fingerprint: str = "", **changed: Any) -> int:
        """Forwards that the rest takes."""
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(Stopped):
            take(start(wan, folder, specs, 1, stop=2), {})
        newest = sorted(folder.glob("*.safetensors"))[-1]
        if "damage" in changed:
            data = bytearray(newest.read_bytes())
            data[-1] ^= 1
            newest.write_bytes(data)
        if "torn" in changed:
            newest.with_suffix(".json").write_text("{")
        again = {key: changed.get("spec", spec) for key, spec in specs.items()}
        checkpoint = sweeps.Checkpoints(folder, fingerprint or wan.fingerprint, 100)
        together = sweeps.denoise_together(wan, again, *inputs(wan, specs["none"]), checkpoint=checkpoint)
        for key, latents, _ in together:
            assert torch.equal(latents, alone(wan, again[key])[0] if "spec" in changed else expected[key])
        return together.executed

    whole = resumed(fingerprint="other")
    assert resumed() == whole - 4
    assert resumed(damage=True) == resumed(torn=True) == whole - 2
    assert resumed(spec=base_of(wan, seed=1)) == 2 * STEPS
    with pytest.raises(WanlabError, match="every 0 steps"):
        sweeps.Checkpoints(tmp_path, wan.fingerprint, 0)


def test_other_numerics_are_not_read(wan: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {"none": base_of(wan)}
    with pytest.raises(Stopped):
        take(start(wan, tmp_path, specs, 1, stop=3), {})
    assert sweeps.Checkpoints(tmp_path, wan.fingerprint).load("none") is not None
    monkeypatch.setattr(_checkpoint, "NUMERICS", -1)
    assert sweeps.Checkpoints(tmp_path, wan.fingerprint).load("none") is None


def test_by_time_a_checkpoint_is_due_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(_checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = sweeps.Checkpoints(tmp_path, "f")
    assert not checkpoints.due(1)
    now[0] += 60
    assert checkpoints.due(2)
    checkpoints.save(2, SamplerState(torch.zeros(1)), ["a"])
    assert not checkpoints.due(3)
