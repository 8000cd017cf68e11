"""Caches that look at tensors equal the published rules: diffusers' own, or the rule written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.cache_loop import STEPS, Loop, share_of, shares
from tests.tiny import tiny_wan
from wanlab import caches, models
from wanlab.caches import Cache
from wanlab.caches.adacache import CODEBOOKS, Codebook
from wanlab.caches.seacache import sea_filter
from wanlab.sites import Branch

BRANCHES = ("cond", "uncond")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def loop(folder: tuple[Path, Any]) -> Loop:
    return Loop(models.load(folder[1], device="cpu"))


def run(loop: Loop, method: str, **options: Any) -> tuple[Tensor, Cache]:
    cache = caches.prepared(loop.model, loop.spec.with_(cache={"method": method, **options}))
    assert cache is not None
    with cache.attach(loop.model):
        return loop.run(loop.noise), cache


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm() / b.norm()) < 1e-5


# diffusers


@torch.no_grad()
def reference(folder: Path, loop: Loop, config: Any) -> tuple[Tensor, dict[str, list[bool]]]:
    """diffusers' transformer with its cache in the same Euler steps: (latents, branch -> which steps were computed)."""
    network = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer")
    network.enable_cache(config)
    calls: list[int] = []
    network.blocks[2].ffn.net[0].proj.register_forward_hook(lambda *_: calls.append(1))
    hits: dict[str, list[bool]] = {name: [] for name in BRANCHES}
    latents = loop.noise
    for step in range(STEPS):
        sigma, total = loop.levels[step], torch.zeros_like(latents)
        for sign, name in zip((2.0, -1.0), BRANCHES, strict=True):
            embeds = loop.text["embeds"] if name == "cond" else loop.text["embeds"].flip(-1)
            before = len(calls)
            with network.cache_context(name, step_index=step, sigma=sigma, num_inference_steps=STEPS):
                found = network(latents, torch.tensor([1000 * sigma]), embeds, return_dict=False)[0]
            total = total + sign * found
            hits[name].append(len(calls) > before)
        latents = latents + (loop.levels[step + 1] - sigma) * total
    return latents, hits


@pytest.mark.parametrize("threshold", [0.0, 0.009, 0.012, 0.03, 5.0])
def test_first_block_equals_diffusers(folder: tuple[Path, Any], loop: Loop, threshold: float) -> None:
    expected, hits = reference(folder[0], loop, diffusers.FirstBlockCacheConfig(threshold=threshold))
    latents, cache = run(loop, "first_block", threshold=threshold)
    for name in BRANCHES:
        assert [share == 1 for share in shares(cache, name)] == hits[name]
    assert close(latents, expected)
    assert all(hits["cond"]) == (threshold == 0)
    assert any(hits["cond"][1:]) == (threshold < 1)
    quarter = share_of(loop, {0})
    assert set(shares(cache)) <= {quarter, 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.0},
        {"threshold": 0.6, "residual_order": 0},
        {"threshold": 1.0, "max_consecutive": 0, "warmup_steps": 3, "final_steps": 0, "power_exp": 2.0},
        {"threshold": 9.0, "max_consecutive": 1, "warmup_steps": 0, "final_steps": 2},
    ],
)
def test_seacache_equals_diffusers(folder: tuple[Path, Any], loop: Loop, options: dict[str, Any]) -> None:
    names = {
        "warmup_steps": "retention_steps",
        "final_steps": "cache_end_steps",
        "max_consecutive": "max_consecutive_cached",
    }
    config = diffusers.SeaCacheConfig(**{names.get(name, name): value for name, value in options.items()})
    expected, hits = reference(folder[0], loop, config)
    latents, cache = run(loop, "seacache", **options)
    for name in BRANCHES:
        assert [share == 1 for share in shares(cache, name)] == hits[name]
    assert close(latents, expected)
    assert all(hits["cond"]) == (options.get("threshold") == 0)


def test_the_spectral_filter_has_mean_gain_1_and_passes_what_has_no_noise() -> None:
    """For videos and, T = 1, for images: the response to an impulse is, at its place, the mean gain."""
    for shape in ((1, 2, 3, 4, 6), (2, 2, 1, 4, 6)):
        impulse = torch.zeros(shape)
        impulse[..., 0, 0, 0] = 1
        for sigma in (0.0, 0.3, 0.99, 1.0):
            assert torch.allclose(sea_filter(impulse, sigma)[..., 0, 0, 0], torch.ones(shape[:2]), atol=1e-4)
        x = torch.randn(shape)
        assert torch.allclose(sea_filter(x, 0.0), x, atol=1e-3)
        assert not torch.allclose(sea_filter(x, 0.5), x, atol=1e-1)


# By hand


def velocity(loop: Loop, latents: Tensor, step: int, name: str) -> Tensor:
    return loop.forward(latents, loop.clock(latents, step, name))


