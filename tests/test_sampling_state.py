"""Sampler states on disk: save and resume at every step, bit-identically."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from wanlab.errors import WanlabError
from wanlab.registry import SAMPLERS
from wanlab.sampling import SamplerState, draw, flow_sigmas, load_state, sample, save_state

SHAPE = (1, 4, 3, 6, 8)
NAMES = ["unipc", "euler", "dpmpp_2m", "lcm"]


def make(name, num_steps=6):
    return SAMPLERS.get(name)(flow_sigmas(num_steps, 3.0), lambda step, shape: draw(5, "sampler", None, step, shape))


def network(latents, step):
    return torch.tanh(latents.roll(1, -1) * 1.7 + 0.3 * step) - 0.2 * latents


def start(name):
    return make(name).init(draw(3, "test", None, None, SHAPE))


def same_bits(a, b):
    tensors, others = a.to_tensors(), b.to_tensors()
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[k], others[k]) and tensors[k].dtype == others[k].dtype for k in tensors
    )


@pytest.mark.parametrize("name", NAMES)
def test_save_and_resume_at_every_step_is_bit_identical(name, tmp_path):
    whole = sample(make(name), network, start(name))
    for k in range(7):
        half = sample(make(name), network, start(name), stop=k)
        save_state(half, tmp_path / "state.safetensors")
        restored = load_state(tmp_path / "state.safetensors")
        assert restored.index == k
        assert same_bits(restored, half)
        assert same_bits(sample(make(name), network, restored), whole)
    assert os.listdir(tmp_path) == ["state.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_interrupt_at_every_step_leaves_the_state_good(name):
    whole = sample(make(name), network, start(name))
    for k in range(6):
        state = sample(make(name), network, start(name), stop=k // 2)
        kept, sampler = state.clone(), make(name)

        def interrupted(latents, step, k=k):
            if step == k:
                raise KeyboardInterrupt
            return network(latents, step)

        with pytest.raises(KeyboardInterrupt):
            sample(sampler, interrupted, state)
        assert same_bits(state, kept)
        assert same_bits(sample(sampler, network, state), whole)


def test_state_files_keep_dtype_shared_and_strided_tensors(tmp_path):
    latents = torch.arange(24, dtype=torch.float64).reshape(1, 2, 3, 4, 1).transpose(2, 3)
    state = SamplerState(latents, (latents, latents.bfloat16(), torch.tensor([torch.nan, -0.0])), 2)
    save_state(state, tmp_path / "deep" / "s.safetensors")
    restored = load_state(tmp_path / "deep" / "s.safetensors")
    assert torch.equal(restored.latents, latents)
    assert restored.latents.dtype == torch.float64
    assert restored.history[1].dtype == torch.bfloat16
    assert torch.equal(restored.history[2].view(torch.int32), state.history[2].view(torch.int32))


def test_same_state_gives_the_same_bytes(tmp_path):
    state = sample(make("unipc"), network, start("unipc"), stop=3)
    for name in ("a", "b"):
        save_state(state.clone(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_that_are_no_state_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(WanlabError):
        load_state(path)
    save_file({"latents": torch.zeros(1)}, path)
    with pytest.raises(WanlabError, match="no sampler state"):
        load_state(path)
    save_file({"latents": torch.zeros(1)}, path, metadata={"wanlab sampler state": "1"})
    with pytest.raises(WanlabError, match="index"):
        load_state(path)
    save_file({"latents": torch.zeros(1)}, path, metadata={"wanlab sampler state": "4"})
    with pytest.raises(WanlabError, match="schema 1, 2 or 3"):
        load_state(path)
    save_state(start("euler"), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WanlabError):
        load_state(path)


def test_a_state_of_another_run_is_refused():
    half = sample(make("dpmpp_2m"), network, start("dpmpp_2m"), stop=4)
    with pytest.raises(WanlabError, match="UniPC"):
        sample(make("unipc"), network, half)
    with pytest.raises(WanlabError, match="step 4"):
        sample(make("dpmpp_2m", num_steps=3), network, half)
    switched = make("unipc").init(half.latents, half.index)  # the way the message offers
    assert sample(make("unipc"), network, switched).index == 6


def test_listing_samplers_and_rules_imports_no_torch():
    code = (
        "import sys, json; from wanlab.registry import SAMPLERS, GUIDANCE; "
        "print(json.dumps([SAMPLERS.names(), GUIDANCE.names(), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rules = ["apg", "cfg", "cfg_interval", "cfg_zero", "dual", "embedded", "nag", "slg"]
    assert json.loads(done.stdout) == [sorted([*NAMES, "causvid"]), rules, False]
