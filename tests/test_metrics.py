"""metrics.py against implementations that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wanlab import metrics
from wanlab.errors import WanlabError


def clips(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (3, 24, 36, 3), dtype=np.uint8)
    return a, np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One 2-D convolution with the full 11 x 11 window, in torch."""
    x, y = (torch.from_numpy(v).double().permute(0, 3, 1, 2).reshape(-1, 1, *v.shape[1:3]) for v in (a, b))
    r = torch.arange(11).double() - 5
    kernel = torch.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / (2 * 1.5**2))
    kernel = (kernel / kernel.sum())[None, None]
    mx, my = F.conv2d(x, kernel), F.conv2d(y, kernel)
    sxx, syy, sxy = F.conv2d(x * x, kernel) - mx**2, F.conv2d(y * y, kernel) - my**2, F.conv2d(x * y, kernel) - mx * my
    c1, c2 = 6.5025, 58.5225
    return float((((2 * mx * my + c1) * (2 * sxy + c2)) / ((mx**2 + my**2 + c1) * (sxx + syy + c2))).mean())


def test_ssim_equals_a_two_dimensional_window() -> None:
    a, b = clips()
    assert metrics.ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-10)
    assert metrics.ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(WanlabError, match="11 x 11"):
        metrics.ssim(a[:, :8], b[:, :8])


def test_psnr_per_clip_and_per_frame_differ_as_defined() -> None:
    a, b = clips()
    b[0] = a[0]
    mse = [float(((a[i].astype(float) - b[i].astype(float)) ** 2).mean()) for i in range(3)]
    assert metrics.psnr(a, b) == pytest.approx(10 * np.log10(255**2 / np.mean(mse)), rel=1e-5)
    expected = [100.0] + [10 * np.log10(255**2 / m) for m in mse[1:]]
    assert metrics.psnr_per_frame(a, b) == pytest.approx(expected, rel=1e-5)
    assert metrics.psnr(a, a) == float("inf")


def test_max_abs_diff_and_flicker() -> None:
    a, _ = clips()
    b = a.copy()
    b[1, 2, 3, 0] = 255 - a[1, 2, 3, 0]
    assert metrics.max_abs_diff(a, b) == abs(int(b[1, 2, 3, 0]) - int(a[1, 2, 3, 0]))
    still = np.repeat(a[:1], 4, axis=0)
    assert metrics.flicker(still) == 0 == metrics.flicker(a[:1])
    ramp = np.stack([np.full((8, 8, 3), 3 * i, np.uint8) for i in range(5)])
    assert metrics.flicker(ramp) == 3


def test_clips_of_different_shape_are_refused() -> None:
    a, b = clips()
    with pytest.raises(WanlabError, match="same"):
        metrics.psnr(a, b[:2])
