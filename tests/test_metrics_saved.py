"""What a codec costs, and comparing files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import wanlab
from tests.test_metrics import smooth
from tests.tiny import tiny_wan
from wanlab import metrics, video
from wanlab.errors import WanlabError


def test_the_floor_is_the_distance_to_the_clips_own_file(tmp_path: Path) -> None:
    a, _ = smooth(48, 64, 6)
    floor = metrics.codec_floor(a, 23, fps=16)
    coded, _, _ = video.read_video(video.write_video(tmp_path / "a.mp4", a, 16, crf=23))
    assert floor.psnr == metrics.psnr(a, coded)
    assert floor.psnr_frames == metrics.psnr_per_frame(a, coded).mean()
    assert floor.ssim == metrics.ssim(a, coded)
    assert floor.crf == 23
    assert metrics.codec_floor(a, 10).psnr > floor.psnr > metrics.codec_floor(a, 40).psnr


def test_files_are_compared_with_the_floor_stated(tmp_path: Path) -> None:
    a, b = smooth(48, 64, 6)
    first, second = (video.write_video(tmp_path / f"{n}.mp4", c, 16, crf=18) for n, c in (("a", a), ("b", b)))
    found = metrics.compare_files(first, second, crf=18)
    x, y = video.read_video(first)[0], video.read_video(second)[0]
    assert found.psnr == metrics.psnr(x, y)
    assert found.ssim == metrics.ssim(x, y)
    assert found.floor == metrics.codec_floor(x, 18, fps=16)
    assert f"at crf 18: {found.floor.psnr:.2f} dB" in str(found)
    with pytest.raises(WanlabError, match=r"a.mp4 does not say which crf"):
        metrics.compare_files(first, second)
    short = video.write_video(tmp_path / "short.mp4", a[:3], 16)
    with pytest.raises(WanlabError, match="same"):
        metrics.compare_files(first, short, crf=18)


def test_pictures_lose_nothing(tmp_path: Path) -> None:
    a, b = smooth(40, 41)
    first, second = (video.write_image(tmp_path / f"{n}.png", c[0]) for n, c in (("a", a), ("b", b)))
    found = metrics.compare_files(first, second)
    assert found.psnr == metrics.psnr(a, b)
    assert found.floor is None
    assert "lose nothing" in str(found)
    clip = video.write_video(tmp_path / "a.mp4", np.repeat(a, 3, 0), 16)
    with pytest.raises(WanlabError, match="a picture and a video"):
        metrics.compare_files(first, clip)


def test_a_results_file_knows_its_crf(tmp_path: Path) -> None:
    _, definition = tiny_wan(tmp_path / "wan")
    model = wanlab.load(definition, device="cpu")
    spec = model.spec(prompt="a fox", num_steps=1, width=48, height=32, num_frames=5, crf=27)
    path = wanlab.generate(model, spec).save(tmp_path / "fox.mp4")
    found = metrics.compare_files(path, path)
    assert found.psnr == float("inf")
    assert found.floor is not None
    assert found.floor.crf == 27


@pytest.mark.parametrize("crf", [-1, 52, 1.5, True])
def test_a_wrong_crf(crf: float) -> None:
    a, _ = smooth(32, 32, 2)
    with pytest.raises(WanlabError, match=r"0 \(best\) to 51"):
        metrics.codec_floor(a, crf)  # type: ignore[arg-type]
