"""CFG-Zero*, APG, skip-layer guidance, dual guidance and phases: against their papers in float64, and diffusers."""

from dataclasses import replace

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from diffusers.hooks import LayerSkipConfig

from tests.test_guidance import CONDITIONS, LATENTS, SHAPE, alone, ctx, rand, rule, texts, velocity
from wanlab.errors import WanlabError
from wanlab.guidance.apg import parallel
from wanlab.guidance.cfg_zero import optimised_scale
from wanlab.registry import GUIDANCE
from wanlab.sites import NO_CONDITIONS, Conditions

STEPS = 10
NO_OPS = {
    "cfg_zero": {"optimised_scale": False},
    "apg": {"momentum": 0.0, "norm_threshold": 0.0, "eta": 1.0},
    "slg": {"layers": []},
    "nag": {"scale": 1.0},
    "dual": {"image_scale": 1.0},
}


def rel(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def pairs(count=STEPS):
    """cond and uncond of every step, float32, alike as predictions are."""
    for i in range(count):
        cond = rand(*SHAPE, seed=100 + i)
        yield {"cond": cond, "uncond": 0.8 * cond + 0.4 * rand(*SHAPE, seed=200 + i)}


def at(step, sigma=0.7):
    return replace(ctx(step, STEPS, sigma=sigma), latents=LATENTS)


def guider(made, step):
    made.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(500.0))
    return made


@pytest.mark.parametrize("name", NO_OPS)
def test_each_rule_has_a_setting_that_is_cfg_bit_for_bit(name):
    for step in range(STEPS):
        for expert in ("transformer", "transformer_2"):
            clock = ctx(step, STEPS, expert=expert)
            plain, calls = velocity(rule("cfg", 5.0, second=2.0), clock, conditions=CONDITIONS)
            ours, same = velocity(rule(name, 5.0, second=2.0, **NO_OPS[name]), clock, conditions=CONDITIONS)
            assert torch.equal(ours, plain)
            assert same == calls


@pytest.mark.parametrize("name", sorted({*NO_OPS, "cfg", "cfg_interval"}))
def test_scale_one_is_the_conditional_branch_alone(name):
    options = {"alpha": 0.0} if name == "nag" else {}
    made = rule(name, 1.0, **options)
    result, calls = velocity(made, ctx(5), text={"prompt": texts()["prompt"]})
    assert calls == ["cond"]
    assert torch.equal(result, alone("cond", ctx(5)))
    assert not made.needs_negative(STEPS)


# Phases


def test_phases_replace_the_scales_of_experts():
    """A phase holds while the level is above its boundary, as in WanGP; the scale of a phase of 1 runs one branch."""
    scales, boundaries = (7.0, 3.0, 1.0), (0.9, 0.6)
    for name in ("cfg", "cfg_interval", "embedded"):
        made = rule(name, 5.0, second=2.0, phases=(scales, boundaries))
        for expert in ("transformer", "transformer_2"):
            levels = {1.0: 7.0, 0.91: 7.0, 0.9: 3.0, 0.61: 3.0, 0.6: 1.0, 0.1: 1.0}
            assert {s: made.scale(ctx(sigma=s, expert=expert)) for s in levels} == levels
    cond, uncond = alone("cond"), alone("uncond")
    result, calls = velocity(rule("cfg", phases=(scales, boundaries)), ctx(sigma=0.7))
    assert calls == ["cond", "uncond"]
    assert torch.equal(result, uncond + 3.0 * (cond - uncond))
    assert velocity(rule("cfg", phases=(scales, boundaries)), ctx(sigma=0.6))[1] == ["cond"]


