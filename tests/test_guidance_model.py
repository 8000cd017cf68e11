"""Guidance rules on whole models: memory that resumes, layers that are left out, what is refused, what is offered."""

from dataclasses import replace

import pytest
import torch

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import caches
from wanlab.errors import WanlabError
from wanlab.registry import GUIDANCE
from wanlab.sampling import Remembering, SamplerState, load_state, sample, save_state
from wanlab.spec import MediaRef
from wanlab.stages import make_sampler, velocity_of

APG = {"method": "apg", "norm_threshold": 3.0}
SPEC = {"prompt": "a red fox", "negative_prompt": "ugly", "num_steps": 4, "num_frames": 5, "seed": 1}


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return wanlab.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


def rel(a, b):
    return float((a - b).norm() / b.norm())


def inputs(model, spec):
    return wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)


def velocity(model, spec):
    return velocity_of(model, spec.resolve(model), make_sampler(model, spec), *inputs(model, spec))


def start(model, spec):
    return make_sampler(model, spec).init(model.initial_noise(spec.resolve(model)))


@torch.no_grad()
def part(model, spec, state, stop=None):
    return sample(make_sampler(model, spec), velocity(model, spec), state, stop=stop)


def same_bits(a, b):
    tensors, others = a.to_tensors(), b.to_tensors()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[k], others[k]) for k in tensors)


@pytest.mark.parametrize("sampler", ["unipc", "euler", "lcm"])
def test_momentum_resumes_and_forks_bit_identically_at_every_step(wan, sampler, tmp_path):
    spec = wan.spec(**SPEC, sampler=sampler, guidance=APG)
    whole = part(wan, spec, start(wan, spec))
    assert set(whole.guidance) == {"average"}
    for k in range(5):
        half = part(wan, spec, start(wan, spec), stop=k)
        assert set(half.guidance) == ({"average"} if k else set())
        fork = half.clone()
        for tensor in fork.guidance.values():
            tensor.zero_()  # a fork shares no memory
        save_state(half, tmp_path / "s.safetensors")
        restored = load_state(tmp_path / "s.safetensors")
        assert restored.index == k
        assert same_bits(restored, half)
        assert same_bits(part(wan, spec, restored), whole)
        assert torch.equal(wanlab.denoise(wan, spec, *inputs(wan, spec), restored), whole.latents)


def test_momentum_is_what_is_resumed(wan):
    """Without it the run ends elsewhere, so the test above means something; the same velocity may run twice."""
    spec = wan.spec(**SPEC, guidance=APG)
    moving = velocity(wan, spec)
    solver = make_sampler(wan, spec)
    with torch.no_grad():
        half = sample(solver, moving, start(wan, spec), stop=2)
        whole = sample(solver, moving, half)
        assert same_bits(sample(solver, moving, half), whole)
        forgot = sample(solver, moving, replace(half, guidance={}))
    assert rel(forgot.latents, whole.latents) > 1e-2
    assert isinstance(moving, Remembering)


def test_nothing_leaks_from_run_to_run(wan):
    spec = wan.spec(**SPEC, guidance=APG)
    first = wanlab.generate(wan, spec).latents
    assert torch.equal(wanlab.generate(wan, spec).latents, first)
    assert rel(wanlab.generate(wan, spec.with_(guidance="cfg")).latents, first) > 1e-2


def test_a_memory_that_nobody_takes_is_refused(wan):
    spec = wan.spec(**SPEC, guidance=APG)
    half = part(wan, spec, start(wan, spec), stop=2)
    with pytest.raises(WanlabError, match=r"average.*CFG"):
        part(wan, spec.with_(guidance="cfg"), half)
    with pytest.raises(WanlabError, match="this velocity cannot use"):
        sample(make_sampler(wan, spec), lambda x, i: x, half)
    cleared = part(wan, spec.with_(guidance="cfg"), replace(half, guidance={}))  # as the message offers
    assert cleared.index == 4


def test_a_state_written_before_guidance_had_memory_still_reads(tmp_path):
    from safetensors.torch import save_file

    old = {"latents": torch.ones(1, 2, 1, 2, 2), "history.0": torch.zeros(1), "index": torch.tensor(3)}
    save_file(old, tmp_path / "old", metadata={"wanlab sampler state": "1"})
    state = load_state(tmp_path / "old")
    assert state.index == 3
    assert state.guidance == {}
    assert isinstance(state, SamplerState)


def test_slg_leaves_out_the_layers_it_names(wan):
    """One Euler step by hand from forwards whose blocks are removed from the list that diffusers' network runs."""
    spec = wan.spec(**SPEC, sampler="euler", guidance={"method": "slg", "layers": [1, 2], "start": 0, "stop": 1})
    text, _ = inputs(wan, spec)
    moving = velocity(wan, spec)
    noise = wan.initial_noise(spec.resolve(wan))
    network = wan.stacks["transformer"].network
    with torch.no_grad():
        ours = moving(noise, 0)
        cond = network(noise, torch.tensor([1000.0]), text["prompt"]["embeds"]).sample
        blocks = network.blocks
        network.blocks = torch.nn.ModuleList([blocks[0], blocks[3]])
        try:
            uncond = network(noise, torch.tensor([1000.0]), text["negative_prompt"]["embeds"]).sample
            skip = network(noise, torch.tensor([1000.0]), text["prompt"]["embeds"]).sample
        finally:
            network.blocks = blocks
        full = network(noise, torch.tensor([1000.0]), text["negative_prompt"]["embeds"]).sample
    assert rel(ours, uncond + 5.0 * (cond - uncond)) < 1e-5
    assert rel(ours, full + 5.0 * (cond - full)) > 1e-2
    third = spec.with_(guidance={"method": "slg", "layers": [1, 2], "scale": 2.8, "start": 0, "stop": 1})
    with torch.no_grad():
        ours = velocity(wan, third)(noise, 0)
    assert rel(ours, full + 5.0 * (cond - full) + 2.8 * (cond - skip)) < 1e-5


