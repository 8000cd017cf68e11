"""The world of wan_tiny: its words, scenes, sentences and pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from wanlab.errors import WanlabError
from wanlab.shapes import captions as world
from wanlab.shapes.captions import Scenes, combinations, read_caption, sample_scenes
from wanlab.shapes.renderer import poses, render
from wanlab.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, ROUND, SHAPES

SPLITS = ("train", "held_out")


def draw(num: int, seed: int, split: world.Split = "train") -> Scenes:
    return sample_scenes(num, torch.Generator().manual_seed(seed), split)


def alone(scenes: Scenes) -> Scenes:
    """The same scenes without the second object."""
    return replace(scenes, second=torch.zeros_like(scenes.second))


def test_splits_share_no_combination_and_cover_every_legal_one() -> None:
    train, held_out = ({tuple(row) for row in combinations(split).tolist()} for split in SPLITS)
    assert not train & held_out
    num_spins_of_round = len(COLOURS) * len(ROUND) * len(BACKGROUNDS)
    legal = len(COLOURS) * len(SHAPES) * len(MOTIONS) * len(BACKGROUNDS) - num_spins_of_round
    assert len(train | held_out) == legal
    assert 0.08 < len(held_out) / legal < 0.12


@pytest.mark.parametrize("split", SPLITS)
def test_every_word_is_in_both_splits(split: world.Split) -> None:
    for column, words in zip(combinations(split).T, (COLOURS, SHAPES, MOTIONS, BACKGROUNDS), strict=True):
        counts = torch.bincount(column, minlength=len(words))
        assert (counts >= 20).all()


@pytest.mark.parametrize("split", SPLITS)
def test_round_shapes_never_spin(split: world.Split) -> None:
    round_index = torch.tensor([SHAPES.index(s) for s in ROUND])
    table = combinations(split)
    spinning = table[table[:, 2] == MOTIONS.index("spins")]
    assert len(spinning)
    assert not torch.isin(spinning[:, 1], round_index).any()


@pytest.mark.parametrize("split", SPLITS)
def test_captions_say_what_the_scenes_hold(split: world.Split) -> None:
    scenes = draw(500, 3, split)
    for i, caption in enumerate(world.captions(scenes)):
        said = read_caption(caption)
        assert said["colour"] == list(COLOURS)[scenes.colour[i]]
        assert said["shape"] == SHAPES[scenes.shape[i]]
        assert said["motion"] == MOTIONS[scenes.motion[i]]
        assert said["background"] == list(BACKGROUNDS)[scenes.background[i]]
        assert ("shape2" in said) == bool(scenes.second[i])
        if scenes.second[i]:
            assert (said["colour2"], said["shape2"]) == (
                list(COLOURS)[scenes.colour2[i]],
                SHAPES[scenes.shape2[i]],
            )


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a cat sleeps on a black background",
        "a red circle moves right",
        "a red circle moves right on a black background and more",
        "a mauve circle moves right on a black background",
        "a red circle moves right on a black background and a small red cat in the top left corner",
    ],
)
def test_other_sentences_are_refused(caption: str) -> None:
    with pytest.raises(WanlabError, match="not a sentence about shapes"):
        read_caption(caption)


def test_second_object_is_in_three_of_ten_scenes_or_more() -> None:
    assert draw(4000, 5).second.float().mean() >= 0.3


def test_a_seed_gives_the_same_scenes_and_frames() -> None:
    first, again, other = draw(6, 8), draw(6, 8), draw(6, 9)
    assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(first))
    assert not torch.equal(first.jitter, other.jitter)
    assert torch.equal(render(first, 9, 48).frames, render(again, 9, 48).frames)


def test_drawing_without_replacement_repeats_no_combination_and_has_an_end() -> None:
    generator = torch.Generator().manual_seed(1)
    num = len(combinations("held_out"))
    scenes = sample_scenes(num, generator, "held_out", replace=False)
    rows = torch.stack([scenes.colour, scenes.shape, scenes.motion, scenes.background], 1)
    assert max(Counter(map(tuple, rows.tolist())).values()) == 1
    with pytest.raises(WanlabError, match="different scenes"):
        sample_scenes(num + 1, generator, "held_out", replace=False)


def test_frames_are_of_one_range_and_their_second_object_is_in_the_corner() -> None:
    scenes = draw(12, 12)
    scenes = replace(scenes, second=torch.ones_like(scenes.second))
    clips = render(scenes, 9, 96)
    assert clips.frames.shape == (12, 3, 9, 96, 96)
    assert clips.frames.dtype == torch.float32
    assert clips.frames.min() >= 0
    assert clips.frames.max() <= 1
    added = clips.coverage - render(alone(scenes), 9, 96).coverage
    assert added[:, :, :26, :26].sum() > 0
    assert added[:, :, 26:].sum() == added[:, :, :, 26:].sum() == 0


def test_boxes_contain_the_object() -> None:
    """All of it but the corners of a turned square or triangle, which reach 13 and 28 % of the radius further."""
    scenes = alone(draw(60, 4))
    clips = render(scenes, 9, 96)
    rows = torch.arange(96)
    left, top, right, bottom = (clips.boxes[..., i, None] for i in range(4))
    inside = ((rows >= top) & (rows < bottom))[..., :, None] & ((rows >= left) & (rows < right))[..., None, :]
    total = clips.coverage.sum((2, 3))
    share = (clips.coverage * inside).sum((2, 3)) / total
    spins = scenes.motion == MOTIONS.index("spins")
    assert (total > 60).all()
    assert (share[~spins] > 0.995).all()
    assert (share[spins] > 0.94).all()
    sides = torch.stack([right - left, bottom - top])
    assert (sides > 0).all()
    assert (inside.sum((2, 3)) < 4 * total).all()


@pytest.mark.parametrize(
    ("motion", "sign_x", "sign_y"),
    [("moves right", 1, 0), ("moves left", -1, 0), ("moves up", 0, -1), ("moves down", 0, 1), ("stays still", 0, 0)],
)
def test_motions_go_where_they_say(motion: str, sign_x: int, sign_y: int) -> None:
    scenes = draw(8, 2)
    pose = poses(replace(scenes, motion=torch.full_like(scenes.motion, MOTIONS.index(motion))), 33)
    for path, sign in ((pose.x, sign_x), (pose.y, sign_y)):
        net = path[:, -1] - path[:, 0]
        assert (net * sign >= 0.9).all() if sign else (net == 0).all()
    assert (pose.angle == 0).all()
    assert (pose.radius[:, :1] == pose.radius).all()
