"""The judge of clips: right on what the renderer draws, also through damage; not fooled by clips that are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wanlab.errors import WanlabError
from wanlab.shapes.captions import Scenes, Split, captions, read_caption, sample_scenes
from wanlab.shapes.judge import Verdict, judge, score, wilson
from wanlab.shapes.renderer import backgrounds, poses, render
from wanlab.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

Array = np.ndarray
THREE = ("colour", "shape", "motion")


def draw(num: int, seed: int, split: Split = "train") -> Scenes:
    return sample_scenes(num, torch.Generator().manual_seed(seed), split)


def filmed(scenes: Scenes) -> Array:
    """(B, 33, 96, 96, 3) uint8."""
    parts = [render(scenes[i : i + 20]).frames for i in range(0, len(scenes), 20)]
    return (torch.cat(parts).permute(0, 2, 3, 4, 1) * 255).round().byte().numpy()


def changed(scenes: Scenes, what: str, step: int = 1) -> Scenes:
    """The same scenes with another word for `what`."""
    num = {"colour": len(COLOURS), "shape": len(SHAPES), "background": len(BACKGROUNDS)}[what]
    return replace(scenes, **{what: (getattr(scenes, what) + step) % num})


def is_right(clip: Array, caption: str) -> bool:
    right = judge(clip).matches(caption)
    return all(right[word] for word in THREE)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """One of every motion, no second object (it is judged elsewhere)."""
    drawn = draw(600, 6)
    rows = torch.cat([(drawn.motion == m).nonzero()[:1, 0] for m in range(len(MOTIONS))])
    return replace(drawn[rows], second=torch.zeros(len(rows), dtype=torch.long))


@pytest.fixture(scope="module")
def clips(scenes: Scenes) -> Array:
    return filmed(scenes)


@pytest.fixture(scope="module")
def empty(scenes: Scenes) -> Array:
    """(B, 1, 96, 96, 3) uint8: the backgrounds alone."""
    return (backgrounds(scenes.background, 96).permute(0, 2, 3, 4, 1) * 255).round().byte().numpy()


def blurred(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    taps = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = F.pad(frames, (3, 3, 3, 3), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1)).view_as(frames)


def bent(frames: torch.Tensor, reach: float, jitter: float, generator: torch.Generator) -> torch.Tensor:
    """Warped by a slowly changing field of `reach` pixels (sd), each frame shifted by `jitter` pixels (sd)."""
    num, _, height, width = frames.shape
    coarse = torch.randn(1, 2, 3, 8, 8, generator=generator) * reach
    field = F.interpolate(coarse, size=(num, height, width), mode="trilinear", align_corners=True)[0]
    field = field.permute(1, 2, 3, 0) + torch.randn(num, 1, 1, 2, generator=generator) * jitter
    ticks = (torch.arange(width) + 0.5) * (2 / width) - 1
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)
    return F.grid_sample(frames, grid + field * (2 / width), padding_mode="border", align_corners=False)


def damaged(clip: Array, seed: int) -> Array:
    """What a VAE and a diffusion model do: bend, jitter, trail, blur, shift the colours, add noise; 24-31 dB."""
    generator = torch.Generator().manual_seed(seed)
    frames = bent(torch.from_numpy(clip).permute(0, 3, 1, 2).float(), 0.8, 0.4, generator)
    around = torch.cat([frames[:1], frames, frames[-1:]])
    frames = blurred(0.7 * frames + 0.15 * (around[:-2] + around[2:]), 0.7)
    frames = frames + (torch.rand(1, 3, 1, 1, generator=generator) * 2 - 1) * 8
    frames = frames + torch.randn(frames.shape, generator=generator) * 4
    return frames.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("split", ["held_out", "train"])
def test_renders_are_judged_right_and_shuffled_prompts_wrong(split: Split) -> None:
    scenes = draw(40, 21, split)
    said = captions(scenes)
    report = score(list(filmed(scenes)), said)
    assert report["all"]["share"] >= 0.97, report["confusions"]
    assert report["background"]["share"] >= 0.97
    assert report["second"]["share"] >= 0.9
    verdicts = [Verdict(**words) for words in report["verdicts"]]
    shuffled = [v.matches(said[(i + 7) % 40]) for i, v in enumerate(verdicts)]
    assert np.mean([all(r[word] for word in THREE) for r in shuffled]) <= 0.25


def test_damage_like_that_of_a_vae_keeps_the_verdict() -> None:
    scenes = draw(30, 22, "held_out")
    originals = filmed(scenes)
    hurt = [damaged(clip, i) for i, clip in enumerate(originals)]
    error = np.mean([np.square(a.astype(float) - b).mean() for a, b in zip(hurt, originals, strict=True)])
    assert 26 < 10 * math.log10(255**2 / error) < 30
    report = score(hurt, captions(scenes))
    assert report["all"]["share"] >= 0.95, report["confusions"]


def vanish(clip: Array, empty: Array, other: Array) -> Array:
    return np.concatenate([clip[:16], np.broadcast_to(empty, (17, *clip.shape[1:]))])


def blink(clip: Array, empty: Array, other: Array) -> Array:
    return np.concatenate([clip[:12], np.broadcast_to(empty, (5, *clip.shape[1:])), clip[17:]])


def change_halfway(clip: Array, empty: Array, other: Array) -> Array:
    return np.concatenate([clip[:16], other[16:]])


def change_gradually(clip: Array, empty: Array, other: Array) -> Array:
    share = np.linspace(0, 1, len(clip))[:, None, None, None]
    return (clip * (1 - share) + other * share).round().astype(np.uint8)


def mix_lines(clip: Array, empty: Array, other: Array) -> Array:
    mixed = clip.copy()
    mixed[:, 1::2] = other[:, 1::2]
    return mixed


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (vanish, "colour"),
        (blink, "colour"),
        (change_halfway, "colour"),
        (change_halfway, "shape"),
        (change_gradually, "colour"),
        (change_gradually, "shape"),
        (mix_lines, "colour"),
    ],
)
def test_objects_that_vanish_or_change_are_wrong(
    tamper: Callable[[Array, Array, Array], Array], what: str, scenes: Scenes, clips: Array, empty: Array
) -> None:
    others = filmed(changed(scenes, what))
    said = captions(scenes)
    rows = range(len(scenes))
    assert not [said[i] for i in rows if is_right(tamper(clips[i], empty[i], others[i]), said[i])]


def sliced(clip: Array, empty: Array, columns: Array, keep_left: bool) -> Array:
    """The object with a slit through its middle, or (not keep_left) without its left half."""
    cut = clip.copy()
    for t, column in enumerate(columns):
        reach = slice(max(0, column - 2), column + 3) if keep_left else slice(0, column)
        cut[t, :, reach] = empty[0][:, reach]
    return cut


@pytest.mark.parametrize("keep_left", [True, False])
def test_split_and_halved_objects_are_wrong(keep_left: bool, scenes: Scenes, clips: Array, empty: Array) -> None:
    middles = ((poses(scenes, 33).x + 1) * 48).int().numpy()
    said = captions(scenes)
    rows = range(len(scenes))
    right = [said[i] for i in rows if is_right(sliced(clips[i], empty[i], middles[i], keep_left), said[i])]
    assert not right


def blob(rng: np.random.Generator) -> Array:
    """(33, 96, 96, 3) uint8: a red blob with an outline of random waves, on black, standing still."""
    ticks = np.arange(96) - 48
    angle, length = np.arctan2(ticks[:, None], ticks[None]), np.hypot(ticks[:, None], ticks[None])
    waves = sum(rng.normal() * 0.15 * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
    mask = (18 * (1 + waves) - length + 0.5).clip(0, 1)
    picture = (mask[..., None] * COLOURS["red"]).astype(np.uint8)
    return np.broadcast_to(picture, (33, 96, 96, 3)).copy()


def test_blobs_have_no_shape() -> None:
    rng = np.random.default_rng(4)
    verdicts = [judge(blob(rng)) for _ in range(16)]
    assert sum(v.shape is not None for v in verdicts) <= 2
    assert all(v.colour == "red" for v in verdicts)


REVERSED = {
    "moves right": "moves left",
    "moves left": "moves right",
    "moves up": "moves down",
    "moves down": "moves up",
    "grows": "shrinks",
    "shrinks": "grows",
}


def test_a_reversed_clip_shows_the_opposite_motion(scenes: Scenes, clips: Array) -> None:
    for clip, caption in zip(clips, captions(scenes), strict=True):
        motion = read_caption(caption)["motion"]
        assert judge(clip[::-1].copy()).motion == REVERSED.get(motion, motion)


def test_a_frozen_clip_stays_still(scenes: Scenes, clips: Array) -> None:
    for clip in clips[::2]:
        assert judge(np.repeat(clip[16:17], 33, axis=0)).motion == "stays still"


def test_frames_in_the_wrong_order_show_no_motion(scenes: Scenes, clips: Array) -> None:
    order = np.random.default_rng(3).permutation(33)
    for clip, caption in zip(clips, captions(scenes), strict=True):
        motion = read_caption(caption)["motion"]
        if motion == "stays still":
            continue
        assert judge(clip[order]).motion is None, caption
        if motion in REVERSED:
            swapped = clip.copy()
            swapped[[3, 29]] = clip[[29, 3]]
            assert judge(swapped).motion is None, caption


def test_a_motion_that_stops_early_is_none(scenes: Scenes, clips: Array) -> None:
    for clip, caption in zip(clips, captions(scenes), strict=True):
        if read_caption(caption)["motion"] != "stays still":
            stopped = np.concatenate([clip[:12], np.repeat(clip[12:13], 21, axis=0)])
            assert not is_right(stopped, caption), caption


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_emptiness_are_nothing(seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (33, 96, 96, 3), dtype=np.uint8)
    verdict = judge(noise)
    assert (verdict.colour, verdict.shape, verdict.motion, verdict.background) == (None,) * 4
    plain = np.full((33, 96, 96, 3), list(BACKGROUNDS.values())[seed][0], np.uint8)
    assert judge(plain) == Verdict(background=list(BACKGROUNDS)[seed])


def test_a_missing_second_object_is_a_mismatch_and_so_is_an_unasked_one() -> None:
    asked = "a red square stays still on a black background and a small blue circle in the top left corner"
    both = Verdict("red", "square", "stays still", "black", "blue", "circle")
    one = replace(both, colour2=None, shape2=None)
    assert all(both.matches(asked).values())
    assert not one.matches(asked)["shape2"]
    assert one.matches(asked)["shape"]
    alone = asked.partition(" and a small")[0]
    assert all(one.matches(alone).values())
    assert not both.matches(alone)["colour2"]


def test_other_sizes_and_lengths_are_judged_too() -> None:
    scenes = draw(6, 31)
    for size, num_frames in ((64, 33), (128, 17)):
        frames = (render(scenes, num_frames, size).frames.permute(0, 2, 3, 4, 1) * 255).round().byte().numpy()
        assert score(list(frames), captions(scenes), per_class=False)["all"]["share"] >= 0.9


def test_score_counts_classes_and_confusions(scenes: Scenes, clips: Array) -> None:
    said = captions(scenes)
    said[0] = said[0].replace(read_caption(said[0])["motion"], "bounces")
    report = score(clips[:4], said[:4])
    assert report["motion"]["num"] == 4
    assert report["motion"]["share"] == 0.75
    assert report["confusions"] == [{"what": "motion", "said": "bounces", "seen": "moves right", "num": 1}]
    assert report["classes"]["motion"]["bounces"]["share"] == 0
    assert report["second"] == {"share": 0.0, "low": 0.0, "high": 1.0, "num": 0}
    assert "classes" not in score(clips[:1], said[:1], per_class=False)
    with pytest.raises(WanlabError, match="captions"):
        score(clips[:2], said[:1])


def test_wilson_interval() -> None:
    low, high = wilson(80, 100)
    assert low == pytest.approx(0.7112, abs=1e-4)
    assert high == pytest.approx(0.8666, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((33, 96, 96, 3), np.float32), np.zeros((33, 96, 96), np.uint8), np.zeros((2, 96, 96, 3), np.uint8), None],
)
def test_other_arrays_are_refused(frames: object) -> None:
    with pytest.raises(WanlabError, match=r"clip to judge|too few"):
        judge(frames)  # type: ignore[arg-type]
