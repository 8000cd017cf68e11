"""Measures of other programs: VMAF and XPSNR through ffmpeg, FLIP and SSIMULACRA2."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_metrics import smooth
from wanlab import metrics
from wanlab.errors import WanlabError
from wanlab.metrics import _ffmpeg
from wanlab.metrics._ffmpeg import run_ffmpeg

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def yuv420p(frames: np.ndarray) -> bytes:
    """BT.709, limited range, by its defining weights; chroma is the mean of 2 x 2 pixels. Even sizes."""
    r, g, b = np.moveaxis(frames.astype(float), -1, 0)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    chroma = [(b - y) / 1.8556, (r - y) / 1.5748]
    planes = [16 + 219 / 255 * y]
    planes += [128 + 224 / 255 * c.reshape(len(c), c.shape[1] // 2, 2, -1, 2).mean((2, 4)) for c in chroma]
    whole = [np.rint(p).clip(0, 255).astype(np.uint8) for p in planes]
    return b"".join(p[t].tobytes() for t in range(len(frames)) for p in whole)


def ask(a: np.ndarray, b: np.ndarray, measure: str, folder: Path) -> str:
    """What ffmpeg prints about clips that were converted here, not by it."""
    size = f"{a.shape[2]}x{a.shape[1]}"
    for name, clip in (("a.yuv", a), ("b.yuv", b)):
        (folder / name).write_bytes(yuv420p(clip))
    form = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", size, "-r", "16", "-i"]
    inputs = [*form, "b.yuv", *form, "a.yuv"]  # the reference is the second
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *inputs, "-lavfi", measure, "-f", "null", "-"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr


def test_vmaf_equals_ffmpeg_on_planes_converted_by_hand(tmp_path: Path) -> None:
    a, b = smooth(96, 128, 4)
    text = ask(a, b, "libvmaf", tmp_path)
    found = re.search(r"VMAF score: (\S+)", text)
    assert found
    assert metrics.vmaf(a, b) == pytest.approx(float(found[1]), abs=0.3)
    assert metrics.vmaf(a, b) == pytest.approx(metrics.vmaf_per_frame(a, b).mean(), abs=1e-9)
    assert metrics.vmaf_per_frame(a, b).shape == (4,)
    flat = np.broadcast_to(a.mean((1, 2), keepdims=True).astype(np.uint8), a.shape)
    assert metrics.vmaf(a, a) > metrics.vmaf(a, b) > 90
    assert metrics.vmaf(a, flat) < 40


def test_xpsnr_equals_ffmpeg_on_planes_converted_by_hand(tmp_path: Path) -> None:
    a, b = smooth(96, 128, 4)
    found = re.search(r"XPSNR +y: (\S+) +u: (\S+) +v: (\S+)", ask(a, b, "xpsnr", tmp_path))
    assert found
    scores = metrics.xpsnr(a, b)
    y, u, v = map(float, found.groups())
    assert scores.y == pytest.approx(y, abs=0.05)
    assert [scores.u, scores.v] == pytest.approx([u, v], abs=1.5)  # a bicubic filter for chroma, here a mean of four
    assert scores.minimum == min(scores.y, scores.u, scores.v)
    assert scores.per_frame.shape == (4, 3)
    assert abs(scores.per_frame[:, 0].mean() - scores.y) < 1
    same = metrics.xpsnr(a, a)
    assert [same.y, same.u, same.v] == [float("inf")] * 3


def test_one_frame_and_odd_sizes_are_measured() -> None:
    a, b = smooth(35, 51)
    assert 0 <= metrics.vmaf(a, b) <= 100
    assert 10 < metrics.xpsnr(a, b).y < 60
    assert metrics.xpsnr(a[:, :5, :5], b[:, :5, :5]).y > 0


def test_vmaf_refuses_what_would_crash_it() -> None:
    a, b = smooth(17, 40, 2)
    assert 0 <= metrics.vmaf(a, b) <= 100
    with pytest.raises(WanlabError, match=r"at least 17 x 17 pixels, got 40 x 16.*xpsnr"):
        metrics.vmaf(a[:, :16], b[:, :16])


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = smooth(32, 48)
    monkeypatch.setattr(_ffmpeg.np, "ascontiguousarray", _no_room)
    with pytest.raises(WanlabError, match=r"9,216 bytes.*No space left.*TMPDIR"):
        metrics.vmaf(a, b)


def _no_room(frames: np.ndarray) -> np.ndarray:
    raise OSError(28, "No space left on device")


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Take a shell script for ffmpeg."""
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(path))


