"""MagCache's and TeaCache's plans equal the published scripts' rules re-derived step by step, and their counts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from wanlab.caches import magcache, teacache
from wanlab.catalog import find
from wanlab.errors import WanlabError

RATIOS_1_3B = find("wan_t2v_1_3b").constants["mag_ratios"]["ratios"]
RATIOS_A14B = find("wan22_t2v_a14b").constants["mag_ratios"]["ratios"]
POLY_1_3B = find("wan_t2v_1_3b").constants["teacache"]["coefficients"]


def mag_by_hand(ratios: list[float], steps: int, threshold: float, most: int, keep: Any, branches: int) -> list[bool]:
    """The script's forward, one call after another; `keep(call)` says whether it must compute."""
    lists = [[1.0, *ratios[b::branches]] for b in range(branches)]
    if len(lists[0]) != steps:
        last = len(lists[0]) - 1
        at = [round(i * last / (steps - 1)) if steps > 1 else last for i in range(steps)]  # halves go to even numbers
        lists = [[values[i] for i in at] for values in lists]
    product, error, length = [1.0] * branches, [0.0] * branches, [0] * branches
    found = []
    for call in range(steps * branches):
        b, skip = call % branches, False
        if not keep(call):
            product[b] *= lists[b][call // branches]
            length[b] += 1
            error[b] += abs(1 - product[b])
            skip = error[b] < threshold and length[b] <= most and call >= branches
            if not skip:
                product[b], error[b], length[b] = 1.0, 0.0, 0
        found.append(not skip)
    return found


def keeps(total: int, retention: float, split: int | None, first: bool) -> Any:
    if split is None:
        return lambda call: call < int(total * retention)
    if first:
        return lambda call: call < int(split + (total - split) * retention)
    return lambda call: call < int(split * retention) or (split <= call and call <= (total - split) * retention + split)


@pytest.mark.parametrize("seed", range(60))
def test_magcache_equals_the_script(seed: int) -> None:
    """Random lists of other lengths, one to three branches, one expert or two by both rules."""
    draw = np.random.default_rng(seed)
    branches, steps = int(draw.integers(1, 4)), int(draw.integers(1, 61))
    ratios = (1 + draw.normal(0, 0.04, branches * int(draw.integers(1, 60)))).tolist()
    split = int(draw.integers(0, steps + 1)) if seed % 3 else None
    threshold, most, retention = float(draw.uniform(0, 0.4)), int(draw.integers(0, 8)), float(draw.uniform(0, 0.6))
    if seed % 5 == 0:
        retention = 0.0
    first, sqrt = bool(seed % 2), seed % 4 == 0
    keep = keeps(steps * branches, retention, None if split is None else split * branches, first)
    by_hand = [r**0.5 for r in ratios] if sqrt else ratios
    expected = mag_by_hand(by_hand, steps, threshold, most, keep, branches)
    found = magcache.plan(
        ratios, steps, threshold, most, retention, branches, split, paper_sqrt=sqrt, keep_first_phase=first
    )
    assert found == expected
    assert found[0]


def test_halves_are_rounded_as_numpy_does() -> None:
    """5 values over 3 steps: indices 0, 2, 4; 4 over 7: 0, 0.5, 1, ... of which the halves go to the even one."""
    ratios = magcache.ratios_by_step([2.0, 3.0, 4.0], 7, 1)
    assert ratios[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0]


def test_published_counts() -> None:
    """Forwards skipped of 100, Wan 1.3B; with square roots those of the paper's table: 48 and 38 computed remain of its
    2.08x and 2.63x."""
    settings = ((0.12, 2), (0.12, 4), (0.24, 6))
    plain = [100 - sum(magcache.plan(RATIOS_1_3B, 50, e, k, 0.2)) for e, k in settings]
    paper = [100 - sum(magcache.plan(RATIOS_1_3B, 50, e, k, 0.2, paper_sqrt=True)) for e, k in settings]
    assert plain == [50, 58, 64]
    assert paper == [52, 62, 68]


def test_two_experts() -> None:
    """By the rule for pictures the first expert computes all; by the other both start with computed forwards."""
    first = magcache.plan(RATIOS_A14B, 40, 0.1, 4, 0.2, split_step=12, keep_first_phase=True)
    assert all(first[: 24 + int(56 * 0.2)])
    assert not all(first)
    both = magcache.plan(RATIOS_A14B, 40, 0.1, 4, 0.2, split_step=12)
    assert not all(both[:24])
    assert all(both[24 : 24 + int(56 * 0.2) + 1]), "the comparison is <="


def test_magcache_many() -> None:
    """Equal to `plan`, and at least 50 times as fast as a loop over it, both measured here."""
    draw, num = np.random.default_rng(0), 10_000
    values = {"threshold": draw.uniform(0, 0.4, num), "max_skip": draw.integers(0, 8, num)}
    values["retention"] = draw.uniform(0, 0.5, num)
    fixed: dict[str, Any] = {"mag_ratios": RATIOS_1_3B, "num_steps": 50}
    _compare(magcache, values, fixed, num)


def test_teacache_many() -> None:
    draw, num = np.random.default_rng(0), 10_000
    rows = draw.normal(size=(50, 64)).cumsum(0)
    fixed: dict[str, Any] = {"embeddings": rows, "coefficients": [0.5, 0.1], "num_steps": 50}
    _compare(teacache, {"threshold": draw.uniform(0, 1, num)}, fixed, num)


def _compare(method: Any, values: dict[str, Any], fixed: dict[str, Any], num: int) -> None:
    start = time.perf_counter()
    found = method.plan_many(**fixed, **values)
    middle = time.perf_counter()
    some = range(0, num, 40)
    single = [method.plan(**fixed, **{k: v[i].item() for k, v in values.items()}) for i in some]
    ratio = 40 * (time.perf_counter() - middle) / (middle - start)
    assert (found.shape, found.dtype) == ((num, 100), bool)
    assert np.array_equal(found[::40], single)
    print(f"{method.__name__}: a loop over plan takes {ratio:.0f} times as long")
    assert ratio >= 50


def tea_by_hand(rows: Any, poly: list[float], threshold: float, steps: int, ret: bool, branches: int) -> list[bool]:
    first, last = (5 * branches, steps * branches) if ret else (branches, steps * branches - branches)
    total, found = [0.0] * branches, []
    for call in range(steps * branches):
        b, step, compute = call % branches, call // branches, True
        if not (call < first or call >= last):
            before = rows[step - 1]
            total[b] += np.poly1d(poly)(np.abs(rows[step] - before).mean() / np.abs(before).mean())
            compute = not total[b] < threshold
        if compute:
            total[b] = 0.0
        found.append(compute)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_teacache_equals_the_script(seed: int) -> None:
    """Random walks, polynomials that may be negative, which the script does not make positive."""
    draw = np.random.default_rng(seed)
    steps, branches, ret = int(draw.integers(1, 60)), int(draw.integers(1, 4)), bool(seed % 2)
    rows = draw.normal(size=(steps, 32)).cumsum(0)
    poly, threshold = draw.normal(0.02, 0.2, 5).tolist(), float(draw.uniform(0, 0.5))
    found = teacache.plan(torch.tensor(rows), poly, threshold, steps, ret, branches)
    assert found == tea_by_hand(rows, poly, threshold, steps, ret, branches)


def test_negative_polynomials_let_more_be_skipped() -> None:
    rows = np.linspace(1, 2, 20)[:, None] * np.ones(4)
    assert sum(teacache.plan(rows, [-1.0, 0.0], 0.01, 20, num_branches=1)) == 2
    assert sum(teacache.plan(rows, [1.0, 0.0], 0.01, 20, num_branches=1)) == 20


def smart_by_hand(add: Any, steps: int, speedup: float, most: int | None) -> float:
    """WanGP's search. `add(step, sums)` changes the sums and says whether the step is asked."""
    best, nearest, wanted, threshold = 0.01, 1000, int(steps / speedup), 0.01
    while threshold <= 0.6:
        computed, sums = 0, {"error": 0.0, "length": 0, "product": 1.0}
        for step in range(steps):
            skip = False
            if add(step, sums):
                skip = sums["error"] < threshold and (most is None or sums["length"] <= most)
                if not skip:
                    sums |= {"error": 0.0, "length": 0, "product": 1.0}
            computed += not skip
        distance = abs(wanted - computed)
        if distance < nearest:
            best, nearest = threshold, distance
        elif distance > nearest:
            break
        threshold += 0.01
    return best


@pytest.mark.parametrize("speedup", [1.5, 1.75, 2.0, 2.25, 2.5])
@pytest.mark.parametrize(("steps", "start"), [(50, 0), (30, 6), (20, 0), (8, 2)])
def test_smart_thresholds(speedup: float, steps: int, start: int) -> None:
    """WanGP's search by the conditional forwards, thresholds summed up as it does; TeaCache's polynomial positive."""
    ratios = magcache.ratios_by_step(RATIOS_1_3B, steps, 2)[:, 0]

    def mag(step: int, sums: dict[str, Any]) -> bool:
        if step > start:
            sums["product"] *= ratios[step]
            sums["length"] += 1
            sums["error"] += abs(1 - sums["product"])
        return step > start

    found = magcache.smart_threshold(RATIOS_1_3B, steps, speedup, start_step=start)
    assert found == smart_by_hand(mag, steps, speedup, 2)
    rows = np.random.default_rng(1).normal(size=(steps, 64)).cumsum(0) * 0.02 + np.linspace(3, 1, steps)[:, None]
    moved = np.abs(teacache.increments(teacache.changes(rows, steps), POLY_1_3B))

    def tea(step: int, sums: dict[str, Any]) -> bool:
        asked = start < step < steps - 1
        sums["error"] += moved[step] if asked else 0.0
        return asked

    found = teacache.smart_threshold(rows, POLY_1_3B, steps, speedup, start_step=start)
    assert found == smart_by_hand(tea, steps, speedup, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mag_ratios": RATIOS_1_3B[:-1]}, "for 2 branches"),
        ({"mag_ratios": []}, "for 2 branches"),
        ({"mag_ratios": [1.0, float("nan")]}, "not all positive"),
        ({"mag_ratios": [1.0, -1.0]}, "not all positive"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"num_branches": 0}, "num_branches = 0"),
        ({"threshold": float("nan")}, "threshold = nan"),
        ({"threshold": -1.0}, "threshold = -1"),
        ({"max_skip": -1}, "max_skip = -1"),
        ({"split_step": 51}, "split_step 51 of 50"),
    ],
)
def test_magcache_refuses(change: dict[str, Any], words: str) -> None:
    fine = {"mag_ratios": RATIOS_1_3B, "num_steps": 50, "threshold": 0.1, "max_skip": 2, "retention": 0.2}
    with pytest.raises(WanlabError, match=words):
        magcache.plan(**(fine | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embeddings": np.ones((9, 4))}, r"\(9, 4\) for 10 steps"),
        ({"embeddings": np.ones(10)}, r"\(10,\) for 10 steps"),
        ({"embeddings": np.zeros((10, 4))}, "row of zeros"),
        ({"embeddings": np.full((10, 4), np.nan)}, "NaN"),
        ({"coefficients": []}, "coefficients of shape"),
        ({"coefficients": [np.inf]}, "coefficients of shape"),
        ({"threshold": -0.1}, "threshold"),
    ],
)
def test_teacache_refuses(change: dict[str, Any], words: str) -> None:
    fine = {"embeddings": np.ones((10, 4)), "coefficients": [1.0, 0.0], "threshold": 0.1, "num_steps": 10}
    with pytest.raises(WanlabError, match=words):
        teacache.plan(**(fine | change))


def test_settings_of_different_lengths_are_refused() -> None:
    with pytest.raises(WanlabError, match="different lengths"):
        magcache.plan_many(mag_ratios=[1.0, 1.0], num_steps=2, threshold=[0.1, 0.2], max_skip=[1, 2, 3], retention=0.2)
