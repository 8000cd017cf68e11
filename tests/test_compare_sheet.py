"""compare(...).sheet: one data frame whose numbers are those of the metrics and of the records."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas
import pytest

import wanlab
from tests.tiny import tiny_wan
from wanlab import metrics
from wanlab.study import compare

SPEC = {"prompt": "a red fox", "num_steps": 2, "width": 48, "height": 32, "num_frames": 5, "seed": 1}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    _, definition = tiny_wan(tmp_path_factory.mktemp("wan"))
    model = wanlab.load(definition, device="cpu")
    first = wanlab.generate(model, **SPEC)
    return [
        first,
        wanlab.generate(model, first.spec, cache={"method": "fixed", "mask": [True, False]}),
        wanlab.generate(model, first.spec, num_frames=9, prompt="<img src=x onerror=alert(1)>"),
    ]


@pytest.fixture(scope="module")
def sheet(clips: list[Any]) -> pandas.DataFrame:
    return wanlab.compare(*clips).sheet


def test_a_row_a_result_with_the_settings_that_differ(clips: list[Any], sheet: pandas.DataFrame) -> None:
    assert isinstance(sheet, pandas.DataFrame)
    assert sheet["label"].tolist() == wanlab.compare(*clips).labels
    assert sheet["cache"].tolist() == ["none", "fixed", "none"]
    assert sheet["size.num_frames"].tolist() == [5, 5, 9]
    assert sheet["text.prompt"].tolist()[2].startswith("<img")
    assert not [name for name in sheet if "seed" in name]
    assert sheet.attrs["reference"] == sheet["label"][0]


def test_distances_are_those_of_the_metrics(clips: list[Any], sheet: pandas.DataFrame) -> None:
    a, b, row = clips[0].frames, clips[1].frames, sheet.iloc[1]
    assert row["psnr_clip_db"] == metrics.psnr(a, b)
    assert row["psnr_frames_db"] == metrics.psnr_per_frame(a, b).mean()
    assert row["ssim"] == metrics.ssim(a, b)
    assert row["vmaf"] == metrics.vmaf(a, b)
    assert row["xpsnr_y_db"] == metrics.xpsnr(a, b, fps=clips[0].fps).y
    assert row["latent_psnr_db"] == metrics.latent_psnr(clips[0].latents, clips[1].latents)
    assert row["max_abs_diff_levels"] == metrics.max_abs_diff(a, b)
    assert sheet["flicker_levels"].tolist() == [metrics.flicker(c.frames) for c in clips]
    distances = ["psnr_clip_db", "psnr_frames_db", "ssim", "ms_ssim", "vmaf", "xpsnr_y_db", "latent_psnr_db"]
    assert sheet.loc[[0, 2], distances].isna().all(axis=None)  # the first itself, and another length
    assert sheet["ms_ssim"].isna().all()
    assert "161 x 161" in sheet.attrs["notes"]["ms_ssim"]
    assert "do not compare" in sheet.attrs["notes"]["psnr_clip_db"]


def test_costs_are_those_of_the_records(clips: list[Any], sheet: pandas.DataFrame) -> None:
    for i, clip in enumerate(clips):
        for stage, seconds in clip.seconds.items():
            assert sheet[f"{stage}_seconds"][i] == seconds
        assert sheet["peak_bytes"][i] == clip.peak_bytes
    cache, row = clips[1].ran["cache"], sheet.iloc[1]
    assert row["skipped_forwards"] == cache["reused"] == 2
    assert row["hit_rate"] == 0.5
    assert row["ideal_speedup"] == cache["ideal_speedup"] == 2
    assert row["realised_speedup"] == clips[0].seconds["denoise"] / clips[1].seconds["denoise"]
    assert row["efficiency"] == row["realised_speedup"] / 2
    assert row["state_bytes"] == cache["state_bytes"] > 0
    assert sheet["realised_speedup"][0] == 1
    assert sheet.loc[[0, 2], ["skipped_forwards", "hit_rate", "ideal_speedup", "state_bytes"]].isna().all(axis=None)
    assert str(sheet["state_bytes"].dtype) == str(sheet["peak_bytes"].dtype) == "Int64"


def test_every_number_has_a_unit_and_a_meaning(sheet: pandas.DataFrame) -> None:
    numbers = [name for name in sheet if sheet[name].dtype != object]
    assert len(numbers) > 18
    assert set(numbers) == set(sheet.attrs["units"]) == set(sheet.attrs["meaning"])


@pytest.mark.parametrize("cache", [{}, {"reused": 2}, {"reused": 0, "computed": 0}, {"ideal_speedup": None}, None])
def test_records_that_say_less_leave_gaps(clips: list[Any], cache: dict[str, Any] | None) -> None:
    """A record of another version or another tool: any key of the cache's report may be missing."""
    first, second = clips[:2]
    record = second.record.with_(resolved={"ran": {} if cache is None else {"cache": cache}}, timings={})
    row = compare(first, wanlab.Result(second.frames, None, second.spec, record, second.fps)).sheet.iloc[1]
    expected = (cache or {}).get("reused")
    assert pandas.isna(row["skipped_forwards"]) if expected is None else row["skipped_forwards"] == expected
    gaps = ["hit_rate", "ideal_speedup", "realised_speedup", "efficiency", "state_bytes", "latent_psnr_db"]
    assert pandas.isna(row[[*gaps, "denoise_seconds", "total_seconds"]]).all()
    assert row["ssim"] > 0


def test_missing_packages_leave_a_gap_that_says_why(clips: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    sheet = compare(*clips[:2]).sheet
    assert sheet[["vmaf", "xpsnr_y_db"]].isna().all(axis=None)
    assert "pip install 'wanlab[metrics]'" in sheet.attrs["notes"]["vmaf"]
    assert "wanlab[metrics]" in sheet._repr_html_()


def test_large_frames_have_ms_ssim(clips: list[Any]) -> None:
    large = [np.kron(c.frames, np.ones((1, 6, 6, 1), np.uint8)) for c in clips[:2]]
    given = [wanlab.Result(f, None, c.spec, c.record, c.fps) for f, c in zip(large, clips, strict=False)]
    sheet = compare(*given).sheet
    assert sheet["ms_ssim"][1] == metrics.ms_ssim(*large)
    assert sheet.attrs["notes"] == {}


def test_it_is_shown_with_dashes_and_escaped(sheet: pandas.DataFrame) -> None:
    page = sheet._repr_html_()
    assert "<td>–</td>" in page
    assert not {"<td>NaN</td>", "<td>None</td>", "<td>&lt;NA&gt;</td>", "<td>nan</td>"} & set(page.split("\n"))
    assert "NaN" not in page
    assert "<img" not in page
    assert "&lt;img" in page
    assert "161 x 161" in page
    assert f"<td>{sheet['peak_bytes'][0]:,}</td>" in page
    assert "–" in sheet[["label", "psnr_clip_db"]]._repr_html_()
    assert "–" in sheet.T._repr_html_()
    assert "–" in pandas.concat([sheet, sheet], axis=1)._repr_html_()  # each name twice


def test_it_is_computed_on_first_use_and_once(clips: list[Any]) -> None:
    comparison = wanlab.compare(*clips[:2])
    assert comparison._repr_html_()
    assert "sheet" not in vars(comparison)
    assert comparison.sheet is comparison.sheet
