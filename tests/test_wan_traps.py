"""Where diffusers is silently wrong about Wan, wanlab is right or says no."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import wanlab
from tests.tiny_video import film, frames_of, picture, tiny_i2v, tiny_vace
from wanlab.models._wan_blocks import per_token, run_block
from wanlab.sites import Branch, StepContext


@pytest.fixture(scope="module")
def i2v(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_i2v(tmp_path_factory.mktemp("i2v"), "2.1")[1], device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("num_text", [7, 64, 512])
def test_image_tokens_are_told_from_text_of_any_length(i2v: Any, num_text: int) -> None:
    """diffusers takes all but the last 512 tokens for the picture's, so shorter text is read as if it were picture."""
    stack = i2v.stacks["transformer"]
    attention = stack[0].module.attn2
    draw = torch.Generator().manual_seed(0)
    x, image, text = (torch.randn(1, n, 24, generator=draw) for n in (6, 5, num_text))

    def attend(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(2, (2, 12)).transpose(1, 2) for t in (attention.norm_q(attention.to_q(x)), k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    seen = attend(attention.norm_k(attention.to_k(text)), attention.to_v(text))
    seen = seen + attend(attention.norm_added_k(attention.add_k_proj(image)), attention.add_v_proj(image))
    stack.layout.image = 5
    assert torch.allclose(attention(x, torch.cat([image, text], 1)), attention.to_out[0](seen), atol=1e-6)


def test_any_text_length_runs_and_the_picture_matters_at_each(i2v: Any) -> None:
    base = i2v.spec(prompt="a red fox", num_steps=2, image=picture(1))
    for length in (16, 512):
        one = wanlab.generate(i2v, base, max_text_tokens=length).latents
        other = wanlab.generate(i2v, base, max_text_tokens=length, image=picture(2)).latents
        assert float((one - other).norm() / one.norm()) >= 1e-2


def test_a_last_image_that_would_be_ignored_is_refused(i2v: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """diffusers' 5B pipeline takes a last_image and does nothing with it; plain 2.1 was never trained on one."""
    ti2v = wanlab.load(tiny_i2v(tmp_path_factory.mktemp("5b"), "5b")[1], device="cpu")
    for model in (i2v, ti2v):
        with pytest.raises(wanlab.WanlabError, match="takes no last_image"):
            wanlab.generate(model, image=picture(1), last_image=picture(2))


def test_a_guide_of_another_size_lies_where_the_video_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    """diffusers encodes a smaller guide as it is and pads its tokens at the end, so that rows slip."""
    model = wanlab.load(tiny_vace(tmp_path_factory.mktemp("vace"))[1], device="cpu")
    small = frames_of(film(1, width=24, height=16))
    fitted = wanlab.media.fit(small, 32, 48)
    spec = model.spec(num_steps=2)
    found, expected = (wanlab.encode_conditions(model, spec.with_(video=video)).control[0] for video in (small, fitted))
    assert found.shape == (1, 96, 3, 4, 6)
    assert torch.equal(found, expected)
    other = wanlab.encode_conditions(model, spec.with_(video=frames_of(film(2)))).control[0]
    assert not torch.allclose(found, other, atol=0.1)


def test_bfloat16_keeps_rope_and_time_in_float32(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`pipe.to(torch.bfloat16)` rounds the tables of rotary positions; loading in bfloat16 does not."""
    definition = tiny_i2v(tmp_path_factory.mktemp("bf16"), "2.1")[1]
    network = wanlab.load(definition, device="cpu", dtype="bfloat16").parts["transformer"].module
    assert network.rope.freqs_cos.dtype == torch.float32
    assert network.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert network.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    reference = wanlab.load(definition, device="cpu").parts["transformer"].module
    assert torch.equal(network.rope.freqs_cos, reference.rope.freqs_cos)


def test_media_in_another_shape_come_to_the_video(i2v: Any) -> None:
    wide = np.asarray(picture(1, 96, 32))
    seen = {
        how: wanlab.encode_conditions(i2v, i2v.spec(image=wide, fit=how)).channels for how in ("crop", "pad", "stretch")
    }
    assert len({tuple(x.shape) for x in seen.values()}) == 1
    assert not torch.equal(seen["crop"], seen["pad"])
    assert not torch.equal(seen["crop"], seen["stretch"])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modulation_by_frames_is_bit_equal_to_modulation_by_tokens(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype
) -> None:
    """diffusers repeats TI2V's modulation for every token; here it stays one for each latent frame."""
    word = str(dtype).removeprefix("torch.")
    definition = tiny_i2v(tmp_path_factory.mktemp("frames"), "5b")[1]
    model = wanlab.load(definition, device="cpu", dtype=word)
    spec = model.spec(image=picture(1, 64, 32), dtype=word)
    text, conditions = wanlab.encode_text(model, spec)["prompt"], wanlab.encode_conditions(model, spec)
    ctx = StepContext(0, 4, 0.9, timestep=900.0)
    streams = model.embed(model.place(model.initial_noise(spec), ctx, conditions), ctx, Branch("c", text, conditions))
    block, modulation = model.stacks["transformer"][0].module, streams.modulation["blocks"]
    assert modulation.shape[1:] == (3, 6, 24)
    video, rope = streams.tokens["video"], streams.rope
    expected = block(video, streams.tokens["text"], per_token(modulation, video), rope)
    assert torch.equal(run_block(block, streams).tokens["video"], expected)
    assert not torch.equal(modulation[:, 0], modulation[:, 1])
