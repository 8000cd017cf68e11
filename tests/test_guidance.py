"""Guidance rules: what they run, what they compute, one after another or as one batch."""

from dataclasses import replace

import pytest
import torch

from wanlab.errors import WanlabError
from wanlab.guidance import predict
from wanlab.registry import GUIDANCE
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, StepContext
from wanlab.spec.parts import GuidanceSpec

SHAPE = (2, 4, 3, 6, 8)


class Toy:
    """A model whose prediction depends on everything that `predict` may hand it; remembers the calls."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.randn(4, 4, generator=generator)
        self.read = torch.randn(5, 4, generator=generator)
        self.begun = []
        self.calls = []

    def begin(self, ctx):
        self.begun.append(ctx)

    def velocity(self, latents, ctx, branch):
        assert self.begun[-1] is ctx, "the clock was not told"
        assert ctx.branch == branch.name
        assert ctx.latents is latents
        self.calls.append(branch.name)
        text = torch.tanh(branch.text["embeds"] @ self.read).mean(1) * branch.text["gain"]
        out = torch.einsum("bcthw,cd->bdthw", latents, self.mix) + text[:, :, None, None, None]
        if branch.conditions.channels is not None:
            out = out + branch.conditions.channels
        if branch.conditions.tokens is not None:
            out = out + branch.conditions.tokens["image"].mean((1, 2))[:, None, None, None, None]
        sigma = torch.as_tensor(ctx.sigma).reshape(-1, *[1] * 4)
        return torch.sin(out) * sigma * (1.0 if branch.guidance is None else branch.guidance)


def rand(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(batch=2):
    return {
        name: {"embeds": rand(batch, 7, 5, seed=k), "gain": rand(batch, 1, seed=k + 10)}
        for k, name in enumerate(("prompt", "negative_prompt"))
    }


def rule(name, scale=5.0, /, second=None, batch_branches=False, phases=((), ()), **options):
    made = GUIDANCE.get(name)
    part = GuidanceSpec(
        guidance_scale=scale,
        guidance_scale_2=second,
        batch_branches=batch_branches,
        phase_scales=phases[0],
        phase_boundaries=phases[1],
    )
    return made(part, made.Options(**options))


def ctx(step=0, num_steps=10, expert="transformer", sigma=0.7):
    return StepContext(step=step, num_steps=num_steps, sigma=sigma, timestep=700.0, expert=expert)


LATENTS = rand(*SHAPE, seed=20)
CONDITIONS = Conditions(channels=rand(*SHAPE, seed=21), tokens={"image": rand(2, 3, 4, seed=22)})


def velocity(made, clock=None, text=None, conditions=NO_CONDITIONS, latents=LATENTS):
    model = Toy()
    return predict(model, made, latents, clock or ctx(), text or texts(), conditions), model.calls


def alone(name, clock=None, guidance=None):
    """One branch by hand."""
    model, clock = Toy(), replace(clock or ctx(), branch=name, latents=LATENTS)
    model.begin(clock)
    text = texts()["prompt" if name == "cond" else "negative_prompt"]
    return model.velocity(LATENTS, clock, Branch(name, text, NO_CONDITIONS, guidance=guidance))


def test_cfg_is_the_formula_of_the_pipelines():
    result, calls = velocity(rule("cfg", 5.0))
    cond, uncond = alone("cond"), alone("uncond")
    assert calls == ["cond", "uncond"]  # WanPipeline's order
    assert torch.equal(result, uncond + 5.0 * (cond - uncond))
    assert float((cond - uncond).norm() / cond.norm()) > 0.1  # the branches do differ


def test_scale_one_runs_one_branch_and_needs_no_negative_prompt():
    made = rule("cfg", 1.0)
    result, calls = velocity(made, text={"prompt": texts()["prompt"]})
    assert calls == ["cond"]
    assert torch.equal(result, alone("cond"))
    assert not made.needs_negative(10)
    assert rule("cfg", 1.0, second=3.0).needs_negative(10)
    assert not rule("cfg", 1.0, second=1.0).needs_negative(10)
    assert rule("cfg", 5.0, second=1.0).needs_negative(10)


def test_each_expert_has_its_scale():
    cond, uncond = alone("cond"), alone("uncond")
    made = rule("cfg", 4.0, second=3.0)
    first, _ = velocity(made)
    second, _ = velocity(made, ctx(expert="transformer_2"))
    assert torch.equal(first, uncond + 4.0 * (cond - uncond))
    assert torch.equal(second, uncond + 3.0 * (cond - uncond))
    shared, _ = velocity(rule("cfg", 4.0), ctx(expert="transformer_2"))
    assert torch.equal(shared, first)
    single, calls = velocity(rule("cfg", 4.0, second=1.0), ctx(expert="transformer_2"))
    assert calls == ["cond"]
    assert torch.equal(single, cond)


def test_interval_guides_inside_and_nowhere_else():
    made = rule("cfg_interval", 5.0, start=0.2, stop=0.7)
    guided = []
    for step in range(10):
        result, calls = velocity(made, ctx(step=step))
        guided.append(calls == ["cond", "uncond"])
        expected = velocity(rule("cfg", 5.0 if guided[-1] else 1.0), ctx(step=step))[0]
        assert torch.equal(result, expected)
    assert guided == [False] * 2 + [True] * 5 + [False] * 3


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 29, 100])
def test_interval_boundaries_are_exact(num_steps):
    """k / num_steps as start leaves out exactly k steps, whatever the rounding of fractions."""
    for k in range(num_steps + 1):
        made = rule("cfg_interval", 5.0, start=k / num_steps)
        scales = [made.scale(ctx(step=i, num_steps=num_steps)) for i in range(num_steps)]
        assert scales == [1.0] * k + [5.0] * (num_steps - k)
        assert made.needs_negative(num_steps) == (k < num_steps)


def test_whole_interval_equals_cfg():
    for step in range(10):
        for expert in ("transformer", "transformer_2"):
            clock = ctx(step=step, expert=expert)
            plain, _ = velocity(rule("cfg", 5.0, second=2.0), clock)
            assert torch.equal(velocity(rule("cfg_interval", 5.0, second=2.0), clock)[0], plain)


def test_embedded_tells_the_network():
    result, calls = velocity(rule("embedded", 3.5))
    assert calls == ["cond"]
    assert torch.equal(result, alone("cond", guidance=3.5))
    assert not rule("embedded", 3.5).needs_negative(4)
    made = rule("embedded", 3.5, true_cfg_scale=2.0)
    result, calls = velocity(made)
    cond, uncond = alone("cond", guidance=3.5), alone("uncond", guidance=3.5)
    assert calls == ["cond", "uncond"]
    assert torch.equal(result, uncond + 2.0 * (cond - uncond))
    assert made.needs_negative(4)


@pytest.mark.parametrize("conditions", [NO_CONDITIONS, CONDITIONS], ids=["text", "conditions"])
@pytest.mark.parametrize(
    ("name", "options"), [("cfg", {}), ("cfg_interval", {"stop": 0.5}), ("embedded", {"true_cfg_scale": 2.0})]
)
def test_batched_equals_sequential(name, options, conditions):
    for step in (0, 7):
        one_by_one, calls = velocity(rule(name, **options), ctx(step), conditions=conditions)
        together, batched = velocity(rule(name, batch_branches=True, **options), ctx(step), conditions=conditions)
        assert batched == (["cond+uncond"] if len(calls) == 2 else ["cond"])
        torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-5)
        assert together.shape == SHAPE


def test_batched_shares_text_of_one_and_tiles_the_clock():
    sigma = torch.tensor([0.7, 0.4])
    for batch_branches in (False, True):
        shared, _ = velocity(rule("cfg", batch_branches=batch_branches), ctx(sigma=sigma), texts(batch=1))
        repeated = {n: {k: v.expand(2, *v.shape[1:]) for k, v in t.items()} for n, t in texts(batch=1).items()}
        full, _ = velocity(rule("cfg"), ctx(sigma=sigma), repeated)
        torch.testing.assert_close(shared, full, rtol=1e-5, atol=1e-5)


def test_branches_that_cannot_share_a_batch_are_refused():
    made = rule("cfg", batch_branches=True)
    text = texts()
    text["negative_prompt"] = {k: v[:, :3] for k, v in text["negative_prompt"].items()}
    with pytest.raises(WanlabError, match="batch_branches"):
        velocity(made, text=text)
    text["negative_prompt"] = {"embeds": text["prompt"]["embeds"]}
    with pytest.raises(WanlabError, match="batch_branches"):
        velocity(made, text=text)

    class Skipping(GUIDANCE.get("cfg")):
        def branches(self, ctx, text, conditions):
            cond, uncond = super().branches(ctx, text, conditions)
            return [cond, replace(uncond, skip_blocks=(1,))]

    with pytest.raises(WanlabError, match="skip"):
        velocity(Skipping(made.guidance, made.options))


def test_mistakes_are_refused():
    with pytest.raises(WanlabError, match="negative prompt"):
        velocity(rule("cfg"), text={"prompt": texts()["prompt"]})
    with pytest.raises(WanlabError, match=r"0\.8"):
        rule("cfg_interval", start=0.8, stop=0.2)
    with pytest.raises(WanlabError):
        rule("cfg_interval", start=-0.1)
    with pytest.raises(WanlabError):
        rule("cfg_interval", begin=0.1)
    with pytest.raises(WanlabError, match="cfg_interval"):
        GUIDANCE.get("cfg_intervall")
