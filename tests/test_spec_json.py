"""A spec as data: JSON both ways, flat names, differences, display; any legal value survives, any other is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spec_examples import DEFAULT, PICTURE, Periodic
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.spec import LEAVES, PARTS, GenerationSpec


@pytest.fixture(autouse=True)
def _caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CACHES._entries, "test_periodic", Periodic)


@pytest.fixture
def spec() -> GenerationSpec:
    return GenerationSpec.of(DEFAULT, prompt="a red circle moves right", seed=7)


def test_json_both_ways(spec: GenerationSpec, tmp_path: Path) -> None:
    full = spec.with_(
        prompt="é 🪁 \"quoted\" 'x'\n</script> \\ \x00\u2028",
        cache={"method": "test_periodic", "layers": [1, 2]},
        references=[PICTURE],
        sigmas=[1, 0.1 + 0.2, 0],
        seed=2**63 - 1,
    )
    file = tmp_path / "spec.json"
    file.write_text(full.to_json(indent=2), encoding="utf-8")
    for source in (full.to_json(), full.to_json(indent=2), full.to_dict(), file, str(file)):
        assert GenerationSpec.from_json(source) == full
    assert "\n" not in full.to_json()
    for twin in (pickle.loads(pickle.dumps(full)), copy.deepcopy(full), copy.copy(full)):
        assert twin == full
        assert hash(twin) == hash(full)
        assert twin.cache.options["layers"] == (1, 2)


def test_flat_documents_are_read(spec: GenerationSpec) -> None:
    flat = {**spec.flat(), "cache": "test_periodic", "cache.period": 4}
    assert GenerationSpec.from_json(json.dumps(flat)).cache.bind() == Periodic.Options(period=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"model": "a", "model": "b"}', "given twice"),
        ('{"model": "a", "seed": NaN}', "NaN"),
        ("[1]", "A spec is a JSON object"),
        ("{}", "model is missing"),
        ('{"schema": 99, "model": "a"}', "Upgrade wanlab"),
        ('{"schema": "1", "model": "a"}', "schema = '1' is not a version"),
        ('{"schema": true, "model": "a"}', "not a version"),
        ('{"schema": 0, "model": "a"}', "not a version"),
        ('{"model": "a", "num_step": 2}', "Did you mean 'num_steps'?"),
        ('{"model": ' + "[" * 100_000, "nested too deeply"),
        ("/no/such/file.json", "Cannot read"),
        ("\0", "Cannot read"),
    ],
)
def test_bad_documents_are_refused(text: str, words: str) -> None:
    with pytest.raises(WanlabError) as caught:
        GenerationSpec.from_json(text)
    assert words in str(caught.value)


def test_flat_names_rebuild_the_spec(spec: GenerationSpec) -> None:
    changed = spec.with_(cache="test_periodic", guidance="cfg_interval", image=PICTURE)
    flat = changed.flat()
    assert spec.with_(**flat) == changed
    assert {"model", "cache", "cache.period", "guidance.start", "num_steps", "image"} <= set(flat)
    assert set(LEAVES) <= set(flat)


def test_diff_names_what_differs(spec: GenerationSpec) -> None:
    other = spec.with_(seed=8, cache="test_periodic", model="other")
    assert spec.diff(other) == {
        "model": ("wan_tiny", "other"),
        "sampling.seed": (7, 8),
        "cache": ("none", "test_periodic"),
        "cache.period": (None, 2),
        "cache.threshold": (None, 0.1),
        "cache.layers": (None, ()),
    }
    assert other.diff(spec)["cache.period"] == (2, None)
    assert spec.diff(spec) == {}
    changes = {name: there for name, (_, there) in spec.diff(other).items()}
    assert spec.with_(**changes) == other


def test_repr_is_short_and_builds_the_same(spec: GenerationSpec) -> None:
    changed = spec.with_(cache="test_periodic")
    assert eval(repr(changed)) == changed
    assert "width=96" in repr(changed)
    assert "crf" not in repr(changed)
    assert len(repr(spec.with_(prompt="a" * 20_000))) < 500


def test_resolve_asks_the_model(spec: GenerationSpec) -> None:
    class Model:
        def resolve(self, spec: GenerationSpec) -> GenerationSpec:
            return spec.with_(dtype="float32")

    assert spec.resolve(Model()).weights.dtype == "float32"


def settings_of(**leaves: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=leaves)


@settings(max_examples=60, deadline=None)
@given(
    changes=settings_of(
        prompt=st.text(max_size=50),
        seed=st.integers(0, 2**63 - 1),
        num_steps=st.integers(1, 10_000),
        guidance_scale=st.floats(allow_nan=False, allow_infinity=False),
        flow_shift=st.floats(min_value=1e-300, max_value=1e300),
        expert_boundary=st.none() | st.floats(0, 1),
        strip_prompt=st.booleans(),
        width=st.none() | st.integers(1, 16_384),
    )
)
def test_any_legal_settings_survive_json(changes: dict[str, Any]) -> None:
    spec = GenerationSpec.of(DEFAULT, **changes)
    again = GenerationSpec.from_json(spec.to_json())
    assert again == spec
    assert again.id == spec.id
    assert {k: spec.flat()[k] for k in changes} == changes


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([*LEAVES, *PARTS, "model", "schema", "x"]), value=JSON_VALUES)
def test_any_value_gives_a_spec_or_a_wanlab_error(name: str, value: Any) -> None:
    with contextlib.suppress(WanlabError):
        GenerationSpec.of(DEFAULT).with_(**{name: value}).to_json()


def test_ipython_shows_a_setting_a_line() -> None:
    pretty = pytest.importorskip("IPython.lib.pretty")
    spec = GenerationSpec.of({"model": "m"}, prompt="a kite", seed=7)
    assert pretty.pretty(spec) == "GenerationSpec(\n    model='m',\n    prompt='a kite',\n    seed=7,\n)"
