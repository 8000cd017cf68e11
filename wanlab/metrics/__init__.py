"""Distances between two clips, with no weights to download. Frames are (T, H, W, 3) uint8, as `Result.frames`.

Papers disagree on what "PSNR of a video" is, so both forms are here under their own names; a single image is T = 1.
Importing needs numpy only. Measures of the extra `metrics` (VMAF, XPSNR, FLIP, SSIMULACRA2) say what to install, and
LPIPS reads files that the user names.
"""

from __future__ import annotations

from wanlab.metrics._ffmpeg import Xpsnr, vmaf, vmaf_per_frame, xpsnr
from wanlab.metrics._frames import (
    EQUAL_FRAME,
    Array,
    FrameDistances,
    abs_diff,
    flicker,
    frame_distances,
    max_abs_diff,
    psnr,
    psnr_per_frame,
)
from wanlab.metrics._latents import Drift, DriftCurve, drift, latent_psnr
from wanlab.metrics._lpips import lpips, lpips_per_frame
from wanlab.metrics._perceptual import flip, flip_per_frame, ssimulacra2, ssimulacra2_per_frame
from wanlab.metrics._saved import CodecFloor, FileDistance, codec_floor, compare_files
from wanlab.metrics._structural import ms_ssim, ms_ssim_fits, ssim, ssim_per_frame
from wanlab.metrics._vbench import vbench

__all__ = [
    "EQUAL_FRAME",
    "Array",
    "CodecFloor",
    "Drift",
    "DriftCurve",
    "FileDistance",
    "FrameDistances",
    "Xpsnr",
    "abs_diff",
    "codec_floor",
    "compare_files",
    "drift",
    "flicker",
    "flip",
    "flip_per_frame",
    "frame_distances",
    "latent_psnr",
    "lpips",
    "lpips_per_frame",
    "max_abs_diff",
    "ms_ssim",
    "ms_ssim_fits",
    "psnr",
    "psnr_per_frame",
    "ssim",
    "ssim_per_frame",
    "ssimulacra2",
    "ssimulacra2_per_frame",
    "vbench",
    "vmaf",
    "vmaf_per_frame",
    "xpsnr",
]
