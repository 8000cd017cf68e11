"""The fixed cache: exact where it computes, counted work equal to the mask, state that forks, nothing left behind."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import caches, models
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sites import Branch, StepContext
from wanlab.study._plan import plan_strips

STEPS = 6


@pytest.fixture(scope="module", params=["wan", "wan2", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    definition = tiny_flux(folder)[1] if request.param == "flux" else tiny_wan(folder, 1 + (request.param == "wan2"))[1]
    return models.load(definition, device="cpu")


class Loop:
    """Euler steps with two branches, one after another; `run` may start and stop at any step."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.spec = model.resolve(model.spec(num_steps=STEPS, prompt="a cat"))
        self.levels = model.sigmas(self.spec).tolist()
        self.experts = model.experts(self.spec)
        self.text = model.encode_text(self.spec)["prompt"]
        self.counted: Counter[tuple[str, int, str]] = Counter()

    def run(self, latents: Tensor, start: int = 0, stop: int = STEPS, branches: Any = ("cond", "uncond")) -> Tensor:
        for step in range(start, stop):
            sigma = self.levels[step]
            ctx = StepContext(step, STEPS, sigma, timestep=1000 * sigma, expert=self.experts[step])
            total = torch.zeros_like(latents)
            for sign, name in zip((2.0, -1.0), branches, strict=False):
                ctx = replace(ctx, branch=name)
                total = total + sign * self.forward(latents, ctx)
            latents = latents + (self.levels[step + 1] - sigma) * total
        return latents

    def forward(self, latents: Tensor, ctx: StepContext) -> Tensor:
        text = self.text if ctx.branch == "cond" else {k: v.flip(-1) for k, v in self.text.items()}

        def count(module: Any, *_: Any) -> None:
            self.counted[ctx.branch, ctx.step, ctx.expert] += 1

        linears = [s.module for e in self.model.stacks[ctx.expert] for s in e.linears.values()]
        hooks = [module.register_forward_hook(count) for module in linears]
        try:
            self.model.begin(ctx)
            return self.model.velocity(latents, ctx, Branch(ctx.branch, text, guidance=3.5))
        finally:
            for hook in hooks:
                hook.remove()


def fixed(*mask: int, **branch_masks: list[bool]) -> Fixed:
    return Fixed(Fixed.Options(mask=tuple(map(bool, mask)), branch_masks=branch_masks))


def test_all_true_is_exact(model: Model) -> None:
    loop = Loop(model)
    noise = model.initial_noise(loop.spec)
    plain = loop.run(noise)
    with fixed(*[1] * STEPS).attach(model):
        assert torch.equal(loop.run(noise), plain)
    assert torch.equal(loop.run(noise), plain)


def test_counted_linear_calls_equal_the_mask(model: Model) -> None:
    """One expert: exactly the mask. A second expert computes its first forward whatever the mask says, and says so."""
    loop, mask = Loop(model), [True, False, False, True, False, False]
    noise, cache = model.initial_noise(loop.spec), fixed(*mask)
    plain = loop.run(noise)
    loop.counted.clear()
    with cache.attach(model):
        cached = loop.run(noise)
    assert not torch.equal(cached, plain)
    first = {name: loop.experts.index(name) for name in loop.experts}
    ran = [mask[step] or step in first.values() for step in range(STEPS)]
    for branch in ("cond", "uncond"):
        for step in range(STEPS):
            linears = sum(len(e.linears) for e in model.stacks[loop.experts[step]])
            assert loop.counted[branch, step, loop.experts[step]] == linears * ran[step], (branch, step)
    report = cache.report()
    assert (report.computed, report.reused) == (2 * sum(ran), 2 * (STEPS - sum(ran)))
    assert report.ideal_speedup == pytest.approx(STEPS / sum(ran))
    told = {step: hit for key, hits in report.hit_map.items() if "/cond/" in key for step, hit in hits.items()}
    assert [told[step] for step in range(STEPS)] == ran
    assert report.state_bytes > 0


