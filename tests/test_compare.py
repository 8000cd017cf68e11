"""compare: the right numbers, labels that say what differs, and a display that is small and safe."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

import wanlab
from tests.tiny import tiny_wan
from wanlab import metrics
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.study._plan import plan_strips
from wanlab.study.side_by_side import _wrap, composite

SPEC = {"prompt": "a red fox", "num_steps": 2, "width": 48, "height": 32, "num_frames": 5, "seed": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    _, definition = tiny_wan(tmp_path_factory.mktemp("wan"))
    return wanlab.load(definition, device="cpu")


@pytest.fixture(scope="module")
def clips(model: Model) -> list[Any]:
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
    assert wanlab.compare(*clips[:2]).labels == ["guidance_scale 5.0", "guidance_scale 2.0"]
    assert wanlab.compare(clips[0], clips[2]).labels == ["cache none", "cache fixed, mask 10"]
    assert wanlab.compare(*clips[:3]).labels == [
        "cache none, guidance_scale 5.0",
        "cache none, guidance_scale 2.0",
        "cache fixed, mask 10, guidance_scale 5.0",
    ]
    assert wanlab.compare(clips[0], clips[3]).labels == ["same spec", "same spec"]


def test_skipped_forwards_and_equal_clips(clips: list[Any]) -> None:
    rows = wanlab.compare(clips[0], clips[2], clips[3]).rows
    assert rows[1]["skipped_forwards"] == 2  # one step of two branches
    assert rows[2]["psnr"] == float("inf")
    assert "equal" in wanlab.compare(clips[0], clips[3])._repr_html_()


@pytest.mark.parametrize("report", [{}, {"computed": 2}])
def test_a_report_that_is_silent(model: Model, clips: list[Any], report: dict[str, Any]) -> None:
    ran = {**clips[2].record.resolved, "ran": {"cache": report}}
    silent = wanlab.Result(clips[2].frames, None, clips[2].spec, clips[2].record.with_(resolved=ran))
    assert silent.skipped_forwards is None
    with_reused = {**ran, "ran": {"cache": {**report, "reused": 3}}}
    assert replace(silent, record=silent.record.with_(resolved=with_reused)).skipped_forwards == 3
    with pytest.raises(WanlabError, match="does not say in which steps"):
        plan_strips(silent, model)


def test_a_run_of_before_the_shares(model: Model, clips: list[Any], tmp_path: Path) -> None:
    """What schema 1 wrote of a cache when there was one, `fixed`: it opens, shows, compares, and its plan is drawn."""
    report = {
        "hit_map": {f"transformer/{name}/-1": {"0": True, "1": False} for name in ("cond", "uncond")},
        "computed": 2,
        "reused": 2,
        "state_bytes": 1024,
        "ideal_speedup": 2.0,
    }
    folder = clips[2].save(tmp_path / "old")
    record = json.loads((folder / "run.json").read_text())
    for spec in (record["spec"], record["resolved"]["spec"]):
        spec["cache"] = {"method": "fixed", "options": {"mask": [True, False]}}
    record["resolved"]["ran"]["cache"] = report
    (folder / "run.json").write_text(json.dumps(record))
    old = wanlab.open_result(folder)
    assert old.skipped_forwards == 2
    assert old.ran["cache"] == report
    for page in (old.show(embed=True).page, wanlab.compare(clips[0], old)._repr_html_()):
        assert "fixed" in page
    row = wanlab.compare(clips[0], old).sheet.iloc[1]
    assert tuple(row[["skipped_forwards", "hit_rate", "ideal_speedup", "state_bytes"]]) == (2, 0.5, 2.0, 1024)
    strips = plan_strips(old, model)
    assert {name: shares.tolist() for name, shares in strips.shares.items()} == {"cond": [1, 0], "uncond": [1, 0]}
    assert strips.signals == {}


def test_display_is_small_static_and_escaped(clips: list[Any]) -> None:
    comparison = wanlab.compare(*clips)
    page = comparison._repr_html_()
    assert "<img" not in page
    assert "onerror=alert(1)&gt;" in page.replace("<wbr>", "")
    assert "<script" not in page
    assert page.count("<video") == 1
    assert page.count("</th>", 0, page.index("<tbody>")) == 5 + 1  # a column a result, one for what is measured
    assert "color:" not in page  # black on white and white on black are the theme's to choose
    assert len(page) < 300_000
    assert len(repr(comparison)) < 600


def test_table_has_units_and_no_line_without_a_value(clips: list[Any]) -> None:
    page = wanlab.compare(*clips[:2])._repr_html_()
    assert re.search(r"<td>\d+\.\d dB</td>", page)
    assert re.search(r"<td>\d+ of 255</td>", page)
    assert "skipped forwards" not in page
    assert "skipped forwards" in wanlab.compare(clips[0], clips[2])._repr_html_()
    assert "PSNR" not in wanlab.compare(clips[0], clips[4])._repr_html_()  # sizes differ


def test_composite_enlarges_pixels_and_holds_the_last_frame(clips: list[Any]) -> None:
    frames = composite([c.frames for c in clips], [f"clip {i}" for i in range(5)])
    assert len(frames) == 9
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    times, top = 6, 23  # 48x32 pixels as 288x192, below one line of text
    width, height = 48 * times, 32 * times
    assert frames.shape[1:3] == (2 * (top + height) + 4, 4 * width + 3 * 4)
    assert np.array_equal(frames[0, top : top + height : times, :width:times], clips[0].frames[0])
    assert np.array_equal(frames[8, top + 5 : top + height : times, 5:width:times], clips[0].frames[4])
    assert np.array_equal(frames[3, top : top + height : times, width + 4 : 2 * width + 4 : times], clips[1].frames[3])
    assert not np.array_equal(frames[0, :top, :width], frames[0, :top, width + 4 : 2 * width + 4])  # labels are drawn


def test_large_clips_are_not_enlarged() -> None:
    clip = np.zeros((1, 100, 200, 3), np.uint8)
    assert composite([clip, clip], ["a", "b"]).shape == (1, 124, 404, 3)


def test_long_labels_wrap_and_end_in_an_ellipsis() -> None:
    clip = np.zeros((1, 96, 96, 3), np.uint8)
    short, long = (composite([clip], [text]).shape[1] for text in ("a", "word " * 12))
    assert short < long
    assert composite([clip], ["word " * 500]).shape[1] == composite([clip], ["x" * 5000]).shape[1] == 3 * 19 + 4 + 289
    font = ImageFont.load_default(15)
    lines = _wrap("num_steps 20, sampler unipc, cache fixed, mask 10101010 " * 4, 280, font)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 280 for line in lines)
    assert lines[2].endswith("…")
    assert _wrap("guidance_scale 1.0", 280, font) == ["guidance_scale 1.0"]


def test_other_sizes_have_no_distance(clips: list[Any]) -> None:
    row = wanlab.compare(clips[0], clips[4]).rows[1]
    assert row["psnr"] is None
    assert row["flicker"] > 0


def test_wrong_arguments(clips: list[Any]) -> None:
    with pytest.raises(wanlab.WanlabError, match="two results"):
        wanlab.compare(clips[0])
    with pytest.raises(wanlab.WanlabError, match="two results"):
        wanlab.compare(clips[0], "x.mp4")


def test_labels_can_be_given(clips: list[Any]) -> None:
    """Where specs do not tell what differs, as after an edit."""
    found = wanlab.compare(clips[0], clips[3], labels=["as it is", "edited"])
    assert found.labels == ["as it is", "edited"]
    assert "edited" in found._repr_html_()
    assert found.sheet["label"].tolist() == ["as it is", "edited"]
    for wrong in (["one"], "ab", ["a", ""]):
        with pytest.raises(wanlab.WanlabError, match="for 2 results"):
            wanlab.compare(clips[0], clips[3], labels=wrong)
