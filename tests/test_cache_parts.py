"""Caches on the parts of blocks: PAB and TaylorSeer against counted calls, diffusers, and their rules by hand."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_relatives import FACE, tiny_animate, tiny_skyreels
from tests.tiny_video import film, frames_of, picture, quiet, tiny_vace
from wanlab import caches
from wanlab.caches import Cache, Run
from wanlab.caches._parts import free_bytes
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sampling import SamplerState, sample
from wanlab.sites import Branch, Handle
from wanlab.stages import make_sampler, velocity_of

STEPS = 6
PROMPT = {"prompt": "a red fox runs", "negative_prompt": "ugly thing xyz", "seed": 3}
PAB = {"method": "pab", "self_range": 2, "cross_range": 3, "ffn_range": 4, "start": 0, "stop": 1000}
LITE = {"method": "taylorseer", "interval": 3, "max_order": 2}
ALL = {**LITE, "modules": "all"}
METHODS = {"pab": PAB, "lite": LITE, "all": ALL}
EXACT = {
    "pab": {"method": "pab", "self_range": 1, "cross_range": 1, "ffn_range": 1},
    "lite": {"method": "taylorseer", "interval": 1},
    "all": {"method": "taylorseer", "interval": 1, "modules": "all"},
}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batched": {"batch_branches": True},
    "no guidance": {"guidance_scale": 1.0},
    "interval": {"guidance": {"method": "cfg_interval", "start": 0.2, "stop": 0.6}},
    "without layers": {"guidance": {"method": "slg", "layers": [1], "start": 0.2, "stop": 0.7}},
    "third branch": {"guidance": {"method": "slg", "layers": [0, 2], "start": 0.2, "stop": 0.9, "scale": 2.0}},
    "nag": {"guidance": {"method": "nag"}},
}


def vace_media() -> dict[str, Any]:
    return {"video": frames_of(film(1)), "video_2": frames_of(film(2)), "references": [picture(5)]}


def animate_media() -> dict[str, Any]:
    return {
        "image": picture(4),
        "pose_video": frames_of(film(1)),
        "face_video": frames_of(film(2, 9, FACE, FACE)),
    }


FAMILIES: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "wan": (tiny_wan, dict),
    "wan2": (lambda folder: tiny_wan(folder, 2), dict),
    "flux": (tiny_flux, dict),
    "vace": (tiny_vace, vace_media),
    "animate": (tiny_animate, animate_media),
    "skyreels": (tiny_skyreels, lambda: {"image": picture(1), "last_image": picture(2)}),
}


class Case:
    """A model and the settings under which its forwards are run."""

    def __init__(self, name: str, folder: Any) -> None:
        build, media = FAMILIES[name]
        self.folder, definition = build(folder)
        self.model: Model = wanlab.load(definition, device="cpu")
        prompt = PROMPT if name != "flux" else {"prompt": PROMPT["prompt"], "seed": 3}
        second = {"expert_boundary": 0.6} if name == "wan2" else {}
        self.settings: dict[str, Any] = {"num_steps": STEPS, **prompt, **second, **media()}

    def spec(self, **changes: Any) -> Any:
        return self.model.spec(**{**self.settings, **changes})


_cases: dict[str, Case] = {}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Models by family, each made once."""

    def get(name: str) -> Case:
        if name not in _cases:
            _cases[name] = Case(name, tmp_path_factory.mktemp(name))
        return _cases[name]

    return get


class Stepper:
    """The sampling loop of a spec, which may start and stop at any step; the cache is attached by the test."""

    def __init__(self, model: Model, spec: Any) -> None:
        self.spec = spec
        self._conditions = wanlab.encode_conditions(model, spec)
        self._text = wanlab.encode_text(model, spec)
        self._sampler = make_sampler(model, spec.resolve(model))
        resolved = spec.resolve(model)
        self._velocity = velocity_of(model, resolved, self._sampler, self._text, self._conditions)
        self.first = self._sampler.init(model.start(resolved, self._conditions, model.initial_noise(resolved)))

    def run(self, state: SamplerState | None = None, stop: int = STEPS) -> SamplerState:
        with torch.no_grad():
            return sample(self._sampler, self._velocity, self.first if state is None else state, stop=stop)


def prepared(model: Model, spec: Any) -> Cache:
    found = caches.prepared(model, spec)
    assert found is not None
    return found


