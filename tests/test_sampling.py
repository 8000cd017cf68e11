"""Samplers, schedules and the loop, against diffusers and against exact solutions."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers import scheduling_flow_match_lcm

from wanlab.errors import WanlabError
from wanlab.registry import SAMPLERS
from wanlab.sampling import (
    SamplerState,
    dpmpp_sigmas,
    draw,
    dynamic_mu,
    dynamic_sigmas,
    euler_sigmas,
    flow_sigmas,
    sample,
)

SHAPE = (2, 4, 3, 6, 8)
SHIFTS = (1.0, 3.0, 5.0, 8.0)
STEPS = (1, 2, 3, 6, 9, 20, 50)
# Same operations in the same order and precision: on the CPU that tests run on all four are bit-equal. The tolerance
# leaves room for another machine's log and expm1.
TOLERANCE = 1e-6


def unipc_reference(flow_shift=1.0):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)


def dpmpp_reference(flow_shift=1.0):
    return DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
    )


def reference(name, sigmas):
    """diffusers' scheduler over the explicit levels `sigmas` (float64, the last is 0)."""
    levels = sigmas[:-1].numpy().copy()
    if name == "unipc":
        scheduler = unipc_reference()
        scheduler.set_timesteps(sigmas=levels)
    elif name == "dpmpp_2m":  # takes no sigmas, so they are put in place
        scheduler = dpmpp_reference()
        scheduler.set_timesteps(len(levels))
        scheduler.sigmas = sigmas.float()
        scheduler.timesteps = torch.from_numpy(levels * 1000).to(torch.int64)
    else:
        scheduler = {"euler": FlowMatchEulerDiscreteScheduler, "lcm": FlowMatchLCMScheduler}[name](shift=1.0)
        scheduler.set_timesteps(sigmas=levels)
    scheduler.set_begin_index(0)
    return scheduler


def noise(step, shape):
    return draw(11, "sampler", None, step, shape)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def sigma_grids():
    irregular = torch.tensor([0.97, 0.9, 0.6, 0.55, 0.2, 0.03, 0.0], dtype=torch.float64)
    return [flow_sigmas(n, shift) for n, shift in ((1, 1.0), (2, 5.0), (6, 3.0), (20, 5.0), (50, 8.0))] + [irregular]


@pytest.mark.parametrize("name", ["unipc", "euler", "dpmpp_2m", "lcm"])
def test_sampler_equals_diffusers_at_every_step(name, monkeypatch):
    for sigmas in sigma_grids():
        ours, theirs = SAMPLERS.get(name)(sigmas, noise), reference(name, sigmas)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        latents = draw(0, "test", None, None, SHAPE)
        state = ours.init(latents)
        for i, t in enumerate(theirs.timesteps):
            monkeypatch.setattr(
                scheduling_flow_match_lcm, "randn_tensor", lambda shape, i=i, **kwargs: noise(i, tuple(shape))
            )
            velocity = draw(1, "test", None, i, SHAPE)
            latents = theirs.step(velocity, t, latents, return_dict=False)[0]
            state = ours.step(state, velocity, i)
            assert relative(state.latents, latents) <= TOLERANCE, (name, len(sigmas) - 1, i)


@pytest.mark.parametrize("name", ["unipc", "euler", "dpmpp_2m", "lcm"])
def test_each_sampler_is_told_apart(name):
    """The parity above would mean little if the samplers agreed with each other."""
    others = {"unipc", "euler", "dpmpp_2m", "lcm"} - {name}
    mine = run(name, num_steps=6).latents
    for other in others:
        assert relative(run(other, num_steps=6).latents, mine) > 1e-3


def test_starting_in_the_middle_equals_diffusers():
    sigmas, start = flow_sigmas(8, 3.0), 3
    for name in ("unipc", "euler", "dpmpp_2m"):
        ours, theirs = SAMPLERS.get(name)(sigmas), reference(name, sigmas)
        theirs.set_begin_index(start)
        latents = draw(0, "test", None, None, SHAPE)
        state = ours.init(latents, start)
        for i in range(start, 8):
            velocity = draw(1, "test", None, i, SHAPE)
            latents = theirs.step(velocity, theirs.timesteps[i], latents, return_dict=False)[0]
            state = ours.step(state, velocity, i)
            assert relative(state.latents, latents) <= TOLERANCE, (name, i)


