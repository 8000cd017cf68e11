"""compare: the right numbers, labels that say what differs, and a display that is small and safe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import wanlab
from tests.tiny import tiny_wan
from wanlab import metrics
from wanlab.study.side_by_side import composite

SPEC = {"prompt": "a red fox", "num_steps": 2, "width": 48, "height": 32, "num_frames": 5, "seed": 1}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    _, definition = tiny_wan(tmp_path_factory.mktemp("wan"))
    model = wanlab.load(definition, device="cpu")
    first = wanlab.generate(model, **SPEC)
    return [
        first,
        wanlab.generate(model, first.spec, guidance_scale=2.0),
        wanlab.generate(model, first.spec, cache={"method": "fixed", "mask": [True, False]}),
        wanlab.generate(model, first.spec),
        wanlab.generate(model, first.spec, num_frames=9, prompt="<img src=x onerror=alert(1)>"),
    ]


def test_rows_measure_against_the_first(clips: list[Any]) -> None:
    first, second = wanlab.compare(*clips[:2]).rows
    assert first["psnr"] is None
    assert second["psnr"] == metrics.psnr(clips[0].frames, clips[1].frames)
    assert second["psnr_frames"] == metrics.psnr_per_frame(clips[0].frames, clips[1].frames).mean()
    assert second["ssim"] == metrics.ssim(clips[0].frames, clips[1].frames)
    assert second["max_abs_diff"] > 0
    assert second["seconds"] == clips[1].seconds["total"]


def test_labels_are_the_settings_that_differ(clips: list[Any]) -> None:
    assert wanlab.compare(*clips[:2]).labels == ["guidance.guidance_scale=5.0", "guidance.guidance_scale=2.0"]
    labels = wanlab.compare(*clips[:3]).labels
    assert labels[0] != labels[2]
    assert "fixed" in labels[2]
    assert wanlab.compare(clips[0], clips[3]).labels == ["same spec", "same spec"]


def test_skipped_forwards_and_equal_clips(clips: list[Any]) -> None:
    rows = wanlab.compare(clips[0], clips[2], clips[3]).rows
    assert rows[1]["skipped_forwards"] == 2  # one step of two branches
    assert rows[2]["psnr"] == float("inf")
    assert "equal" in wanlab.compare(clips[0], clips[3])._repr_html_()


def test_display_is_small_static_and_escaped(clips: list[Any]) -> None:
    comparison = wanlab.compare(*clips)
    page = comparison._repr_html_()
    assert "<img" not in page
    assert "onerror=alert(1)&gt;" in page
    assert "<script" not in page
    assert page.count("<video") == 1
    assert page.count("<tr>") == 6
    assert len(page) < 200_000
    assert len(repr(comparison)) < 600


def test_composite_keeps_pixels_and_holds_the_last_frame(clips: list[Any]) -> None:
    frames = composite([c.frames for c in clips], [f"clip {i}" for i in range(5)])
    assert len(frames) == 9
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    assert np.array_equal(frames[0, 18:50, :48], clips[0].frames[0])
    assert np.array_equal(frames[8, 18:50, :48], clips[0].frames[4])
    assert np.array_equal(frames[3, 18:50, 52:100], clips[1].frames[3])
    assert not np.array_equal(frames[0, :18, :48], frames[0, :18, 52:100])  # the labels are drawn


def test_other_sizes_have_no_distance(clips: list[Any]) -> None:
    row = wanlab.compare(clips[0], clips[4]).rows[1]
    assert row["psnr"] is None
    assert row["flicker"] > 0


def test_wrong_arguments(clips: list[Any]) -> None:
    with pytest.raises(wanlab.WanlabError, match="two results"):
        wanlab.compare(clips[0])
    with pytest.raises(wanlab.WanlabError, match="two results"):
        wanlab.compare(clips[0], "x.mp4")