@contextmanager
def counting(model: Model) -> Iterator[dict[tuple[str, int, str], set[tuple[str, str]]]]:
    """(expert, step, branch) -> the (block, part) whose inner module really ran, seen from below the sites."""
    seen: dict[tuple[str, int, str], set[tuple[str, str]]] = {}
    now: list[Any] = []
    handles: list[Any] = [model.on_begin(now.append)]
    for stack in model.stacks.values():
        for entry in stack:
            for part in entry.parts:
                linear = next(site for name, site in entry.linears.items() if name.startswith(part + "."))

                def note(*_: Any, key: tuple[str, str] = (entry.name, part)) -> None:
                    seen.setdefault((now[-1].expert, now[-1].step, now[-1].branch), set()).add(key)

                handles.append(linear.module.register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_that_changes_nothing_is_exact(case: Callable[[str], Case], family: str, method: str) -> None:
    found = case(family)
    stepper = Stepper(found.model, found.spec())
    plain = stepper.run().latents
    with caches.attach(found.model, found.spec(cache=EXACT[method])) as cache:
        assert torch.equal(stepper.run().latents, plain)
    assert cache is not None
    assert cache.report().ideal_speedup == 1
    assert torch.equal(stepper.run().latents, plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("family", "mode"), [*((f, "plain") for f in FAMILIES if f != "wan"), *(("wan", m) for m in MODES)]
)
def test_counted_calls_shares_and_bytes(case: Callable[[str], Case], family: str, mode: str, method: str) -> None:
    """What ran equals the plan and the shares, the share being that of the operations; bytes are as predicted."""
    found = case(family)
    model, spec = found.model, found.spec(**MODES[mode], cache=METHODS[method])
    stepper, run = Stepper(model, spec), Run.of(model, spec)
    with counting(model) as everything:
        plain = stepper.run().latents
    with counting(model) as ran, caches.attach(model, spec) as cache:
        assert not torch.equal(stepper.run().latents, plain)
        report = cache.report()
        assert report.state_bytes == caches.predict_bytes(model, spec)
        planned = caches.prepared(model, spec).schedule(run)
        told = [report.shares[f"{expert}/{branch}/-1"][step] for step, expert, branch in run.forwards]
        assert planned == pytest.approx(told, abs=1e-12)
        forced = cache.forced(run)
    assert forced is not None
    assert report.reused > 0
    told = {(*key.split("/")[:2], step): share for key, rows in report.shares.items() for step, share in rows.items()}
    assert set(told) == {(expert, branch, step) for step, expert, branch in run.forwards}
    for (expert, step, branch), parts in everything.items():
        done, share = ran.get((expert, step, branch), set()), told[expert, branch, step]
        nag = (11.0, 2.5, 0.25) if mode == "nag" and branch == "cond" else None
        sites = {(entry.name, part) for entry in model.stacks[expert] for part in entry.parts}
        assert forced[branch][step] == (done == parts)
        assert (share == 1) == (done == parts)
        works = {
            (entry.name, part): work
            for entry in model.workload(spec, Branch(branch, {}, nag=nag), expert).entries
            for part, work in entry.parts.items()
            if (entry.name, part) in parts or (entry.name, part) not in sites
        }
        rest = 0 if method == "lite" and not done else sum(w for key, w in works.items() if key not in parts)
        assert share == pytest.approx((rest + sum(works[key] for key in done)) / sum(works.values()), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["wan2", "flux", "vace"])
def test_state_forks_at_every_step(case: Callable[[str], Case], family: str, method: str) -> None:
    found = case(family)
    spec = found.spec(cache=METHODS[method])
    stepper = Stepper(found.model, spec)
    with prepared(found.model, spec).attach(found.model):
        straight = stepper.run().latents
    for fork in range(1, STEPS):
        first, second = prepared(found.model, spec), prepared(found.model, spec)
        with first.attach(found.model):
            middle = stepper.run(stop=fork)
            saved = save(first.state())
            stepper.run(middle)
        second.load_state(load(saved))
        with second.attach(found.model):
            assert torch.equal(stepper.run(middle).latents, straight)
        assert second.report() == first.report()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["wan2", "flux"])
def test_an_interrupted_run_leaves_no_trace(case: Callable[[str], Case], family: str, method: str) -> None:
    """Broken off inside every forward, after its first blocks: the next run with the same cache equals a fresh one."""
    found = case(family)
    model, spec = found.model, found.spec(cache=METHODS[method])
    stepper = Stepper(model, spec)
    with prepared(model, spec).attach(model):
        fresh = stepper.run().latents
    plain = Stepper(model, found.spec()).run().latents
    cache = prepared(model, spec)
    with cache.attach(model):
        for stop in range(STEPS):
            with breaking(model, stop), pytest.raises(KeyboardInterrupt):
                stepper.run()
            assert torch.equal(stepper.run().latents, fresh), stop
    assert model.attachments() == []
    assert torch.equal(stepper.run().latents, plain)


