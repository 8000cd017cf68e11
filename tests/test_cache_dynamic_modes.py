"""Caches that look at tensors with batched guidance, hint and face blocks; and options that do not fit a run."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.cache_loop import STEPS, Loop, shares
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_relatives import FACE, tiny_animate, tiny_skyreels
from tests.tiny_video import film, frames_of, picture, tiny_vace
from wanlab import caches, models, stages
from wanlab.caches.first_block import FirstBlock
from wanlab.errors import WanlabError
from wanlab.models import Model

METHODS: dict[str, dict[str, Any]] = {
    "easycache": {"threshold": 0.6, "warmup_steps": 2},
    "first_block": {"threshold": 0.015},
    "dbcache": {"threshold": 0.015, "num_first": 1, "num_last": 1, "warmup_steps": 2},
    "adacache": {},
    "seacache": {"threshold": 0.6},
}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture(scope="module", params=["vace", "animate", "flux"])
def relative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    build = {"vace": tiny_vace, "animate": tiny_animate, "flux": tiny_flux}[request.param]
    model = models.load(build(tmp_path_factory.mktemp(request.param))[1], device="cpu")
    media: dict[str, Any] = {}
    if request.param == "vace":
        media = {"video": frames_of(film(1)), "num_frames": 9}
    if request.param == "animate":
        pose, face = film(2), film(3, 9, FACE, FACE)
        media = {"image": picture(4), "pose_video": frames_of(pose), "face_video": frames_of(face), "num_frames": 9}
    spec = model.spec(**media)
    return Loop(model, stages.encode_conditions(model, spec), **media)


@pytest.mark.parametrize("method", ["easycache", "adacache", "seacache"])
def test_batched_guidance_is_judged_by_its_first_branch(wan: Model, method: str) -> None:
    """The same decisions as one after another, so the same latents up to rounding."""
    spec = wan.spec(prompt="a cat", num_steps=STEPS, cache={"method": method, **METHODS[method]})
    text, conditions = stages.encode_text(wan, spec), stages.encode_conditions(wan, spec)
    alone, ran = stages.denoise_recorded(wan, spec, text, conditions)
    together, batched = stages.denoise_recorded(wan, spec.with_(batch_branches=True), text, conditions)
    name = "transformer/{}/-1".format
    assert ran["cache"]["shares"][name("cond")] == batched["cache"]["shares"][name("cond+uncond")]
    assert ran["cache"]["reused"] == 2 * batched["cache"]["reused"] > 0
    assert torch.allclose(together, alone, atol=1e-3)
    signals = ran["cache"]["signals"][name("cond")], batched["cache"]["signals"][name("cond+uncond")]
    assert signals[0] == pytest.approx(signals[1], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "present", "back"),
    [
        ({"method": "easycache", "threshold": 50.0, "warmup_steps": 5}, (0, 1, 2), 6),
        ({"method": "adacache", "codebook": "fast"}, (0, 1), 4),
    ],
    ids=["easycache", "adacache"],
)
def test_a_branch_that_was_away_when_the_first_one_computed_does_not_follow_it(
    wan: Model, options: dict[str, Any], present: tuple[int, ...], back: int
) -> None:
    loop = Loop(wan)
    cache = caches.prepared(wan, loop.spec.with_(cache=options))
    assert cache is not None
    with cache.attach(wan):
        loop.run(loop.noise, branches=lambda step: ("cond", "uncond") if step in (*present, back) else ("cond",))
    found = cache.report().shares
    lead = found["transformer/cond/-1"]
    assert lead[back] == 0
    assert lead[back - 1 if options["method"] == "adacache" else 4] == 1
    assert found["transformer/uncond/-1"] == dict.fromkeys((*present, back), 1.0)


@pytest.mark.parametrize(
    ("method", "num_last"),
    [("first_block", 0), ("dbcache", 0), ("dbcache", 1), ("dbcache", 2), ("adacache", 0), ("seacache", 0)],
)
def test_reuse_on_the_same_input_gives_the_same_output(relative: Loop, method: str, num_last: int) -> None:
    """With hints, faces and joint attention, wherever the stack is cut: what is kept is all that is read later."""
    options = {**METHODS[method], "num_last": num_last} if method == "dbcache" else METHODS[method]
    cache = caches.prepared(relative.model, relative.spec.with_(cache={"method": method, **options}))
    assert cache is not None
    noise, first = relative.noise, relative.clock(relative.noise, 3)
    plain = relative.forward(noise, first)
    with cache.attach(relative.model):
        for step in range(3, 7):
            found = relative.forward(noise, replace(first, step=step))
            assert float((found - plain).norm() / plain.norm()) < 1e-5, step
    assert shares(cache)[0] == 1
    assert min(shares(cache)) < 1
    stack = relative.model.stacks["transformer"]
    if method == "dbcache":
        ran = relative.ran["cond", 6]
        cut = stack.cut(stack.num_main - num_last)
        assert ran == {*range(stack.cut(1)), *range(cut, len(stack))}


@pytest.mark.parametrize(("num_first", "num_last"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)])
def test_bytes_of_a_part_of_the_stack(relative: Loop, num_first: int, num_last: int) -> None:
    """A control stream is kept only where the middle has a hint block."""
    model = relative.model
    options = {"num_first": num_first, "num_last": num_last, "warmup_steps": 2, "calibrator": "taylorseer"}
    spec = relative.spec.with_(cache={"method": "dbcache", "threshold": 1.0, **options})
    cache = caches.prepared(model, spec)
    assert cache is not None
    with cache.attach(model):
        relative.run(relative.noise, branches=lambda step: ("cond",))
    one = caches.predict_bytes(model, spec)
    branches = len(caches.Run.of(model, spec).branch_names)
    assert cache.report().state_bytes * branches == one


def test_shares_leave_out_what_guidance_skips(wan: Model) -> None:
    """A block that a branch leaves out is in neither sum, and a block weighs by its operations."""
    guidance = {"method": "slg", "layers": [2], "start": 0.25, "stop": 0.75}
    cache = {"method": "dbcache", "threshold": 1.0, "num_first": 1, "num_last": 1, "warmup_steps": 1}
    spec = wan.spec(prompt="a cat", num_steps=STEPS, guidance=guidance, cache=cache)
    text, conditions = stages.encode_text(wan, spec), stages.encode_conditions(wan, spec)
    _, ran = stages.denoise_recorded(wan, spec, text, conditions)
    first, second, third, last = (entry.total for entry in wan.workload(spec).entries)
    found = {name.split("/")[1]: list(steps.values()) for name, steps in ran["cache"]["shares"].items()}
    reused = (first + last) / (first + second + third + last)
    without = (first + last) / (first + second + last)
    assert found["cond"] == [1.0] + 7 * [reused]
    assert found["uncond"] == [1.0, reused, 1.0, without, without, without, 1.0, reused]


def test_without_a_run_shares_are_of_the_default_settings(relative: Loop) -> None:
    cache = FirstBlock(FirstBlock.Options(threshold=1e9))
    with cache.attach(relative.model):
        relative.run(relative.noise, stop=2)
    totals = [entry.total for entry in relative.model.workload(relative.model.default_spec).entries]
    first = relative.model.stacks["transformer"].cut(1)
    assert shares(cache) == [1.0, sum(totals[:first]) / sum(totals)]


def test_frames_beside_the_latents_are_not_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SkyReels' network sees a last picture after the frames, and EasyCache only the frames."""
    model = models.load(tiny_skyreels(tmp_path_factory.mktemp("skyreels"))[1], device="cpu")
    media = {"image": picture(4), "last_image": picture(5), "num_frames": 9, "prompt": "a cat", "num_steps": STEPS}
    spec = model.spec(**media)
    text, conditions = stages.encode_text(model, spec), stages.encode_conditions(model, spec)
    plain = stages.denoise(model, spec, text, conditions)
    exact = spec.with_(cache={"method": "easycache", "threshold": 0.0, "warmup_steps": 2})
    assert torch.equal(stages.denoise(model, exact, text, conditions), plain)
    latents, ran = stages.denoise_recorded(model, exact.with_(**{"cache.threshold": 5.0}), text, conditions)
    assert ran["cache"]["reused"]
    assert latents.shape == plain.shape


