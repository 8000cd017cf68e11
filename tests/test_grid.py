"""Grids: the laws of their grammar, what they refuse, what they show."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import wanlab
from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.sweeps import Grid, Zip, expand, grid, seeds, zip_
from wanlab.sweeps._settings import changes

BASE = grid("wan_tiny").base
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "num_steps": st.integers(1, 9),
    "seed": st.integers(0, 9),
    "guidance_scale": st.sampled_from([1.0, 2.5, 4]),
    "prompt": st.sampled_from(["a kite", "", "two kites"]),
    "cache": st.sampled_from(["none", "magcache", {"method": "magcache", "threshold": 0.3}]),
}
AXES = st.dictionaries(st.sampled_from(sorted(_VALUES)), st.none(), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({n: st.lists(_VALUES[n], min_size=1, max_size=3) for n in names})
)


def combinations(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The product, re-derived."""
    return [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]


def distinct(ids: list[str]) -> list[str]:
    return list(dict.fromkeys(ids))


@QUICK
@given(AXES)
def test_product_has_every_combination_once_the_last_axis_fastest(axes: dict[str, list[Any]]) -> None:
    made = grid(BASE, **axes)
    assert list(made.ids) == distinct([BASE.with_(**point).id for point in combinations(axes)])
    if "cache" not in axes:  # its values may be the same method in two spellings
        assert len(made) == math.prod(len(set(values)) for values in axes.values())
    assert made.names == tuple(axes)


@QUICK
@given(AXES)
def test_every_point_is_the_base_with_its_settings(axes: dict[str, list[Any]]) -> None:
    made = grid(BASE, **axes)
    for i, spec in enumerate(made):
        assert spec.id == made.ids[i] == made.base.with_(**made.settings(i)).id
        assert json.loads(json.dumps(made.settings(i))) == made.settings(i)


@QUICK
@given(st.lists(st.tuples(_VALUES["num_steps"], _VALUES["guidance_scale"], _VALUES["seed"]), min_size=1, max_size=5))
def test_zip_goes_through_its_axes_together(rows: list[tuple[Any, ...]]) -> None:
    names = ("num_steps", "guidance_scale", "seed")
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    made = zip_(BASE, **columns)
    assert list(made.ids) == distinct([BASE.with_(**dict(zip(names, row, strict=True))).id for row in rows])
    crossed = grid(BASE, zip_(**columns), prompt=["a", "b"])
    assert len(crossed) == 2 * len(made)