def test_branches_have_their_own_state_and_mask(model: Model) -> None:
    """Reuse is of the branch's own residual: both branches cached equals each cached alone."""
    loop, mask = Loop(model), [1, 0, 1, 0, 1, 0]
    noise = model.initial_noise(loop.spec)
    cache = fixed(*[1] * STEPS, uncond=[bool(m) for m in mask])
    with cache.attach(model):
        loop.run(noise)
    hits = {key.split("/")[1]: {} for key in cache.report().hit_map}
    for key, steps in cache.report().hit_map.items():
        hits[key.split("/")[1]] |= steps
    assert all(hits["cond"].values())
    reused = [step for step, hit in hits["uncond"].items() if not hit]
    assert set(reused) <= {1, 3, 5}
    assert reused
    with fixed(*mask).attach(model):
        both = loop.run(noise)
    with fixed(*mask).attach(model):
        alone = loop.run(noise, branches=("cond",))
    assert not torch.equal(both, alone)


@pytest.mark.parametrize("fork", range(1, STEPS))
def test_state_forks_at_every_step(model: Model, fork: int) -> None:
    loop, mask = Loop(model), [1, 0, 1, 0, 0, 1]
    noise = model.initial_noise(loop.spec)
    with fixed(*mask).attach(model):
        straight = loop.run(noise)
    first = fixed(*mask)
    with first.attach(model):
        middle = loop.run(noise, stop=fork)
        saved = save(first.state())
        loop.run(middle * 0, start=fork)  # what the original does next must not reach the copy
    second = fixed(*mask)
    second.load_state(load(saved))
    with second.attach(model):
        assert torch.equal(loop.run(middle, start=fork), straight)
    assert sum(map(len, second.report().hit_map.values())) == 2 * STEPS


def test_a_new_run_starts_fresh(model: Model) -> None:
    """Going back to step 0 forgets the residuals of the second expert too, which begins inside the mask's gap."""
    loop, cache = Loop(model), fixed(1, 0, 0, 1, 0, 0)
    noise = model.initial_noise(loop.spec)
    with cache.attach(model):
        once, report = loop.run(noise), cache.report()
        loop.run(-noise)
        assert torch.equal(loop.run(noise), once)
        assert cache.report() == report


def test_interrupted_run_leaves_no_trace(model: Model) -> None:
    loop = Loop(model)
    noise = model.initial_noise(loop.spec)
    plain, hooks = loop.run(noise), len(model._hooks)
    spec = model.spec(num_steps=STEPS, cache={"method": "fixed", "mask": [True, False] * 3})

    def interrupt(step: int) -> None:
        with caches.attach(model, spec):
            loop.run(noise, stop=step + 1)
            raise KeyboardInterrupt

    for step in range(STEPS):
        with pytest.raises(KeyboardInterrupt):
            interrupt(step)
    assert torch.equal(loop.run(noise), plain)
    assert (len(model._hooks), model.stacks["transformer"].site.layers) == (hooks, ())


def test_spec_options_are_checked(model: Model) -> None:
    with pytest.raises(WanlabError, match="starts with False"):
        model.spec(cache={"method": "fixed", "mask": [False, True]})
    with pytest.raises(WanlabError, match="Did you mean 'mask'"):
        model.spec(cache={"method": "fixed", "mask": [True], "masc": [True]})
    spec = model.spec(num_steps=3, cache={"method": "fixed", "mask": [1 == 1, False]})
    with pytest.raises(WanlabError, match="2 entries for 3 steps"), caches.attach(model, spec):
        pass
    with caches.attach(model, model.spec()) as nothing:
        assert nothing is None
    with caches.attach(model, spec.with_(num_steps=2)) as cache:
        assert isinstance(cache, Fixed)