def test_what_does_not_fit_a_run_is_refused(wan: Model, tmp_path_factory: pytest.TempPathFactory) -> None:
    flux = models.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")

    def refused(model: Model, words: str, method: str, num_steps: int = STEPS, **options: Any) -> None:
        with pytest.raises(WanlabError, match=re.escape(words)):
            caches.check(model, model.spec(num_steps=num_steps, cache={"method": method, **options}))

    refused(wan, "8 steps whatever they contain", "easycache")
    refused(wan, "nothing is left to reuse", "dbcache", num_first=3, num_last=1)
    refused(wan, "Give num_first and num_last that sum to less than 4", "dbcache", 30)
    refused(wan, "first 8 and the last 0 blocks, and transformer has 4", "dbcache", 30)
    refused(wan, "2 entries for 8 steps", "dbcache", num_first=1, mask=[True, False])
    refused(wan, "starts with False", "dbcache", 2, num_first=1, mask=[False, True])
    refused(wan, "2 steps whatever they contain", "dbcache", 2, num_first=1, mask=[True, True])
    refused(flux, "this spec has one", "adacache", motion=True)
    for method in ("easycache", "first_block", "seacache"):
        refused(wan, "threshold", method, 30, threshold=-0.1)
    refused(wan, "threshold", "dbcache", 30, threshold=-1.0)
    refused(wan, "codebook", "adacache", 30, codebook="quick")
    caches.check(flux, flux.spec(num_steps=30, cache={"method": "dbcache", "num_first": 3}))


def test_seacache_says_that_it_needs_latents(wan: Model) -> None:
    loop = Loop(wan)
    cache = caches.prepared(wan, loop.spec.with_(cache="seacache"))
    assert cache is not None
    with cache.attach(wan), pytest.raises(WanlabError, match="looks at the latents"):
        loop.forward(loop.noise, replace(loop.clock(loop.noise, 0), latents=None))