@QUICK
@given(AXES, AXES)
def test_union_has_the_first_ones_points_and_then_the_new_ones(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, two = grid(BASE, **a), grid(BASE.with_(flow_shift=2.0, cache="magcache"), **b)
    both = one + two
    assert list(both.ids) == distinct([*one.ids, *two.ids])
    assert both.base == one.base
    assert [both.base.with_(**both.settings(i)).id for i in range(len(both))] == list(both.ids)


@QUICK
@given(AXES, st.integers(0, 9))
def test_skip_and_where_divide_a_grid(axes: dict[str, list[Any]], seed: int) -> None:
    made = grid(BASE, **axes) + grid(BASE, seed=[seed, seed + 1], num_steps=10)
    kept = made.skip(seed=seed)
    gone = made.where(lambda spec: spec.sampling.seed == seed)
    assert kept == made.where(lambda spec: spec.sampling.seed != seed)
    assert sorted([*kept.ids, *gone.ids]) == sorted(made.ids)
    assert made.skip(gone) == kept


@QUICK
@given(AXES, AXES)
def test_a_document_makes_an_equal_grid(a: dict[str, Any], b: dict[str, Any]) -> None:
    made = grid(BASE, **a) + grid(BASE.with_(cache="teacache"), **b)
    again = Grid.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert hash(again) == hash(made)
    assert (again.names, again.labels) == (made.names, made.labels)


@QUICK
@given(AXES)
def test_plain_parameters_follow_the_same_grammar(axes: dict[str, list[Any]]) -> None:
    document = {"grid": axes, "plus": [{"zip": [{"seed": [5, 6], "num_steps": [2, 3]}]}]}
    points = expand(document)
    made = Grid.from_dict({"base": {"model": "wan_tiny"}, **document})
    assert list(made.ids) == distinct([BASE.with_(**point).id for point in points])


@pytest.mark.parametrize("n", [1, 3])
def test_seeds_go_on_from_each_points_own(n: int) -> None:
    made = grid(BASE, num_steps=[4, 5], seed=[3, 10]).seeds(n)
    assert [(s.sampling.num_steps, s.sampling.seed) for s in made] == [
        (steps, seed + k) for steps in (4, 5) for seed in (3, 10) for k in range(n)
    ]
    assert seeds(n, start=4) == list(range(4, 4 + n))
    assert len(grid(BASE, seed=[0, 1]).seeds(2)) == 3  # 0, 1, and 1, 2


@pytest.mark.parametrize(
    "values",
    [[3, 4], (3, 4), range(3, 5), np.array([3, 4]), (i for i in (3, 4)), {3: "a", 4: "b"}.keys(), [np.int64(3), 4]],
    ids=["list", "tuple", "range", "array", "generator", "keys", "numpy"],
)
def test_axes_of_every_kind(values: Any) -> None:
    made = grid(BASE, num_steps=values)
    assert [made.settings(i) for i in range(len(made))] == [{"num_steps": 3}, {"num_steps": 4}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache", "magcache"),
        ("cache", {"method": "magcache", "threshold": 0.1}),
        ("num_steps", 4),
        ("num_steps", np.array(4)),
        ("sigmas", None),
        ("prompt", "a kite"),
    ],
)
def test_a_single_value_is_fixed_for_all_points(name: str, value: Any) -> None:
    made = grid(BASE, **{name: value}, seed=[0, 1])
    assert [s.id for s in made] == [BASE.with_(**{name: value}, seed=seed).id for seed in (0, 1)]


def test_values_that_are_lists_themselves() -> None:
    made = grid(BASE, sigmas=[[1, 0.5, 0], [1, 0.7, 0.3, 0], None])
    assert [s.sampling.num_steps for s in made] == [2, 3, BASE.sampling.num_steps]
    assert grid(BASE, sigmas=np.array([[1, 0.5, 0], [1, 0.7, 0]]))[1].sampling.sigmas == (1, 0.7, 0)


def test_options_of_a_method_are_axes() -> None:
    made = grid(BASE.with_(cache="magcache"), cache__threshold=[0.1, 0.2])
    assert made.names == ("cache.threshold",)
    assert [s.cache.options["threshold"] for s in made] == [0.1, 0.2]
    alike = grid(BASE, cache="magcache", cache__threshold=[0.1, 0.2])
    assert alike.ids == made.ids