@contextmanager
def breaking(model: Model, step: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in a block in the middle of a step, or after its forward where no block runs."""
    now: list[Any] = []

    def raise_at(call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        out = call(*args, **kw)
        if now[-1].step == step:
            raise KeyboardInterrupt
        return out

    handles: list[Handle] = [model.on_begin(now.append)]
    for stack in model.stacks.values():
        assert stack.forward is not None
        handles += [stack[1].site.wrap(raise_at, "edit"), stack.forward.wrap(raise_at, "recorder")]
    with Handle.join(handles):
        yield


def test_branches_that_come_back_compute(case: Callable[[str], Case]) -> None:
    """The unconditional branch is away for longer than an interval: what it kept is too old."""
    found = case("wan")
    guidance = {"method": "cfg_interval", "start": 0.0, "stop": 1.0}
    run = Run.of(found.model, found.spec(num_steps=12, guidance=guidance))
    away = [("cond", "uncond") if step < 2 or step > 8 else ("cond",) for step in range(12)]
    run = Run(run.model, run.spec, run.sigmas, run.experts, tuple(away), run.constants)
    for method in (LITE, ALL, PAB):
        cache = prepared(found.model, found.spec(num_steps=12, cache=method))
        forced = cache.forced(run)
        assert forced is not None
        assert forced["uncond"][9]
        assert not all(forced["uncond"])


# Against diffusers


def pipeline(found: Case) -> Any:
    import diffusers

    return quiet(diffusers.WanPipeline.from_pretrained(found.folder))


def reference(pipe: Any, config: Any, guidance_scale: float = 5.0, steps: int = 9) -> Tensor:
    """Latents of WanPipeline with a cache of diffusers."""
    pipe.transformer.enable_cache(config)
    try:
        return pipe(
            prompt=PROMPT["prompt"],
            negative_prompt=PROMPT["negative_prompt"],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="latent",
            height=32,
            width=48,
            num_frames=9,
            generator=torch.Generator().manual_seed(3),
        ).frames
    finally:
        pipe.transformer.disable_cache()


def denoised(model: Model, spec: Any) -> Tensor:
    return wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec))


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("modules", ["last_block", "all"])
def test_taylorseer_equals_diffusers(case: Callable[[str], Case], modules: str, order: int) -> None:
    """With an interval of 2, where both schedules are one; the derivatives over longer gaps are checked by hand."""
    import diffusers

    found = case("wan")
    if modules == "all":
        what: dict[str, Any] = {"cache_identifiers": [r"blocks\.\d+\.(attn1|attn2|ffn)"]}
    else:
        what = {"use_lite_mode": True}
    config = diffusers.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=3, max_order=order, taylor_factors_dtype=torch.float32, **what
    )
    expected = reference(pipeline(found), config)
    cache = {"method": "taylorseer", "interval": 2, "max_order": order, "warmup_steps": 3, "modules": modules}
    ours = denoised(found.model, found.spec(num_steps=9, cache=cache))
    plain = denoised(found.model, found.spec(num_steps=9))
    assert rel(ours, plain) > 1e-4
    assert rel(ours, expected) <= 1e-5


def test_pab_without_guidance_equals_diffusers(case: Callable[[str], Case]) -> None:
    """One branch, where diffusers' shared counter is right."""
    import diffusers

    found = case("wan")
    pipe = pipeline(found)
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    expected = reference(pipe, config, guidance_scale=1.0)
    cache = {"method": "pab", "self_range": 2, "cross_range": 3}
    spec = found.spec(num_steps=9, guidance_scale=1.0, cache=cache)
    plain = denoised(found.model, spec.with_(cache="none"))
    assert rel(denoised(found.model, spec), plain) > 1e-4
    assert rel(denoised(found.model, spec), expected) <= 1e-5


# By hand


def outputs_of(model: Model, spec: Any, what: str) -> dict[tuple[str, int], Tensor]:
    """(branch, step) -> what a part of the last block gave in a run of the spec, or the network: "velocity"."""
    found: dict[tuple[str, int], Tensor] = {}
    now: list[Any] = []

    def note(call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        out = call(*args, **kw)
        found[now[-1].branch, now[-1].step] = out[0] if isinstance(out, tuple) else out
        return out

    stack = model.stacks["transformer"]
    site = stack.forward if what == "velocity" else stack[-1].parts[what]
    assert site is not None
    with model.on_begin(now.append), site.wrap(note, "recorder"), caches.attach(model, spec):
        Stepper(model, spec).run(stop=spec.sampling.num_steps)
    return found


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize(("modules", "what"), [("last_block", "velocity"), ("all", "attn1"), ("all", "ffn")])
def test_taylorseer_is_the_published_polynomial(
    case: Callable[[str], Case], modules: str, what: str, dtype: str
) -> None:
    """Steps 0, 1, 5, 9 are computed; between them the sums of TaylorSeer's formula, in float64."""
    found = case("wan")
    cache = {"method": "taylorseer", "interval": 4, "max_order": 2, "warmup_steps": 2, "modules": modules}
    cache["factor_dtype"] = dtype
    got = outputs_of(found.model, found.spec(num_steps=11, cache=cache), what)
    for branch in ("cond", "uncond"):
        f = {step: got[branch, step].double() for step in (0, 1, 5, 9)}
        d1 = {1: f[1] - f[0], 5: (f[5] - f[1]) / 4, 9: (f[9] - f[5]) / 4}
        d2 = {5: (d1[5] - d1[1]) / 4, 9: (d1[9] - d1[5]) / 4}
        for step in (2, 3, 4, 6, 7, 8, 10):
            last = max(s for s in f if s < step)
            k = step - last
            expected = f[last] + d1[last] * k + (d2[last] * k**2 / math.factorial(2) if last in d2 else 0)
            assert rel(got[branch, step].double(), expected) <= (1e-5 if dtype == "auto" else 2e-2), (branch, step)


def test_order_0_is_fora(case: Callable[[str], Case]) -> None:
    """FORA: what a part gave at the last computed step, bit for bit."""
    found = case("flux")
    cache = {"method": "taylorseer", "interval": 3, "max_order": 0, "modules": "all"}
    got = outputs_of(found.model, found.spec(cache=cache), "attn")
    for step in range(STEPS):
        assert torch.equal(got["cond", step], got["cond", step - step % 3])
        assert step % 3 == 0 or not torch.equal(got["cond", step], got["cond", (step + 3) % STEPS])


@pytest.mark.parametrize(("part", "period"), [("attn1", 2), ("attn2", 3), ("ffn", 1)])
def test_pab_is_videosys_rule_in_every_branch(case: Callable[[str], Case], part: str, period: int) -> None:
    """Reused while count % range != 0 inside the window, from the branch's own last output; never the other branch's.

    diffusers' counter, which both branches share, would give the unconditional branch the conditional output.
    """
    found = case("wan")
    cache = {"method": "pab", "self_range": 2, "cross_range": 3, "start": 200, "stop": 900}
    spec = found.spec(num_steps=12, cache=cache)
    got = outputs_of(found.model, spec, part)
    levels, kept, reused = found.model.sigmas(spec).tolist(), {}, 0
    for step in range(12):
        for branch in ("cond", "uncond"):
            out = got[branch, step]
            is_reused = step % period != 0 and 200 < 1000 * levels[step] < 900
            assert (branch in kept and torch.equal(out, kept[branch])) == is_reused, (branch, step)
            reused += is_reused
            kept[branch] = out
        assert not torch.equal(got["cond", step], got["uncond", step])
    assert (reused > 0) == (period > 1)


# What is refused, and what a run says


@pytest.mark.parametrize(("method", "remedy"), [("all", "'last_block' holds"), ("pab", "A range of 1")])
def test_a_run_that_memory_is_too_short_for_is_refused(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, method: str, remedy: str
) -> None:
    found = case("wan")
    spec = found.spec(cache=METHODS[method])
    need = caches.predict_bytes(found.model, spec)
    for free in (need, None):
        monkeypatch.setattr("wanlab.caches._parts.free_bytes", lambda device, free=free: free)
        with caches.attach(found.model, spec):
            pass
    monkeypatch.setattr("wanlab.caches._parts.free_bytes", lambda device: need - 1)
    with (
        pytest.raises(WanlabError, match=rf"will hold 0\.00 GB .* free on cpu\. .*{remedy}"),
        caches.attach(found.model, spec),
    ):
        pytest.fail("must not start")
    assert found.model.attachments() == []
    with caches.attach(found.model, found.spec(cache=LITE)):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_free_bytes_of_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert 0 < free <= total
    assert free_bytes(torch.device("meta")) is None


def test_options_are_checked(case: Callable[[str], Case]) -> None:
    found = case("wan")
    for wrong in (
        {"method": "pab", "start": 800, "stop": 100},
        {"method": "pab", "self_range": 0},
        {"method": "pab", "stop": 1001},
        {"method": "taylorseer", "interval": 0},
        {"method": "taylorseer", "modules": "some"},
        {"method": "taylorseer", "max_order": 9},
    ):
        with pytest.raises(WanlabError):
            found.spec(cache=wrong)


def test_blocks_with_parts_run_uncompiled_and_the_result_says_so(case: Callable[[str], Case]) -> None:
    found = case("wan")
    spec = found.spec(cache=PAB, compile_mode="blocks")
    text, conditions = wanlab.encode_text(found.model, spec), wanlab.encode_conditions(found.model, spec)
    latents, ran = wanlab.stages.denoise_recorded(found.model, spec, text, conditions)
    assert ran["uncompiled"] == [f"blocks.{i}" for i in range(4)]
    assert torch.equal(latents, denoised(found.model, spec.with_(compile_mode="none")))