def test_branch_masks_name_the_branches_of_the_run(model: Model) -> None:
    """Wrong names and batched branches are refused before the run, without loading weights."""
    if model.family == "flux":
        pytest.skip("Flux here has guidance inside and one branch")

    def run(branch: str, **changes: Any) -> Any:
        masks = {"method": "fixed", "mask": [True, True], "branch_masks": {branch: [True, False]}}
        return model.spec(num_steps=2, cache=masks, **{"guidance": "cfg", "guidance_scale": 2.0, **changes})

    caches.check(model, run("cond"))
    caches.check(model, run("uncond"))
    caches.check(model, model.spec())
    caches.check(model, run("uncond", guidance={"method": "cfg_interval", "start": 0.5}))
    for wrong, words in {
        run("uncnod"): "Choices: cond, uncond. Did you mean 'uncond'",
        run("uncond", guidance_scale=1.0): "'uncond'. Choices: cond.",
        run("uncond", guidance={"method": "cfg_interval", "start": 0.5, "stop": 0.5}): "Choices: cond.",
        run("uncond", batch_branches=True): "batch_branches to False",
        run("cond+uncond", batch_branches=True): "batch_branches to False",
        run("cond").with_(num_steps=3): "2 entries for 3 steps",
    }.items():
        with pytest.raises(WanlabError, match=re.escape(words)):
            caches.check(model, wrong)
        with pytest.raises(WanlabError, match=re.escape(words)), caches.attach(model, wrong):
            pytest.fail("must not start")


def test_an_expert_that_was_left_gives_its_tensors_back(tmp_path: Path) -> None:
    """So a run of two experts holds no more than one of them does; both experts' hits stay known."""
    model = models.load(tiny_wan(tmp_path, 2)[1], device="cpu")
    loop = Loop(model)
    switch = loop.experts.index("transformer_2")
    cache = fixed(*[1, 0] * (STEPS // 2))
    with cache.attach(model):
        middle = loop.run(model.initial_noise(loop.spec), stop=switch)
        one = cache.report().state_bytes
        loop.run(middle, start=switch)
    held = {path.split("/")[1] for path in cache.state() if path.startswith("tensors/")}
    assert held == {"transformer_2"}
    assert cache.report().state_bytes == one
    assert sum(map(len, cache.report().hit_map.values())) == 2 * STEPS


def test_what_other_blocks_gave_is_not_reused(tmp_path: Path) -> None:
    """A branch that begins or stops to leave out blocks computes, whatever the mask says."""
    model = models.load(tiny_wan(tmp_path)[1], device="cpu")
    rule = {"method": "slg", "layers": [1], "start": 0.3, "stop": 0.7}
    mask = {"method": "fixed", "mask": [True, *[False] * 9]}
    spec = model.spec(num_steps=10, prompt="a cat", guidance=rule, cache=mask)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    _, ran = wanlab.stages.denoise_recorded(model, spec, text, conditions)
    hits = {key.split("/")[1]: rows for key, rows in ran["cache"]["hit_map"].items()}
    assert [step for step, hit in hits["cond"].items() if hit] == ["0"]
    skips = [run.skip_blocks[step, "uncond"] for run in [caches.Run.of(model, spec)] for step in range(10)]
    changes = [step for step in range(10) if step == 0 or skips[step] != skips[step - 1]]
    assert len(changes) == 3
    assert [int(step) for step, hit in hits["uncond"].items() if hit] == changes
    assert wanlab.estimate(model, spec).computed_forwards == ran["cache"]["computed"] == 4
    planned = plan_strips(spec, model).shares
    assert {name: row.tolist() for name, row in planned.items()} == {
        n: list(map(float, h.values())) for n, h in hits.items()
    }


def test_a_static_plan_begins_anew_with_other_blocks(tmp_path: Path) -> None:
    """The error of what was reused counts from where the branch computed because its blocks changed."""
    model = models.load(tiny_wan(tmp_path)[1], device="cpu")
    rule = {"method": "slg", "layers": [1], "start": 0.35, "stop": 1.0}
    mag = {"method": "magcache", "mag_ratios": [1.0] * 18, "retention": 0.1, "max_skip": 2}
    spec = model.spec(num_steps=10, prompt="a cat", guidance=rule, cache=mag)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    _, ran = wanlab.stages.denoise_recorded(model, spec, text, conditions)
    hits = {
        key.split("/")[1]: [int(s) for s, hit in rows.items() if hit] for key, rows in ran["cache"]["hit_map"].items()
    }
    assert hits == {"cond": [0, 3, 6, 9], "uncond": [0, 3, 4, 7]}
    assert wanlab.estimate(model, spec).computed_forwards == ran["cache"]["computed"] == 8