def test_media_are_stored_and_named_by_content(tmp_path: Path, live: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    picture = Image.new("RGB", (32, 32), "green")
    made = grid(BASE, image=[tmp_path / "a.png", str(tmp_path / "b.png"), picture, None])
    assert [spec.media.image is None for spec in made] == [False, False, False, True]
    assert len({spec.media.image.sha256 for spec in made[:3]}) == 3
    assert made[0].id == BASE.with_(image=tmp_path / "a.png").id
    assert Grid.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    assert len(grid(BASE, video=frames, seed=[0, 1])) == 2  # frames are one value
    assert made.labels[0].startswith("image=a.png")
    mask = np.zeros((32, 32), np.uint8)
    assert len(grid(BASE, video=frames, mask=mask)) == 1  # so is a mask, which has the shape of a list of lists


def test_bases() -> None:
    model = wanlab.load("wan_tiny", "cpu")
    assert grid(model, seed=[0, 1]) == grid("wan_tiny", seed=[0, 1]) == grid(model.spec(), seed=[0, 1])
    alias = model.definition.aliases[0] if model.definition.aliases else model.id
    assert grid(BASE.with_(model=alias), seed=[0]) == grid(BASE, seed=[0])
    with pytest.raises(WanlabError, match="cannot start from 7"):
        grid(7)


def test_a_grid_is_a_sequence() -> None:
    made = grid(BASE, seed=range(4))
    assert made[-1].sampling.seed == 3
    assert isinstance(made[1:3], Grid)
    assert [s.sampling.seed for s in made[1:3]] == [1, 2]
    assert made[2] in made
    assert list(made) == list(made.specs)


def test_changes_bring_one_spec_to_another() -> None:
    specs = grid(BASE, cache=["none", "magcache", "teacache"], guidance=["cfg", "apg"], negative_prompt=["", "x"]).specs
    for a, b in itertools.product(specs, specs):
        assert a.with_(**changes(a, b)).id == b.id


def test_skip_knows_methods_options_and_floats() -> None:
    made = grid(BASE, cache=["none", "magcache", {"method": "magcache", "threshold": 0.3}], seed=[0, 1])
    assert len(made.skip(cache="magcache")) == 2
    assert len(made.skip(cache="magcache", seed=1)) == 4
    assert len(made.skip(cache={"method": "magcache", "threshold": 0.3})) == 4
    assert len(made.skip(cache__threshold=0.1 + 0.2)) == 4
    assert len(made.skip(cache=["none", "magcache"], seed=[0])) == 3
    assert len(grid(BASE, control_scale=[0.5, [1.0]]).skip(control_scale=0.5)) == 1


GRID = grid(BASE, cache=["none", "magcache"], seed=[0, 1])
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "misspelt": (lambda: grid(BASE, num_step=[1]), "Point 1 of 1, axis 'num_step', value 1.*Did you mean 'num_steps'"),
    "illegal": (
        lambda: grid(BASE, seed=[1, 2], num_steps=[4, 0]),
        "Point 2 of 4, axis 'num_steps', value 0: sampling.num_steps = 0 .* Give 1 or more",
    ),
    "method": (lambda: grid(BASE, cache=["magcach"]), "axis 'cache', value 'magcach'.*Did you mean 'magcache'"),
    "option": (lambda: grid(BASE, cache=[{"method": "magcache", "tresh": 1}]), "axis 'cache'.* no option 'tresh'"),
    "option of one method": (
        lambda: grid(BASE, cache=["magcache", "none"], cache__threshold=[0.1]),
        r"Point 2 of 2.*no option 'threshold'.*add a grid for each, grid\(base, cache=",
    ),
    "flat sigmas": (lambda: grid(BASE, sigmas=[1, 0.5, 0]), r"axis 'sigmas', value 1.*sigmas=\[\[...\], \[...\]\]"),
    "together": (
        lambda: grid(BASE, sampling=[{"seed": 1}], seed=[2]),
        "Point 1 of 1 .*seed is given twice",
    ),
    "model": (lambda: grid(BASE, model=["wan_tiny", "wan_teeny"]), "Axis 'model', value 2 of 2 .*Unknown model"),
    "file": (lambda: grid(BASE, image=["nowhere.png"]), "Axis 'image', value 1 of 1 .*nowhere.png.*does not exist"),
    "NaN": (lambda: grid(BASE, guidance_scale=[math.nan]), "Axis 'guidance_scale', value 1 of 1 .*finite"),
    "twice": (lambda: grid(BASE, zip_(seed=[1]), sampling__seed=[2]), "'seed' and 'sampling__seed' both set seed"),
    "empty": (lambda: grid(BASE, seed=[]), "Axis 'seed' is empty"),
    "set": (lambda: grid(BASE, seed={1, 2}), "is a set, which has no order"),
    "endless": (lambda: grid(BASE, seed=itertools.count()), "more than 100,000 values"),
    "too many": (lambda: grid(BASE, seed=range(1000), num_steps=range(1, 1000)), "999,000 points"),
    "no zip": (lambda: grid(BASE, [1, 2]), "after its base"),
    "lengths": (lambda: zip_(a=[1], b=[1, 2]), "a has 1, b has 2"),
    "no axes": (lambda: zip_(), "no axes"),
    "raises": (lambda: GRID.where(lambda s: s.sed == 1), "point 1 of 4 .*seed=0.*raised AttributeError.*'sed'"),
    "no bool": (lambda: GRID.where(lambda s: s.sampling.seed), "returned 0"),
    "none left": (lambda: GRID.where(lambda s: False), "no point left"),
    "skip all": (lambda: GRID.skip(seed=[0, 1]), "no point left"),
    "skip name": (lambda: GRID.skip(sed=1), "Unknown setting in skip 'sed'.*Did you mean 'seed'"),
    "skip option": (lambda: GRID.skip(cache__treshold=1), "no point has cache.treshold"),
    "skip value": (lambda: GRID.skip(cache="teacache"), "no point has cache = 'teacache'. Choices: none, magcache"),
    "skip both": (lambda: GRID.skip(GRID[:1]).skip(cache="none", seed=0), "no point has cache in .* and seed in"),
    "skip nothing": (lambda: GRID.skip(), "nothing to leave out"),
    "skip other": (lambda: GRID.skip(grid(BASE, seed=9)), "in the other grid"),
    "skip what": (lambda: GRID.skip(3), "skip got 3"),
    "seeds": (lambda: GRID.seeds(0), "n = 0"),
    "many seeds": (lambda: GRID.seeds(50_000), "200,000 points"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_when_the_grid_is_made(mistake: str) -> None:
    make, words = MISTAKES[mistake]
    with pytest.raises(WanlabError, match=words):
        make()


DOCUMENTS: dict[str, tuple[Any, str]] = {
    "no dict": ([], "The grid is"),
    "no base": ({"grid": {}}, "no base"),
    "unknown key": ({"base": "wan_tiny", "grdi": {}}, "Unknown key of the grid 'grdi'.*Did you mean 'grid'"),
    "inner key": ({"base": {"model": "wan_tiny"}, "plus": [{"base": {}}]}, r"plus\[0\] 'base'"),
    "base": ({"base": {"prompt": "x"}}, "base is"),
    "kind": ({"base": {"model": "wan_tiny"}, "kind": "notebook"}, "kind 'notebook'"),
    "schema": ({"base": {"model": "wan_tiny"}, "schema": 2}, "schema 2"),
    "form": ({"base": {"model": "wan_tiny"}, "zip": {"a": [1]}}, "list of dicts"),
    "file in the base": ({"base": {"model": "wan_tiny", "image": "/etc/passwd"}}, "a file's name in a document"),
    "file": ({"base": {"model": "wan_tiny"}, "grid": {"media": [{"image": "a.png"}]}}, "a file's name in a document"),
    "misspelt": ({"base": {"model": "wan_tiny"}, "grid": {"sed": [1]}}, "axis 'sed'"),
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_are_checked(document: str) -> None:
    given_, words = DOCUMENTS[document]
    with pytest.raises(WanlabError, match=words):
        Grid.from_dict(given_)


def test_a_document_as_a_person_writes_it() -> None:
    document = {
        "base": {"model": "wan_tiny", "prompt": "a kite", "num_steps": 4},
        "grid": {"cache": ["none", "magcache"], "seed": [0, 1]},
        "zip": [{"width": [64, 96], "height": [96, 64]}],
        "plus": [{"grid": {"sampler": ["euler", "unipc"]}, "skip": [{"sampler": "unipc"}]}],
        "points": [{"seed": 7, "num_steps": 5}],
        "skip": [{"cache": "magcache", "seed": 1}],
    }
    made, base = Grid.from_dict(document), BASE.with_(prompt="a kite", num_steps=4)
    product = grid(base, zip_(width=[64, 96], height=[96, 64]), cache=["none", "magcache"], seed=[0, 1])
    by_hand = product + grid(base, sampler="euler") + zip_(base, seed=[7], num_steps=[5])
    assert made == by_hand.skip(cache="magcache", seed=1)
    assert len(made) == 6 + 2


def test_plain_parameters() -> None:
    assert expand({}) == [{}]
    assert expand({"points": [{"a": 1}, {"a": 1}, {"b": None}]}) == [{"a": 1}, {"b": None}]
    assert expand({"grid": {"a": [1, 2], "b": "xy"}, "skip": [{"a": 2}]}) == [{"a": 1, "b": "xy"}]
    assert expand({"grid": {"a": [[1, 2], [3]]}}) == [{"a": [1, 2]}, {"a": [3]}]
    assert expand({"grid": {"a": [True, 1]}}) == [{"a": True}, {"a": 1}]


PARAMETERS: dict[str, tuple[Any, str]] = {
    "identifier": ({"grid": {"a-b": [1]}}, "Python identifier"),
    "keyword": ({"grid": {"class": [1]}}, "Python identifier"),
    "no JSON": ({"grid": {"a": [object()]}}, "Axis 'a', value 1 of 1 .*cannot be stored as JSON"),
    "skip name": ({"grid": {"a": [1]}, "skip": [{"b": 1}]}, "Unknown name in skip 'b'"),
    "skip value": ({"grid": {"a": [1]}, "skip": [{"a": 2}]}, "no point has a = 2"),
    "all": ({"grid": {"a": [1]}, "skip": [{"a": 1}]}, "no point left"),
    "twice": ({"grid": {"a": [1]}, "zip": [{"a": [2]}]}, "Two axes set a"),
    "base": ({"base": {}, "grid": {}}, "Unknown key of the grid 'base'"),
    "plus": ({"plus": [{"gird": {}}]}, r"plus\[0\] 'gird'"),
    "too many": ({"grid": {"a": range(1000), "b": range(101)}}, "101,000 points"),
}


@pytest.mark.parametrize("mistake", PARAMETERS)
def test_plain_parameters_are_checked(mistake: str) -> None:
    document, words = PARAMETERS[mistake]
    with pytest.raises(WanlabError, match=words):
        expand(document)


def test_labels_are_short_and_unique() -> None:
    long = "a very long prompt of more than twenty letters, "
    made = grid(
        BASE, prompt=[long + "one", long + "two", "b"], cache=["none", {"method": "magcache", "threshold": 0.3}]
    )
    assert len(set(made.labels)) == len(made)
    assert max(map(len, made.labels)) < 80
    assert made.labels[-1] == "prompt=b, cache=magcache threshold=0.3"


def test_a_grid_shows_what_differs() -> None:
    made = grid(BASE, num_steps=4, prompt=["<script>", "b"], seed=range(40))
    assert repr(made) == "Grid(80 points of wan_tiny over prompt (2), seed (40))"
    page = made._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "num_steps" not in page
    assert page.count("<tr>") == 1 + 50
    assert "30 more" in page
    assert repr(grid(BASE)) == "Grid(1 point of wan_tiny)"


def test_check_names_the_point_that_its_model_cannot_follow() -> None:
    grid(BASE, num_frames=[33, 37]).check()
    with pytest.raises(WanlabError, match=r"Point num_frames=34: .*The nearest: 33 or 37"):
        grid(BASE, num_frames=[33, 34]).check()


def test_points_are_what_a_sweeps_file_holds() -> None:
    made = grid(BASE, cache=["none", {"method": "magcache", "threshold": 0.3}])
    points = made.points()
    assert all(isinstance(point, runs.Point) for point in points)
    assert [point.id for point in points] == list(made.ids)
    assert [point.settings for point in points] == [made.settings(0), made.settings(1)]
    assert [GenerationSpec.from_json(point.spec) for point in points] == list(made)


def test_writing_a_grid_imports_no_torch() -> None:
    uses = "import sys, wanlab; wanlab.Grid, wanlab.grid, wanlab.zip_(a=wanlab.seeds(3))"
    code = f"{uses}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_zips_read_back() -> None:
    assert repr(zip_(a=[1, 2], b=3)) == "zip_(a=[1, 2], b=[3, 3])"
    assert len(zip_(a=[1, 2], b=3)) == 2
    assert isinstance(zip_(a=[1]), Zip)