def test_slg_needs_guidance_or_a_scale_and_layers_that_exist(wan):
    with pytest.raises(WanlabError, match="guidance_scale 1 runs none"):
        wan.resolve(wan.spec(guidance={"method": "slg", "layers": [1], "guidance_scale": 1.0}))
    wan.resolve(wan.spec(guidance={"method": "slg", "layers": [1], "guidance_scale": 1.0, "scale": 2.0}))
    with pytest.raises(WanlabError, match=r"guidance\.layers: there is no block 9; .*'s transformer has \d"):
        wan.resolve(wan.spec(**SPEC, guidance={"method": "slg", "start": 0}))
    with pytest.raises(WanlabError, match="batch_branches"):
        wanlab.generate(wan, wan.spec(**SPEC, guidance={"method": "slg", "layers": [1]}, batch_branches=True))


def test_zero_steps_save_forwards_and_leave_the_noise(wan):
    spec = wan.spec(**SPEC, sampler="euler", guidance={"method": "cfg_zero", "zero_steps": 2})
    seen = []
    wanlab.denoise(wan, spec, *inputs(wan, spec), on_step=lambda i, s, latents, d: seen.append(latents))
    assert torch.equal(seen[1], wan.initial_noise(spec.resolve(wan)))
    assert rel(seen[2], seen[1]) > 1e-2
    assert wanlab.generate(wan, spec).ran["forwards"] == {"transformer": 4}


def test_phases_run_one_branch_where_their_scale_is_one(wan):
    spec = wan.spec(**SPEC, phase_scales=[5.0, 1.0], phase_boundaries=[0.8])
    guided = sum(level > 0.8 for level in wan.sigmas(spec)[:-1].tolist())
    assert 0 < guided < 4
    assert wanlab.generate(wan, spec).ran["forwards"] == {"transformer": 4 + guided}
    one = spec.with_(phase_scales=[1.0, 1.0])
    assert set(wanlab.encode_text(wan, one)) == {"prompt"}
    plain = spec.with_(phase_scales=[], phase_boundaries=[])
    same = spec.with_(phase_scales=[5.0, 5.0])
    assert torch.equal(wanlab.generate(wan, same).latents, wanlab.generate(wan, plain).latents)
    assert rel(wanlab.generate(wan, spec).latents, wanlab.generate(wan, plain).latents) > 1e-2


def test_phases_of_two_experts(tmp_path):
    model = wanlab.load(tiny_wan(tmp_path, experts=2)[1], device="cpu")
    common = {**SPEC, "expert_boundary": 0.8}
    by_expert = model.spec(**common, guidance_scale=5.0, guidance_scale_2=2.0)
    by_phase = model.spec(**common, phase_scales=[5.0, 2.0], phase_boundaries=[0.8])
    assert torch.equal(wanlab.generate(model, by_phase).latents, wanlab.generate(model, by_expert).latents)


def test_a_cache_sees_the_branches_of_every_phase(wan):
    """A mask for the unconditional branch fits where a later phase runs it, and not where none does."""
    cache = {"method": "fixed", "mask": [True] * 4, "branch_masks": {"uncond": [True, False, True, True]}}
    spec = wan.spec(**SPEC, cache=cache, phase_scales=[1.0, 5.0], phase_boundaries=[0.8])
    caches.check(wan, spec)
    with pytest.raises(WanlabError, match="uncond"):
        caches.check(wan, spec.with_(phase_scales=[1.0, 1.0]))


def test_rules_that_a_network_cannot_follow_are_neither_offered_nor_run(wan, flux):
    assert flux.offers.choices["guidance.method"] == ("embedded",)
    assert {"apg", "cfg", "cfg_interval", "cfg_zero", "slg"} <= set(wan.offers.choices["guidance.method"])
    assert not {"dual", "embedded"} & set(wan.offers.choices["guidance.method"])
    for model, name in ((wan, "dual"), (wan, "embedded"), (flux, "nag"), (flux, "apg")):
        with pytest.raises(WanlabError, match=f"{name!r} does not fit"):
            model.resolve(model.spec(guidance=name))


def test_dual_asks_for_references(wan):
    made = GUIDANCE.get("dual")(wan.spec().guidance)
    with pytest.raises(WanlabError, match="none is given"):
        made.check(wan.spec())
    made.check(wan.spec(references=[MediaRef(sha256="0" * 64, name="a.png", kind="image")]))


def test_every_offered_rule_runs(wan):
    plain = wanlab.generate(wan, wan.spec(**SPEC)).latents
    options = {"slg": {"layers": [1], "start": 0}, "cfg_zero": {"zero_steps": 1}, "cfg_interval": {"stop": 0.5}}
    options["apg"] = {"norm_threshold": 3.0}
    for name in wan.offers.choices["guidance.method"]:
        spec = wan.spec(**SPEC, guidance={"method": name, **options.get(name, {})})
        assert (name == "cfg") == torch.equal(wanlab.generate(wan, spec).latents, plain)
