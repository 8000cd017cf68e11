"""Schedules that a sampler owns: causvid's fixed levels, lcm's even ones."""

import pytest
import torch

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab.errors import WanlabError
from wanlab.registry import SAMPLERS
from wanlab.sampling import draw, flow_sigmas, linear_sigmas, sample

TIMESTEPS = [1000, 934, 862, 756, 603, 410, 250, 140, 74]
SHAPE = (1, 4, 3, 6, 8)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


def noise(step, shape):
    return draw(5, "sampler", None, step, shape)


def network(latents, step):
    return torch.tanh(latents.roll(1, -1) * 1.7 + 0.3 * step) - 0.2 * latents


@pytest.mark.parametrize("num_steps", range(1, 10))
def test_causvid_takes_its_first_levels_then_zero(num_steps):
    causvid = SAMPLERS.get("causvid")
    for levels in (causvid.flow_sigmas(num_steps, 5.0), causvid.dynamic_sigmas(num_steps, 0.7)):
        sampler = causvid(levels)
        assert sampler.timesteps.tolist() == TIMESTEPS[:num_steps]
        assert sampler.sigmas.tolist() == torch.tensor([t / 1000 for t in TIMESTEPS[:num_steps]] + [0.0]).tolist()
    latents = draw(3, "test", None, None, SHAPE)
    expected = latents.double()  # Euler by hand
    for i, (high, low) in enumerate(zip(TIMESTEPS[:num_steps], [*TIMESTEPS[1:num_steps], 0], strict=True)):
        expected = expected + (low - high) / 1000 * network(expected.float(), i).double()
    ours = sample(causvid(levels), network, causvid(levels).init(latents)).latents
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_causvid_runs_a_model_and_refuses_what_it_would_ignore(wan):
    spec = wan.spec(prompt="a fox", sampler="causvid", num_steps=4)
    assert wan.sigmas(spec).tolist() == [1.0, 0.934, 0.862, 0.756, 0.0]
    assert wanlab.generate(wan, spec).latents.isfinite().all()
    with pytest.raises(WanlabError, match=r"num_steps = 10.*for 9.*1 to 9"):
        wan.resolve(spec.with_(num_steps=10))
    with pytest.raises(WanlabError, match="flow_shift = 2 has no effect"):
        wan.resolve(spec.with_(flow_shift=2.0))
    for num_steps in (0, 10):
        with pytest.raises(WanlabError, match="for 9 steps"):
            SAMPLERS.get("causvid").flow_sigmas(num_steps, 5.0)
    own = wan.resolve(spec.with_(sigmas=[1.0, 0.5, 0.0], num_steps=2, flow_shift=2.0))
    assert wan.sigmas(own).tolist() == [1.0, 0.5, 0.0]


def test_causvid_is_for_every_family(tmp_path):
    flux = wanlab.load(tiny_flux(tmp_path)[1], device="cpu")
    spec = flux.resolve(flux.spec(prompt="a fox", sampler="causvid", num_steps=3))
    assert flux.sigmas(spec).tolist() == [1.0, 0.934, 0.862, 0.0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 4, 8, 30])
def test_lcm_goes_in_equal_steps_to_zero_before_the_shift(wan, num_steps, shift):
    levels = SAMPLERS.get("lcm").flow_sigmas(num_steps, shift)
    even = [1 - i / num_steps for i in range(num_steps + 1)]
    assert levels.tolist() == pytest.approx([shift * s / (1 + (shift - 1) * s) for s in even], abs=1e-12)
    assert levels.dtype == torch.float64
    assert torch.equal(levels, linear_sigmas(num_steps, shift))
    spec = wan.resolve(wan.spec(sampler="lcm", num_steps=num_steps, flow_shift=shift))
    assert torch.equal(wan.sigmas(spec), levels)
    assert torch.equal(SAMPLERS.get("euler").flow_sigmas(num_steps, shift), flow_sigmas(num_steps, shift))


def test_four_steps_of_lcm_are_those_of_distilled_models():
    assert SAMPLERS.get("lcm")(linear_sigmas(4, 1.0), noise).timesteps.tolist() == [1000, 750, 500, 250]
    with pytest.raises(WanlabError, match="num_steps"):
        linear_sigmas(0, 1.0)
