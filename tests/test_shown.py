"""What studies and panels show of caches in a notebook: plans, short names, pictures without pyplot."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from wanlab.caches import Cache, CacheReport, Run
from wanlab.caches._dynamic import check_reuse, in_all_branches
from wanlab.errors import WanlabError
from wanlab.metrics import Drift, drift
from wanlab.models import Model
from wanlab.registry import CACHES
from wanlab.study import estimate, show_plan
from wanlab.study._measure import Samples, _seconds
from wanlab.widgets import SpecForm
from wanlab.widgets._fields import Mask

OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {"mask": [True, False] * 10},
    "dbcache": {"num_first": 2},
}
METHODS = [name for name in CACHES.names() if name != "none"]


@pytest.fixture(scope="module")
def model() -> Model:
    return wanlab.load("wan_tiny", device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan_of_whole_rows(model: Model, method: str) -> None:
    spec = model.spec(cache={"method": method, **OPTIONS.get(method, {})})
    picture = show_plan(spec, model)
    assert f"wan_tiny, {method}" in picture.get_suptitle()
    assert picture._repr_png_().startswith(b"\x89PNG")
    cache: Cache = CACHES.get(method)(spec.cache.bind())
    forced = cache.forced(Run.of(model, model.resolve(spec)))
    assert forced is None or {len(row) for row in forced.values()} == {20}


def test_forced_rows_are_for_every_branch(model: Model) -> None:
    run = Run.of(model, model.resolve(model.spec(num_steps=3)))
    rows = in_all_branches(run, [True, False, True])
    assert rows == {"cond": [True, False, True], "uncond": [True, False, True]}
    check_reuse("x", rows, "remedy")
    with pytest.raises(WanlabError, match="each of these 3 steps"):
        check_reuse("x", in_all_branches(run, [True] * 3), "remedy")


def test_figures_show_where_pyplot_was_never_imported() -> None:
    code = (
        "import sys; from wanlab.figures import Picture; p = Picture(figsize=(1, 1)); p.subplots();"
        "assert p._repr_png_()[1:4] == b'PNG'; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_changed_options_of_a_method(model: Model) -> None:
    """A filled spec writes every option out; those that are not the method's own are few."""
    spec = model.spec(cache={"method": "magcache", "max_skip": 3})
    assert len(spec.cache.options) > 5
    assert spec.cache.changed() == {"max_skip": 3}
    assert model.spec().cache.changed() == {}


def test_titles_and_inputs_of_options(model: Model) -> None:
    form = SpecForm(model.spec(cache="magcache"), model.offers, model.spec())
    assert form._groups["cache"].titles[0] == "cache · magcache"
    form._options["cache"]["threshold"].write(0.2)
    assert form._groups["cache"].titles[0] == "cache · magcache, threshold 0.2"
    assert form._options["cache"]["speedup"].widget.placeholder == "empty: None"
    form.field("cache.method").widget.value = "dbcache"
    mask = form._options["cache"]["mask"]
    assert isinstance(mask, Mask)
    assert mask.read() is None
    mask.widget.value = "1" + "0" * 19
    assert form.spec.cache.options["mask"] == (True, *[False] * 19)


def test_short_reprs() -> None:
    report = CacheReport("fixed", {}, {}, {}, computed=6, reused=4, state_bytes=2048, ideal_speedup=5 / 3)
    assert (
        repr(report) == "CacheReport(fixed, 4 of 10 forwards reused something, ideal speed-up 1.67x, holds 2,048 bytes)"
    )
    one, other = Drift(), Drift()
    for step in range(3):
        for kept, value in ((one, 1.0), (other, 1.0 + 0.5 * step)):
            kept(step, 1 - step / 3, torch.zeros(1), torch.tensor([0.0, value]))
    assert repr(one) == "Drift(3 steps, float32, 24 bytes)"
    assert repr(drift(one, other)) == "DriftCurve(3 steps, relative L2 at the end 1, at most 1)"
    assert np.isclose(drift(one, other).relative_l2[1], 0.5)


def test_units_follow_the_size() -> None:
    assert _seconds(Samples((1.5, 1.5))) == "1.5 s (0)"
    assert _seconds(Samples((0.05, 0.05))) == "50 ms (0)"
    assert _seconds(Samples((2e-5, 2e-5))) == "20 µs (0)"
    assert _seconds(Samples((0.0,))) == "0 µs (0)"


def test_an_estimate_tells_what_a_dynamic_cache_holds() -> None:
    found = estimate("wan_tiny", cache="easycache")
    assert found.cache_state_bytes == 414_724
    assert "not known before the run, holds 415 kB" in str(found)
    assert "0.00 GB" not in str(found)