def field(x, sigma):
    """An analytic velocity that depends on latents and sigma, with the exact solution below."""
    return -x * math.tan(sigma) + 2 * sigma * math.cos(sigma)


def solution(x_start, start, sigma):
    constant = x_start / math.cos(start) - start**2
    return math.cos(sigma) * (sigma**2 + constant)


def test_analytic_solution_solves_the_field():
    x, s, eps = torch.tensor(0.7, dtype=torch.float64), 0.5, 1e-5
    slope = (solution(x, 0.9, s + eps) - solution(x, 0.9, s - eps)) / (2 * eps)
    assert float((slope - field(solution(x, 0.9, s), s)).abs()) < 1e-9


@pytest.mark.parametrize(("name", "order"), [("unipc", 1.8), ("dpmpp_2m", 1.8), ("euler", 0.9)])
def test_convergence_order(name, order):
    """In float64, so that rounding does not hide the order; a first-order step at either end costs h**2 once."""
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    errors = []
    counts = (80, 160, 320)
    for num_steps in counts:
        sigmas = torch.linspace(0.9, 0.1, num_steps + 1, dtype=torch.float64)
        sampler = SAMPLERS.get(name)(sigmas, dtype=torch.float64)
        levels = sampler.sigmas.tolist()
        end = sample(sampler, lambda latents, i, levels=levels: field(latents, levels[i]), sampler.init(x)).latents
        errors.append(float((end - solution(x, 0.9, 0.1)).abs().max()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) >= order, orders
    assert max(orders) < order + 1.5, orders  # higher would mean that the field is too easy
    assert errors[-1] > 1e-9  # far above float64's rounding


def network(latents, step):
    """A velocity that depends on latents and step and on nothing else."""
    return torch.tanh(latents.roll(1, -1) * 1.7 + 0.3 * step) - 0.2 * latents


def run(name, num_steps=6, state=None, stop=None, on_step=None):
    sampler = SAMPLERS.get(name)(flow_sigmas(num_steps, 3.0), noise)
    state = sampler.init(draw(3, "test", None, None, SHAPE)) if state is None else state
    return sample(sampler, network, state, stop=stop, on_step=on_step)


def same_bits(a: SamplerState, b: SamplerState) -> bool:
    tensors, others = a.to_tensors(), b.to_tensors()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[k], others[k]) for k in tensors)


@pytest.mark.parametrize("name", ["unipc", "euler", "dpmpp_2m", "lcm"])
def test_fork_and_resume_at_every_step_are_bit_identical(name):
    whole = run(name)
    for k in range(7):
        half = run(name, stop=k)
        kept = half.clone()
        fork = half.clone()
        for tensor in fork.to_tensors().values():
            tensor.zero_()  # a fork shares no memory
        assert same_bits(half, kept)
        assert same_bits(run(name, state=half), whole)
        assert same_bits(half, kept), "a step changed the state it was given"
        restored = SamplerState.from_tensors({n: t.clone() for n, t in half.to_tensors().items()})
        assert restored.index == k
        assert same_bits(run(name, state=restored), whole)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", STEPS)
def test_schedules_and_timesteps_equal_diffusers(num_steps, shift):
    theirs = unipc_reference(shift)
    theirs.set_timesteps(num_steps)
    ours = SAMPLERS.get("unipc")(flow_sigmas(num_steps, shift))
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps.dtype == torch.int64

    theirs = dpmpp_reference(shift)
    theirs.set_timesteps(num_steps)
    ours = SAMPLERS.get("dpmpp_2m")(dpmpp_sigmas(num_steps, shift))
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)

    for name, scheduler in (("euler", FlowMatchEulerDiscreteScheduler), ("lcm", FlowMatchLCMScheduler)):
        theirs = scheduler(shift=shift)
        theirs.set_timesteps(num_steps)
        ours = SAMPLERS.get(name)(euler_sigmas(num_steps, shift), noise)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("num_tokens", [16, 1024, 4096])
