"""Distances between frames, against implementations that share no code with them."""

from __future__ import annotations

import subprocess
import sys

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


def smooth(height: int, width: int, num_frames: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Waves that move, and the same with noise: structure at several scales."""
    t, y, x, c = np.ogrid[:num_frames, :height, :width, :3]
    a = 128 + 70 * np.sin(x / 9 + t / 2 + c) + 50 * np.cos(y / 23 - c)
    noise = np.random.default_rng(5).normal(0, 10, a.shape)
    return np.clip(a, 0, 255).astype(np.uint8), np.clip(a + noise, 0, 255).astype(np.uint8)


def script_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The scripts' definition written out: frames in [0, 1] as float32, each window's weighted moments in float64."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    means = []
    for x, y in zip(a, b, strict=True):
        for c in range(3):
            p, q = (np.float64((v[..., c] / np.float32(255)).astype(np.float32)) for v in (x, y))
            u, v = (np.lib.stride_tricks.sliding_window_view(plane, (11, 11)) for plane in (p, q))
            mu, mv = (u * window).sum((2, 3)), (v * window).sum((2, 3))
            su = (u * u * window).sum((2, 3)) - mu**2
            sv = (v * v * window).sum((2, 3)) - mv**2
            suv = (u * v * window).sum((2, 3)) - mu * mv
            luminance = (2 * mu * mv + 0.01**2) / (mu**2 + mv**2 + 0.01**2)
            means.append((luminance * (2 * suv + 0.03**2) / (su + sv + 0.03**2)).mean())
    return float(np.mean(means))


@pytest.mark.parametrize(("height", "width"), [(11, 11), (26, 27), (41, 75), (64, 26), (19, 120)])
def test_ssim_equals_a_two_dimensional_window(height: int, width: int) -> None:
    a, b = smooth(height, width, 2)
    assert metrics.ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-10)
    assert metrics.ssim(a, b) == pytest.approx(script_ssim(a, b), abs=1e-6)
    expected = [reference_ssim(a[i : i + 1], b[i : i + 1]) for i in range(2)]
    assert metrics.ssim_per_frame(a, b) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("level", [0, 128, 254])
def test_ssim_of_flat_frames_is_luminance_alone(level: int) -> None:
    """Differences of large squares: what single precision would lose."""
    a, b = np.full((1, 30, 40, 3), level, np.uint8), np.full((1, 30, 40, 3), level + 1, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * level * (level + 1) + c1) / (level**2 + (level + 1) ** 2 + c1)
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_noise_and_of_what_is_too_small() -> None:
    a, b = clips()
    assert metrics.ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-10)
    assert metrics.ssim(a, b) == pytest.approx(script_ssim(a, b), abs=1e-6)
    assert metrics.ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(WanlabError, match="11 x 11"):
        metrics.ssim(a[:, :8], b[:, :8])


def reference_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """As pytorch-msssim defines it: convolutions of both directions, `avg_pool2d` with its padding, all in torch."""
    x, y = (torch.from_numpy(v).double().permute(0, 3, 1, 2) for v in (a, b))
    taps = torch.exp(-((torch.arange(11).double() - 5) ** 2) / 4.5)
    taps = (taps / taps.sum()).repeat(3, 1)

    def blur(z: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(z, taps[:, None, :, None], groups=3), taps[:, None, None, :], groups=3)

    product = torch.ones(len(a), 3).double()
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        mx, my = blur(x), blur(y)
        cs = (2 * (blur(x * y) - mx * my) + 58.5225) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + 58.5225)
        if scale == 4:
            cs = cs * (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
        product = product * cs.mean((2, 3)).relu() ** weight
        padding = [x.shape[2] % 2, x.shape[3] % 2]
        x, y = F.avg_pool2d(x, 2, padding=padding), F.avg_pool2d(y, 2, padding=padding)
    return float(product.mean())


@pytest.mark.parametrize(("height", "width"), [(161, 176), (190, 163)])
def test_ms_ssim_equals_its_definition(height: int, width: int) -> None:
    a, b = smooth(height, width)
    found = metrics.ms_ssim(a, b)
    assert 0.5 < found < 0.999
    assert found == pytest.approx(reference_ms_ssim(a, b), abs=1e-10)
    assert metrics.ms_ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    assert metrics.ms_ssim(a, 255 - a) == 0  # a negative mean counts 0


def test_ms_ssim_says_the_smallest_size() -> None:
    a, b = smooth(160, 200)
    with pytest.raises(WanlabError, match="at least 161 x 161 pixels, got 200 x 160"):
        metrics.ms_ssim(a, b)
    assert not metrics.ms_ssim_fits(a)


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
    with pytest.raises(WanlabError, match="uint8 arrays, got float"):
        metrics.flicker(ramp / 255)


def test_clips_of_different_shape_are_refused() -> None:
    a, b = clips()
    with pytest.raises(WanlabError, match="same"):
        metrics.psnr(a, b[:2])
    with pytest.raises(WanlabError, match="same"):
        metrics.psnr(a[..., :2], b[..., :2])
    with pytest.raises(WanlabError, match="same"):
        metrics.psnr(a[:0], b[:0])
    with pytest.raises(WanlabError, match="uint8 arrays, got float64"):
        metrics.ssim(a / 255, b)
    with pytest.raises(WanlabError, match=r"uint8 arrays, got torch\.uint8"):
        metrics.psnr(torch.from_numpy(a), b)


def test_every_name_is_there_and_torch_is_not_imported() -> None:
    code = (
        "import sys, wanlab.metrics as m; assert not {'torch', 'av', 'pandas', 'imageio_ffmpeg'} & set(sys.modules); "
        "assert all(hasattr(m, name) for name in m.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
