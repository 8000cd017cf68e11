"""LPIPS: files as users have them, with few channels and random numbers; the formula written out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.test_metrics import smooth
from wanlab import metrics
from wanlab.errors import WanlabError

NUMBERS, KERNELS, CHANNELS = (0, 3, 6, 8, 10), (11, 5, 3, 3, 3), (3, 6, 5, 7, 4, 3)
STRIDES, PADDINGS, POOLED = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2)

State = dict[str, torch.Tensor]


def trunk() -> State:
    """AlexNet's convolutions with few channels, and a layer that LPIPS does not use."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.1.weight": torch.zeros(2, 2)}
    for i, number in enumerate(NUMBERS):
        shape = (CHANNELS[i + 1], CHANNELS[i], KERNELS[i], KERNELS[i])
        scale = (CHANNELS[i] * KERNELS[i] ** 2) ** -0.5
        state[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"features.{number}.bias"] = torch.randn(CHANNELS[i + 1], generator=generator) * 0.1
    return state


def heads() -> State:
    generator = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate(CHANNELS[1:])}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    save_file(trunk(), tmp_path / "trunk.safetensors")
    torch.save(heads(), tmp_path / "heads.pth")
    return {"trunk": tmp_path / "trunk.safetensors", "heads": tmp_path / "heads.pth"}


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(C, h, w, size, size)"""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def resized(line: np.ndarray, size: int) -> np.ndarray:
    """(size, len): weights of linear interpolation between the centres of pixels, held at the ends."""
    at = np.clip((np.arange(size) + 0.5) * len(line) / size - 0.5, 0, None)
    low = np.floor(at).astype(int)
    high, weights = np.minimum(low + 1, len(line) - 1), np.zeros((size, len(line)))
    np.add.at(weights, (np.arange(size), low), 1 - (at - low))
    np.add.at(weights, (np.arange(size), high), at - low)
    return weights


def by_hand(a: np.ndarray, b: np.ndarray, spatial: bool) -> float:
    """LPIPS of two (H, W, 3) uint8 in float64: sums of windows, no convolution of a library."""
    layers: list[list[np.ndarray]] = []
    state = {name: tensor.double().numpy() for name, tensor in trunk().items()}
    for frame in (a, b):
        x = np.moveaxis(frame / 255 * 2 - 1, -1, 0)
        x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
        found = []
        for i, number in enumerate(NUMBERS):
            if i in POOLED:
                x = windows(x, 3, 2).max((3, 4))
            x = np.pad(x, ((0, 0), (PADDINGS[i],) * 2, (PADDINGS[i],) * 2))
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            x = np.einsum("chwij,ocij->ohw", windows(x, KERNELS[i], STRIDES[i]), weight) + bias[:, None, None]
            x = np.maximum(x, 0)
            found.append(x / (np.sqrt((x**2).sum(0)) + 1e-10))
        layers.append(found)
    total = 0.0
    for i, (p, q) in enumerate(zip(*layers, strict=True)):
        line = heads()[f"lin{i}.model.1.weight"].double().numpy().reshape(-1)
        found = np.einsum("chw,c->hw", (p - q) ** 2, line)
        if spatial:
            found = resized(found[:, 0], a.shape[0]) @ found @ resized(found[0], a.shape[1]).T
        total += found.mean()
    return total


@pytest.mark.parametrize("spatial", [True, False])
def test_lpips_equals_the_formula_written_out(files: dict[str, Path], spatial: bool) -> None:
    a, b = smooth(47, 66, 2)
    expected = [by_hand(x, y, spatial) for x, y in zip(a, b, strict=True)]
    assert min(expected) > 0.01
    assert metrics.lpips_per_frame(a, b, **files, spatial=spatial) == pytest.approx(expected, rel=1e-4)
    assert metrics.lpips(a, b, **files, spatial=spatial) == pytest.approx(np.mean(expected), rel=1e-4)
    assert metrics.lpips(a, a, **files) == 0
    assert by_hand(a[0], b[0], True) != by_hand(a[0], b[0], False)


def test_both_formats_give_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    a, b = smooth(31, 40)
    torch.save(trunk(), tmp_path / "trunk.pth")
    save_file(heads(), tmp_path / "heads.safetensors")
    other = {"trunk": str(tmp_path / "trunk.pth"), "heads": tmp_path / "heads.safetensors"}
    assert metrics.lpips(a, b, **other) == metrics.lpips(a, b, **files)
    with pytest.raises(WanlabError, match="at least 31 x 31"):
        metrics.lpips(a[:, :30], b[:, :30], **files)


class _Touch:
    """What a hostile pickle holds: it makes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    a, b = smooth(31, 40)
    mark = tmp_path / "ran"
    torch.save({**heads(), "x": _Touch(mark)}, tmp_path / "bad.pth")
    with pytest.raises(WanlabError, match="torch refuses"):
        metrics.lpips(a, b, trunk=files["trunk"], heads=tmp_path / "bad.pth")
    assert not mark.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert mark.exists()  # the file is as hostile as it should be


def test_files_of_something_else_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    a, b = smooth(31, 40)
    with pytest.raises(WanlabError, match=r"has no 'features.0.weight'"):
        metrics.lpips(a, b, trunk=files["heads"], heads=files["heads"])
    with pytest.raises(WanlabError, match=r"has no 'lin0.model.1.weight'.*classifier"):
        metrics.lpips(a, b, trunk=files["trunk"], heads=files["trunk"])
    with pytest.raises(WanlabError, match=r"missing\.safetensors"):
        metrics.lpips(a, b, trunk=tmp_path / "missing.safetensors", heads=files["heads"])
    with pytest.raises(WanlabError, match=r"missing\.pth"):
        metrics.lpips(a, b, trunk=tmp_path / "missing.pth", heads=files["heads"])
    with pytest.raises(WanlabError, match="device 'abacus'"):
        metrics.lpips(a, b, **files, device="abacus")
    wide = heads() | {"lin2.model.1.weight": torch.rand(1, 9, 1, 1)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(WanlabError, match="does not fit"):
        metrics.lpips(a, b, trunk=files["trunk"], heads=tmp_path / "wide.safetensors")
    vgg = trunk() | {"features.0.weight": torch.rand(6, 3, 3, 3)}
    save_file(vgg, tmp_path / "vgg.safetensors")
    with pytest.raises(WanlabError, match=r"is no AlexNet: features.0.weight is \(6, 3, 3, 3\)"):
        metrics.lpips(a, b, trunk=tmp_path / "vgg.safetensors", heads=files["heads"])


def test_vbench_says_that_it_is_not_there() -> None:
    with pytest.raises(WanlabError, match=r"VBench yet.*VBENCH_CACHE_DIR.*HF_HUB_OFFLINE"):
        metrics.vbench("clip.mp4")