@pytest.mark.parametrize("boundary", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_phase_begins_at_its_boundary_in_float32_too(boundary):
    """0.6 in float32 is above 0.6, and 0.9 below."""
    made = rule("cfg", phases=((5.0, 2.0), (boundary,)))
    for level in (boundary, float(torch.tensor(boundary, dtype=torch.float32))):
        assert made.scale(ctx(sigma=level)) == 2.0
        assert made.scale(ctx(sigma=level + 1e-4)) == 5.0


def test_phases_go_by_the_highest_level_of_the_frames():
    made = rule("cfg", phases=((5.0, 2.0), (0.6,)))
    assert made.scale(ctx(sigma=torch.tensor([[0.0, 0.3, 0.7], [0.1, 0.2, 0.3]]))) == 5.0
    assert made.scale(ctx(sigma=torch.tensor([[0.0, 0.3, 0.5]]))) == 2.0
    assert made.scale(ctx(sigma=torch.tensor(0.61))) == 5.0


def test_the_negative_prompt_is_needed_if_a_phase_guides():
    assert rule("cfg", 1.0, phases=((1.0, 3.0), (0.5,))).needs_negative(4)
    assert not rule("cfg", 5.0, second=5.0, phases=((1.0, 1.0), (0.5,))).needs_negative(4)
    assert rule("apg", 1.0, phases=((1.0, 3.0), (0.5,))).needs_negative(4)


# CFG-Zero*


def test_optimised_scale_is_the_best_multiple_of_each_sample():
    cond, uncond = rand(*SHAPE, seed=1), rand(*SHAPE, seed=2) * 3
    alpha = optimised_scale(cond, uncond)
    c, u = cond.double().flatten(1), uncond.double().flatten(1)
    for b in range(2):
        expected = float(torch.dot(c[b], u[b]) / u[b].norm() ** 2)
        assert float(alpha[b]) == pytest.approx(expected, rel=1e-5)
        solved = torch.linalg.lstsq(u[b][:, None], c[b][:, None]).solution  # what "nearest" means
        assert float(alpha[b]) == pytest.approx(float(solved), rel=1e-5)
    assert abs(float(alpha[0] - alpha[1])) > 1e-3, "one alpha for the batch would do"


def test_cfg_zero_is_the_paper_and_diffusers():
    made, theirs = rule("cfg_zero", 5.0, zero_steps=2), ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=2)
    for step, found in enumerate(pairs()):
        ours = made.combine({} if step < 2 else found, at(step))
        reference = guider(theirs, step).forward(found["cond"], found["uncond"]).pred
        assert torch.equal(ours, reference)
        if step < 2:
            continue
        c, u = found["cond"].double(), found["uncond"].double()
        alpha = ((c * u).flatten(1).sum(1) / (u**2).flatten(1).sum(1)).view(-1, 1, 1, 1, 1)
        assert rel(ours, (1 - 5.0) * alpha * u + 5.0 * c) < 1e-6
        assert rel(ours, u + 5.0 * (c - u)) > 1e-2


def test_zero_steps_run_no_network_and_leave_the_latents():
    made = rule("cfg_zero", 5.0, zero_steps=1)
    result, calls = velocity(made, ctx(0, STEPS))
    assert calls == []
    assert torch.equal(result, torch.zeros(SHAPE))
    assert velocity(made, ctx(1, STEPS))[1] == ["cond", "uncond"]
    assert velocity(rule("cfg_zero", 1.0, zero_steps=1), ctx(0, STEPS))[1] == []
    assert not rule("cfg_zero", 5.0, zero_steps=4).needs_negative(4)


# APG


def paper_apg(pairs, scale, momentum, threshold, eta, levels=None):
    """Algorithm of the paper in float64, on predictions or, with levels, on the data they point to."""
    average, out = 0.0, []
    for k, found in enumerate(pairs):
        cond, uncond = found["cond"].double(), found["uncond"].double()
        if levels is not None:
            cond, uncond = LATENTS.double() - levels[k] * cond, LATENTS.double() - levels[k] * uncond
        average = cond - uncond + momentum * average
        guided = []
        for b in range(len(cond)):
            delta = average[b] * min(1.0, threshold / float(average[b].norm())) if threshold else average[b]
            along = (delta * cond[b]).sum() / (cond[b] * cond[b]).sum() * cond[b]
            guided.append(cond[b] + (scale - 1) * (delta - along + eta * along))
        result = torch.stack(guided)
        out.append(result if levels is None else (LATENTS.double() - result) / levels[k])
    return out