@pytest.mark.parametrize(("threshold", "warmup"), [(0.3, 2), (0.8, 3), (50.0, 1)])
def test_easycache_equals_the_script(loop: Loop, threshold: float, warmup: int) -> None:
    """The script's counters: decisions on even calls, `k` of raw inputs and outputs, the sum set back when computed."""
    x, k, error = loop.noise, None, 0.0
    before: dict[str, Any] = {}
    computed = []
    for step in range(STEPS):
        compute = True
        if warmup <= step < STEPS - 1 and k is not None:
            error = error + k * ((x - before["x"]).abs().mean() / before["v"].abs().mean())
            compute = not error < threshold
        if compute:
            error = 0.0
        before["x"] = x
        found = {}
        for name in BRANCHES:
            if compute:
                found[name] = velocity(loop, x, step, name)
                if name == "cond":
                    if "v" in before:
                        k = (found[name] - before["v"]).abs().mean() / (x - before["x_computed"]).abs().mean()
                    before |= {"v": found[name], "x_computed": x}
                before[name] = found[name] - x
            else:
                found[name] = x + before[name]
        computed.append(compute)
        x = x + (loop.levels[step + 1] - loop.levels[step]) * (2 * found["cond"] - found["uncond"])
    latents, cache = run(loop, "easycache", threshold=threshold, warmup_steps=warmup)
    for name in BRANCHES:
        assert [share == 1 for share in shares(cache, name)] == computed
    assert close(latents, x)
    assert not all(computed)


def by_hand(loop: Loop, options: dict[str, Any]) -> tuple[Tensor, dict[str, list[bool]]]:
    """DBCache with the stack run in pieces; `options` by its names, and every one given."""
    model, x = loop.model, loop.noise
    stack, reused = model.stacks["transformer"], {name: [] for name in BRANCHES}
    kept: dict[str, dict[str, Any]] = {name: {"total": 0.0} for name in BRANCHES}
    first, last = options["num_first"], 4 - options["num_last"]
    for step in range(STEPS):
        found, measured = {}, None
        for name in BRANCHES:
            mine, hits = kept[name], reused[name]
            ctx = loop.clock(x, step, name)
            model.begin(ctx)
            text = {k: v if name == "cond" else v.flip(-1) for k, v in loop.text.items()}
            with torch.no_grad():
                streams = model.embed(x, ctx, Branch(name, text))
                head = stack.run(streams, stop=first).tokens["video"]
                added = head - streams.tokens["video"]
                row = 0
                while row < len(hits) and hits[-1 - row]:
                    row += 1
                may = "rest" in mine and not (step < options["warmup"] and step % options["interval"] == 0)
                may = may and sum(hits) < options["most"] and row < options["in_a_row"]
                may = may and mine["total"] < options["total"]
                diff = None
                if may:
                    diff = (mine["added"] - added).abs().mean() / mine["added"].abs().mean()
                    if name == "uncond" and not options["separate"] and measured is not None:
                        diff = measured
                    mine["total"] += float(diff)
                measured = diff if name == "cond" else measured
                reuse = diff is not None and float(diff) < options["threshold"]
                if reuse:
                    slope = mine.get("slope", 0.0) if options["taylor"] else 0.0
                    middle = head + mine["rest"] + (step - mine["at"]) * slope
                else:
                    middle = stack.run(streams.with_tokens(video=head), start=first, stop=last).tokens["video"]
                    if "rest" in mine:
                        mine["slope"] = (middle - head - mine["rest"]) / (step - mine["at"])
                    mine |= {"rest": middle - head, "added": added, "at": step}
                hits.append(reuse)
                done = stack.run(streams.with_tokens(video=middle), start=last)
                found[name] = model.head(done, ctx)
        x = x + (loop.levels[step + 1] - loop.levels[step]) * (2 * found["cond"] - found["uncond"])
    return x, reused


EVERY: dict[str, Any] = {
    "num_first": 1,
    "num_last": 0,
    "threshold": 0.02,
    "warmup": 2,
    "interval": 1,
    "most": 99,
    "in_a_row": 99,
    "total": 99.0,
    "taylor": False,
    "separate": True,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_first": 2, "num_last": 1},
        {"warmup": 5, "interval": 2, "threshold": 0.0095},
        {"most": 2},
        {"in_a_row": 1, "num_last": 2},
        {"total": 0.02},
        {"taylor": True, "in_a_row": 2},
        {"separate": False, "threshold": 0.016},
    ],
    ids=str,
)
def test_dbcache_equals_its_rules(loop: Loop, changes: dict[str, Any]) -> None:
    options = {**EVERY, **changes}
    expected, reused = by_hand(loop, options)
    latents, cache = run(
        loop,
        "dbcache",
        num_first=options["num_first"],
        num_last=options["num_last"],
        threshold=options["threshold"],
        warmup_steps=options["warmup"],
        warmup_interval=options["interval"],
        max_cached_steps=options["most"],
        max_continuous_cached_steps=options["in_a_row"],
        max_accumulated_diff=options["total"],
        calibrator="taylorseer" if options["taylor"] else "none",
        cfg_diff_compute_separate=options["separate"],
    )
    for name in BRANCHES:
        assert [share < 1 for share in shares(cache, name)] == reused[name]
    assert any(reused["cond"])
    assert not all(reused["cond"][2:])
    assert close(latents, expected)