def test_failures_of_ffmpeg_are_named_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = smooth(32, 48, 2)
    with pytest.raises(WanlabError, match=r"exit \d+.*Filter not found"):
        run_ffmpeg(["-f", "lavfi", "-i", "nullsrc=d=1", "-lavfi", "nosuchfilter", "-f", "null", "-"], str(tmp_path), 60)
    program(tmp_path, monkeypatch, "echo first >&2; echo the last line >&2; exit 3")
    with pytest.raises(WanlabError, match=r"failed \(exit 3\); its last line: the last line"):
        metrics.vmaf(a, b)
    program(tmp_path, monkeypatch, "kill -SEGV $$")
    with pytest.raises(WanlabError, match=r"signal 11"):
        metrics.xpsnr(a, b)
    program(tmp_path, monkeypatch, "echo waiting >&2; exec tail -f /dev/null")
    with pytest.raises(WanlabError, match=r"stopped after 1.5 seconds; its last line: waiting"):
        metrics.vmaf(a, b, timeout=1.5)
    program(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(WanlabError, match="wrote no scores"):
        metrics.vmaf(a, b)
    program(tmp_path, monkeypatch, """echo '{"frames": [{"metrics": {"vmaf": 50}}]}' > scores""")
    with pytest.raises(WanlabError, match="1 of 2 frames"):
        metrics.vmaf(a, b)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(tmp_path / "missing"))
    with pytest.raises(WanlabError, match="cannot be run"):
        metrics.vmaf(a, b)


@pytest.mark.parametrize(
    ("module", "measure"),
    [
        ("imageio_ffmpeg", metrics.vmaf),
        ("imageio_ffmpeg", metrics.xpsnr),
        ("flip_evaluator", metrics.flip),
        ("ssimulacra2", metrics.ssimulacra2),
    ],
)
def test_a_missing_package_names_the_extra(
    module: str, measure: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    a, b = smooth(32, 48)
    with pytest.raises(WanlabError, match=r"pip install 'wanlab\[metrics\]'"):
        measure(a, b)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("inf")}])
def test_wrong_options(options: dict[str, float]) -> None:
    a, b = smooth(32, 48)
    with pytest.raises(WanlabError, match="timeout"):
        metrics.vmaf(a, b, **options)
    with pytest.raises(WanlabError, match="fps"):
        metrics.xpsnr(a, b, fps=0)
    with pytest.raises(WanlabError, match="pixels_per_degree"):
        metrics.flip(a, b, pixels_per_degree=0)


def test_flip_equals_its_program_on_picture_files(tmp_path: Path) -> None:
    flip_evaluator = pytest.importorskip("flip_evaluator")
    a, b = smooth(40, 56, 2)
    expected = []
    for i in range(2):
        names = [str(tmp_path / f"{name}{i}.png") for name in "ab"]
        for name, clip in zip(names, (a, b), strict=True):
            Image.fromarray(clip[i]).save(name)
        expected.append(flip_evaluator.evaluate(*names, "LDR")[1])
    assert metrics.flip_per_frame(a, b) == pytest.approx(expected, abs=1e-6)
    assert metrics.flip(a, b) == pytest.approx(np.mean(expected), abs=1e-6)
    assert metrics.flip(a, a) == 0 < metrics.flip(a, b) < metrics.flip(a, 255 - a) <= 1
    assert metrics.flip(a, b, pixels_per_degree=20) != metrics.flip(a, b)


def test_ssimulacra2_equals_its_program_on_picture_files(tmp_path: Path) -> None:
    ssimulacra2 = pytest.importorskip("ssimulacra2")
    a, b = smooth(40, 56, 2)
    expected = []
    for i in range(2):
        names = [str(tmp_path / f"{name}{i}.png") for name in "ab"]
        for name, clip in zip(names, (a, b), strict=True):
            Image.fromarray(clip[i]).save(name)
        expected.append(ssimulacra2.compute_ssimulacra2(*names))
    assert metrics.ssimulacra2_per_frame(a, b) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssimulacra2(a, b) == pytest.approx(np.mean(expected), abs=1e-9)
    assert metrics.ssimulacra2(a, a) == 100 > metrics.ssimulacra2(a, b)
    with pytest.raises(WanlabError, match="at least 8 x 8"):
        metrics.ssimulacra2(a[:, :7], b[:, :7])