@pytest.mark.parametrize("on", ["denoised", "velocity"])
@pytest.mark.parametrize(("momentum", "threshold", "eta"), [(-0.75, 5.0, 0.0), (0.5, 0.0, 0.3), (0.0, 100.0, -1.0)])
def test_apg_is_the_paper(on, momentum, threshold, eta):
    levels = [1 - 0.08 * i for i in range(STEPS)]
    made = rule("apg", 6.0, momentum=momentum, norm_threshold=threshold, eta=eta, on=on)
    expected = paper_apg(pairs(), 6.0, momentum, threshold, eta, levels if on == "denoised" else None)
    for step, found in enumerate(pairs()):
        ours = made.combine(found, at(step, levels[step]))
        assert rel(ours, expected[step]) < 1e-5
        assert rel(ours, rule("cfg", 6.0).combine(found, at(step))) > 1e-2


@pytest.mark.parametrize(("momentum", "threshold", "eta"), [(-0.75, 5.0, 0.0), (0.5, 0.0, 0.3), (None, 55.0, 1.0)])
def test_apg_on_velocities_is_diffusers_in_its_original_formulation(momentum, threshold, eta):
    theirs = AdaptiveProjectedGuidance(
        5.0, momentum, threshold, eta=eta, use_original_formulation=True, adaptive_projected_guidance_norm_dim=None
    )
    theirs.momentum_buffer = (
        None if momentum is None else MomentumBuffer(momentum)
    )  # else made by its pipelines' inputs
    options = {"momentum": momentum or 0.0, "norm_threshold": threshold, "eta": eta, "on": "velocity"}
    made = rule("apg", 6.0, **options)
    for step, found in enumerate(pairs()):
        reference = guider(theirs, step).forward(found["cond"], found["uncond"]).pred
        assert rel(made.combine(found, at(step)), reference) < 1e-6


def test_every_option_of_apg_matters():
    found = list(pairs(3))
    base = {"momentum": -0.75, "norm_threshold": 5.0, "eta": 0.0, "on": "denoised"}

    def last(**changes):
        made = rule("apg", 6.0, **{**base, **changes})
        return [made.combine(f, at(i)) for i, f in enumerate(found)][-1]

    for change in ({"momentum": 0.0}, {"norm_threshold": 0.0}, {"eta": 0.5}, {"on": "velocity"}):
        assert rel(last(**change), last()) > 1e-2, change


def test_apg_takes_levels_by_frame_and_leaves_clean_frames():
    found = next(pairs(1))
    levels = torch.tensor([[0.0, 0.5, 0.9]]).expand(2, 3)
    made = rule("apg", 6.0)
    ours = made.combine(found, at(0, levels))
    assert bool(ours.isfinite().all())
    assert torch.equal(ours[:, :, 0], found["cond"][:, :, 0])
    same = rule("apg", 6.0).combine(found, at(0, torch.full((2, 3), 0.7)))
    torch.testing.assert_close(same, rule("apg", 6.0).combine(found, at(0, 0.7)))


def test_apg_rounds_little_in_bfloat16():
    found = next(pairs(1))
    low = {name: value.bfloat16() for name, value in found.items()}
    ours = rule("apg", 6.0).combine(low, at(0))
    assert ours.dtype == torch.float32
    exact = paper_apg([{n: v.float() for n, v in low.items()}], 6.0, -0.75, 55.0, 0.0, [0.7])[0]
    assert rel(ours, exact) < 1e-5


def test_the_part_along_a_direction():
    x, direction = rand(*SHAPE, seed=1), rand(*SHAPE, seed=2)
    along = parallel(x, direction)
    rest = x - along
    for b in range(2):
        assert abs(float((rest[b] * direction[b]).sum())) < 1e-3
        ratio = along[b] / direction[b]
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-3, atol=1e-5)


# Skip-layer guidance