@pytest.mark.parametrize("num_steps", [1, 4, 28])
def test_flux_schedule_equals_diffusers(num_steps, num_tokens):
    mu = dynamic_mu(num_tokens)
    assert mu == calculate_shift(num_tokens)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    ours = SAMPLERS.get("euler")(dynamic_sigmas(num_steps, mu))
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)


def test_equal_shift_is_another_schedule_in_another_family():
    """Why our samplers share one schedule: the two of diffusers differ at the same shift."""
    assert relative(euler_sigmas(6, 3.0), flow_sigmas(6, 3.0)) > 0.1


def test_draw_depends_on_every_argument_and_on_nothing_else():
    keys = [(1, "a", None, 0), (2, "a", None, 0), (1, "b", None, 0), (1, "a", 0, 0), (1, "a", None, 1)]
    draws = [draw(*key, SHAPE) for key in keys]
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(draw(*keys[0], SHAPE), draws[0])
    state = torch.get_rng_state()
    draw(*keys[0], SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    # frozen: results of finished runs depend on these numbers
    assert draw(7, "sampler", None, 3, (2,)).tolist() == pytest.approx([0.46785167, 0.79366261], abs=1e-7)


def test_on_step_sees_every_step():
    seen = []
    end = run("unipc", on_step=lambda *call: seen.append(call))
    sampler = SAMPLERS.get("unipc")(flow_sigmas(6, 3.0))
    assert [call[0] for call in seen] == list(range(6))
    assert [call[1] for call in seen] == sampler.sigmas[:-1].tolist()
    assert torch.equal(seen[-1][2], end.latents)
    before = draw(3, "test", None, None, SHAPE)
    torch.testing.assert_close(seen[0][3], before - sampler.sigmas[0] * network(before, 0))
    torch.testing.assert_close(seen[-1][3], end.latents)  # the last step ends at its data estimate
    assert same_bits(end, run("unipc")), "watching changes nothing"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_velocity_that_is_not_finite_names_the_step(bad):
    sampler = SAMPLERS.get("unipc")(flow_sigmas(6, 3.0))

    def broken(latents, step):
        velocity = network(latents, step)
        if step == 4:
            velocity[0, 0, 0, 0, 0] = bad
        return velocity

    with pytest.raises(WanlabError, match="step 4 of 6"):
        sample(sampler, broken, sampler.init(torch.zeros(SHAPE)))


def test_latents_stay_float32_under_a_bfloat16_network():
    for name in SAMPLERS.names():
        sampler = SAMPLERS.get(name)(flow_sigmas(4, 3.0), noise)
        end = sample(sampler, lambda x, i: network(x, i).bfloat16(), sampler.init(torch.ones(SHAPE)))
        assert end.latents.dtype == torch.float32


@pytest.mark.parametrize(
    "sigmas",
    [[1.0], [1.0, 1.0, 0.0], [0.5, 0.7, 0.0], [1.2, 0.5, 0.0], [1.0, math.nan, 0.0], [0.5, -0.1], [[1.0, 0.0]]],
)
def test_illegal_sigmas_are_refused(sigmas):
    with pytest.raises(WanlabError):
        SAMPLERS.get("euler")(torch.tensor(sigmas))


def test_other_mistakes_are_refused():
    with pytest.raises(WanlabError, match="num_steps"):
        flow_sigmas(0, 3.0)
    for shift in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(WanlabError, match="flow_shift"):
            flow_sigmas(4, shift)
    with pytest.raises(WanlabError, match="noise"):
        SAMPLERS.get("lcm")(flow_sigmas(4, 3.0))
    with pytest.raises(WanlabError, match="euler"):
        SAMPLERS.get("eular")
