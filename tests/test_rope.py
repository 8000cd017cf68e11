"""Wan's rotary tables: bit-equal to diffusers without RIFLEx, one slower temporal frequency with it."""

import math

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from wanlab.errors import WanlabError
from wanlab.models._rope import riflex_length, rope_tables, temporal_frequencies


@pytest.mark.parametrize(
    ("head_dim", "theta"), [(12, 10000.0), (24, 10000.0), (64, 10000.0), (128, 10000.0), (128, 256.0)]
)
@pytest.mark.parametrize("grid", [(1, 2, 3), (3, 4, 6), (21, 5, 7)])
def test_without_riflex_bit_equal_to_diffusers(head_dim, theta, grid):
    theirs = WanRotaryPosEmbed(head_dim, (1, 2, 2), 64, theta)
    t, h, w = grid
    expected = theirs(torch.empty(1, 16, t, 2 * h, 2 * w))
    ours = rope_tables(head_dim, grid, theta=theta)
    for table, other in zip(ours, expected, strict=True):
        assert table.dtype == other.dtype == torch.float32
        assert table.shape == (1, t * h * w, 1, head_dim)
        assert torch.equal(table, other)


def test_riflex_changes_one_temporal_frequency():
    plain, slow = temporal_frequencies(44), temporal_frequencies(44, riflex=57)
    assert plain.dtype == slow.dtype == torch.float64
    changed = [i for i in range(22) if plain[i] != slow[i]]
    assert changed == [5]
    assert float(slow[5]) == 0.9 * 2 * math.pi / 57
    assert plain.tolist() == pytest.approx([10000.0 ** (-2 * i / 44) for i in range(22)], rel=1e-14)
    slower = [n for n in range(20, 80) if temporal_frequencies(44, riflex=n)[5] < plain[5]]
    assert slower == list(range(46, 80)), "in shorter clips that frequency becomes a faster one"


def test_a_clip_fills_nine_tenths_of_the_period():
    grid, head_dim = (33, 2, 3), 128
    cos, sin = rope_tables(head_dim, grid, riflex=33)
    plain_cos, plain_sin = rope_tables(head_dim, grid)
    moved = [d for d in range(head_dim) if not torch.equal(cos[..., d], plain_cos[..., d])]
    assert moved == [10, 11] == [d for d in range(head_dim) if not torch.equal(sin[..., d], plain_sin[..., d])]
    angle = torch.arange(33, dtype=torch.float64) * 0.9 * 2 * math.pi / 33
    frames = cos.view(33, 2, 3, head_dim)[:, 1, 2, 10], sin.view(33, 2, 3, head_dim)[:, 1, 2, 11]
    assert torch.equal(frames[0], angle.cos().float())
    assert torch.equal(frames[1], angle.sin().float())


def test_a_network_without_that_frequency_is_refused():
    with pytest.raises(WanlabError, match="frequency 6, and this model has 2"):
        rope_tables(12, (3, 2, 2), riflex=3)


@pytest.mark.parametrize(
    ("mode", "num_frames", "fps", "expected"),
    [("off", 500, 16, None), ("on", 5, 16, 2), ("auto", 97, 16, None), ("auto", 98, 16, 2), ("auto", 121, 24, None)],
)
def test_auto_is_on_beyond_six_seconds(mode, num_frames, fps, expected):
    assert riflex_length(mode, num_frames, fps, 2) == expected