def test_slg_without_a_scale_skips_in_the_unconditional_branch():
    made = rule("slg", 5.0, layers=[1, 3], start=0.2, stop=0.6)
    skipped = []
    for step in range(STEPS):
        cond, uncond = made.branches(ctx(step, STEPS), texts(), NO_CONDITIONS)
        assert cond.skip_blocks == ()
        skipped.append(uncond.skip_blocks)
    assert skipped == [()] * 2 + [(1, 3)] * 4 + [()] * 4
    assert rule("slg", 1.0, layers=[1]).branches(ctx(5), texts(), NO_CONDITIONS)[0].skip_blocks == ()


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_slg_with_a_scale_is_diffusers(scale):
    """Their interval starts after its first step; at scale 1 their original formulation is the one without a jump."""
    original = scale == 1
    theirs = SkipLayerGuidance(
        scale - original,
        2.8,
        skip_layer_guidance_start=0.2,
        skip_layer_guidance_stop=0.6,
        skip_layer_config=LayerSkipConfig(indices=[1], fqn="blocks"),
        use_original_formulation=original,
    )
    made = rule("slg", scale, layers=[1], scale=2.8, start=0.3, stop=0.6)
    for step, found in enumerate(pairs()):
        found["skip"] = 0.9 * found["cond"] + 0.2 * rand(*SHAPE, seed=step)
        branches = made.branches(ctx(step, STEPS), texts(), NO_CONDITIONS)
        names = [b.name for b in branches]
        assert names == ["cond", *(["uncond"] if scale != 1 else []), *(["skip"] if 3 <= step < 6 else [])]
        ours = made.combine({name: found[name] for name in names}, at(step))
        reference = guider(theirs, step).forward(found["cond"], found["uncond"], found["skip"]).pred
        assert rel(ours, reference) < 1e-6
        c, u, s = (found[name].double() for name in ("cond", "uncond", "skip"))
        weight = 2.8 if 3 <= step < 6 else 0.0
        assert rel(ours, u + scale * (c - u) + weight * (c - s)) < 1e-6


def test_the_third_branch_has_the_prompt():
    cond, _, skip = rule("slg", 5.0, layers=[1], scale=2.8).branches(ctx(5), texts(), CONDITIONS)
    assert skip.text is cond.text
    assert skip.conditions is cond.conditions
    assert (cond.skip_blocks, skip.skip_blocks) == ((), (1,))


# Text and references


REFERENCES = Conditions(reference_frames=rand(2, 4, 1, 6, 8, seed=31), channels=rand(*SHAPE, seed=32))


def test_dual_has_three_branches_and_is_phantoms_formula():
    made = rule("dual", 7.5, image_scale=5.0)
    text = texts()
    cond, uncond, bare = made.branches(ctx(), text, REFERENCES)
    assert [b.name for b in (cond, uncond, bare)] == ["cond", "uncond", "bare"]
    assert (cond.text, uncond.text, bare.text) == (text["prompt"], text["negative_prompt"], text["negative_prompt"])
    assert cond.conditions is uncond.conditions is REFERENCES
    assert torch.equal(bare.conditions.reference_frames, torch.zeros(2, 4, 1, 6, 8))
    assert bare.conditions.channels is REFERENCES.channels
    it, i, neg = (rand(*SHAPE, seed=k) for k in (1, 2, 3))
    ours = made.combine({"cond": it, "uncond": i, "bare": neg}, at(0))
    assert rel(ours, neg.double() + 5.0 * (i.double() - neg) + 7.5 * (it.double() - i)) < 1e-6
    assert [b.name for b in made.branches(ctx(), texts(), NO_CONDITIONS)] == ["cond", "uncond", "bare"]
    with pytest.raises(WanlabError, match="frames beside the video"):
        made.branches(ctx(), texts(), CONDITIONS)


def test_blank_keeps_shapes_and_what_is_not_there():
    blank = REFERENCES.blank("reference_frames", "audio")
    assert torch.equal(blank.reference_frames, torch.zeros(2, 4, 1, 6, 8))
    assert blank.audio is None
    assert REFERENCES.reference_frames.abs().max() > 0


# Mistakes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cfg_zero", {"zero_steps": -1}),
        ("apg", {"norm_threshold": -1.0}),
        ("apg", {"on": "noise"}),
        ("apg", {"momentum": 1.0}),
        ("slg", {"layers": [-1]}),
        ("slg", {"start": 0.9, "stop": 0.1}),
        ("nag", {"scale": 0.5}),
        ("nag", {"tau": 0.0}),
    ],
)
def test_illegal_options_are_refused(name, options):
    with pytest.raises(WanlabError, match=next(iter(options))):
        rule(name, **options)


def test_a_rule_without_memory_refuses_anothers():
    for name in GUIDANCE.names():
        made = rule(name)
        assert made.state() == {}
        made.load_state({})
        with pytest.raises(WanlabError, match="another guidance rule"):
            made.load_state({"something": torch.zeros(1)})