def test_dbcache_masks(loop: Loop) -> None:
    """Static reuses wherever the mask leaves it open, dynamic only there; the warm-up has no say."""
    mask = [True, False, False, True, False, True, False, False]
    rule = {"num_first": 1, "warmup_steps": 8, "mask": mask}
    _, static = run(loop, "dbcache", threshold=0.0, mask_policy="static", **rule)
    assert [share == 1 for share in shares(static)] == mask
    _, dynamic = run(loop, "dbcache", threshold=0.009, **rule)
    computed = [share == 1 for share in shares(dynamic)]
    assert all(ran for ran, must in zip(computed, mask, strict=True) if must)
    assert computed != mask
    _, always = run(loop, "dbcache", threshold=1.0, **rule)
    assert shares(always) == shares(static)
    assert not always.report().signals


def test_dbcache_with_one_block_and_no_warm_up_is_first_block(loop: Loop) -> None:
    latents, cache = run(loop, "dbcache", num_first=1, warmup_steps=0, threshold=0.02)
    expected, other = run(loop, "first_block", threshold=0.02)
    assert torch.equal(latents, expected)
    assert cache.report().shares == other.report().shares
    assert cache.report().signals == other.report().signals


# AdaCache


def test_codebooks_are_the_published_ones() -> None:
    """30 steps fast {.08:6,.16:5,.24:4,.32:3,.40:2,1:1} and slow {.08:3,.16:2,...:1}; 100 steps {.03:12 ... 1:3}."""
    rates = (0.07, 0.08, 0.17, 0.25, 0.33, 0.5)
    assert [CODEBOOKS["fast"].interval(rate, 30) for rate in rates] == [6, 5, 4, 3, 2, 1]
    assert [CODEBOOKS["slow"].interval(rate, 30) for rate in rates] == [3, 2, 1, 1, 1, 1]
    rates = (0.02, 0.04, 0.06, 0.08, 0.10, 0.2)
    assert [CODEBOOKS["long"].interval(rate, 100) for rate in rates] == [12, 10, 8, 6, 4, 3]
    assert [CODEBOOKS["fast"].interval(rate / 2, 60) for rate in (0.07, 0.5)] == [12, 2]
    assert CODEBOOKS["fast"].interval(9.0, 3) == 1
    assert [CODEBOOKS["long"].looks(i, 100) for i in (8, 9, 89, 90)] == [False, True, True, False]


@pytest.mark.parametrize("motion", [False, True])
def test_adacache_equals_its_rules(loop: Loop, motion: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's counters (from 1), with the stack's residual in the place of a block's attention.

    The codebook is one for these 8 steps and for the small changes of random weights.
    """
    monkeypatch.setitem(CODEBOOKS, "fast", Codebook(STEPS, ((0.0045, 3), (0.0059, 2)), 1, (2, 4)))
    model, x = loop.model, loop.noise
    stack = model.stacks["transformer"]
    rate, compute_at, moved = 1, 2, 1.0
    kept: dict[str, Tensor] = {}
    computed, signals = [], {}
    for step in range(STEPS):
        compute = step + 1 in (1, STEPS - 1, STEPS) or step + 1 >= compute_at
        found = {}
        for name in BRANCHES:
            ctx = loop.clock(x, step, name)
            model.begin(ctx)
            text = {k: v if name == "cond" else v.flip(-1) for k, v in loop.text.items()}
            with torch.no_grad():
                streams = model.embed(x, ctx, Branch(name, text))
                if compute:
                    now = stack.run(streams).tokens["video"] - streams.tokens["video"]
                    if name == "cond" and kept:
                        c = float((now - kept[name]).abs().sum() / kept[name].abs().sum()) / rate
                        if motion:
                            now_moved, size = 1.0, now.shape[1] // streams.grid[0]
                            if 2 <= step + 1 <= 4:
                                later, earlier = now[:, size:], now[:, :-size]
                                between = (later - earlier).abs().sum() / (later.abs().sum() + earlier.abs().sum())
                                now_moved = float((between / 0.385) ** 8)
                            c *= now_moved + abs(10 * (now_moved - moved) / rate)
                            moved = now_moved
                        signals[step] = c
                        rate = 3 if c < 0.0045 else 2 if c < 0.0059 else 1
                    kept[name] = now
                    compute_at = step + 1 + rate
                found[name] = model.head(streams.plus({"video": kept[name]}), ctx)
        computed.append(compute)
        x = x + (loop.levels[step + 1] - loop.levels[step]) * (2 * found["cond"] - found["uncond"])
    assert len({*signals.values()}) > 3
    assert True in computed[2:-2]
    assert False in computed
    latents, cache = run(loop, "adacache", motion=motion)
    for name in BRANCHES:
        assert [share == 1 for share in shares(cache, name)] == computed
    assert cache.report().signals["transformer/cond/-1"] == pytest.approx(signals, rel=1e-4)
    assert close(latents, x)
