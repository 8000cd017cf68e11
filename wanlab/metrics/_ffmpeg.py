"""VMAF and XPSNR by the ffmpeg that the package imageio-ffmpeg carries (9.0.2 in version 0.8.1).

Frames reach it as raw RGB in temporary files (3 bytes a pixel, both clips) and become 8-bit yuv420p, BT.709, limited
range, rounded accurately: the form `wanlab.video.write_video` encodes, without the codec. Both measures look mostly or
only at the luma.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wanlab.errors import WanlabError
from wanlab.metrics._extra import extra
from wanlab.metrics._frames import Array, check_pair

TIMEOUT = 600.0
"""Seconds that one call of ffmpeg may take unless told otherwise."""
SMALLEST_VMAF = 17
"""Pixels of a side. With 16 or fewer ffmpeg 9.0.2 crashes; from 17 to 33, and beside 64, every size was tried."""
_MODEL = "vmaf_v0.6.1"
_TO_YUV = "scale=out_color_matrix=bt709:out_range=limited:flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"
_XPSNR_LINE = re.compile(r"^n: *\d+ +XPSNR y: *(\S+) +XPSNR u: *(\S+) +XPSNR v: *(\S+)")
_XPSNR_MEAN = re.compile(r"^XPSNR average, \d+ frames +y: *(\S+) +u: *(\S+) +v: *(\S+)")


@dataclass(frozen=True, eq=False)
class Xpsnr:
    """Extended perceptually weighted PSNR, dB; inf for equal planes."""

    y: float
    u: float
    v: float
    per_frame: Array
    """(T, 3): y, u, v of each frame. The clip's values are ffmpeg's own averages, not the means of these."""

    @property
    def minimum(self) -> float:
        """The smallest of the three planes, ffmpeg's one number for a clip."""
        return min(self.y, self.u, self.v)


def vmaf(reference: Array, other: Array, *, timeout: float = TIMEOUT) -> float:
    """VMAF of a clip, 0 to 100: the mean over frames. An equal clip scores nearly 100, not always 100.

    Model vmaf_v0.6.1, built into the binary and made for 1080p seen from three picture heights: frames are not scaled,
    so that the scores of smaller ones compare with each other only. 80 frames of 832 x 480 take about a second.
    Raises WanlabError for a side under 17 pixels, a missing package, a failing ffmpeg and after `timeout` seconds.
    """
    return float(vmaf_per_frame(reference, other, timeout=timeout).mean())


def vmaf_per_frame(reference: Array, other: Array, *, timeout: float = TIMEOUT) -> Array:
    """VMAF of each frame, (T,) float64; motion makes it depend on the frames around. Raises as `vmaf`."""
    check_pair(reference, other)
    height, width = reference.shape[1:3]
    if min(height, width) < SMALLEST_VMAF:
        raise WanlabError(
            f"VMAF needs frames of at least {SMALLEST_VMAF} x {SMALLEST_VMAF} pixels, got {width} x {height}",
            remedy="Use xpsnr, ssim or psnr for small frames.",
        )
    form = f"libvmaf=model=version={_MODEL}:log_fmt=json:log_path=scores:n_threads={os.cpu_count() or 1}"
    frames = json.loads(_compare(reference, other, form, 25.0, timeout))["frames"]
    return _complete(np.array([frame["metrics"]["vmaf"] for frame in frames]), reference, "VMAF")


def xpsnr(reference: Array, other: Array, *, fps: float = 16.0, timeout: float = TIMEOUT) -> Xpsnr:
    """XPSNR of a clip: PSNR whose errors weigh less where the reference is busy or moves.

    fps: frames per second; the filter looks at motion over two frames from 32 upward. Raises WanlabError for a
    missing package, a failing ffmpeg and after `timeout` seconds. Source: Helmrich et al. 2020, ffmpeg's filter xpsnr.
    """
    check_pair(reference, other)
    if not 0 < fps <= 1000:
        raise WanlabError(f"fps = {fps!r}", remedy="Give frames per second between 0 and 1000.")
    lines = _compare(reference, other, "xpsnr=stats_file=scores", fps, timeout).splitlines()
    planes = np.array([_decibels(found) for line in lines if (found := _XPSNR_LINE.match(line))])
    mean = [_decibels(found) for line in lines if (found := _XPSNR_MEAN.match(line))]
    if len(mean) != 1:
        raise WanlabError("ffmpeg's filter xpsnr gave no average", remedy="pip install --upgrade imageio-ffmpeg")
    return Xpsnr(*mean[0], _complete(planes, reference, "XPSNR"))


def _decibels(found: re.Match[str]) -> list[float]:
    return [float(value) for value in found.groups()]


def _complete(scores: Array, frames: Array, name: str) -> Array:
    if len(scores) != len(frames) or np.isnan(scores).any():
        raise WanlabError(
            f"ffmpeg scored {len(scores)} of {len(frames)} frames for {name}, or gave no number",
            remedy="pip install --upgrade imageio-ffmpeg",
        )
    return scores


def _compare(reference: Array, other: Array, measure: str, fps: float, timeout: float) -> str:
    """What the filter `measure` writes to its file "scores" about the distorted clip and its reference."""
    height, width = reference.shape[1:3]
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i"]
    graph = f"[0:v]{_TO_YUV}[other];[1:v]{_TO_YUV}[reference];[other][reference]{measure}"
    with tempfile.TemporaryDirectory(prefix="wanlab-") as folder:
        try:
            for name, frames in (("other", other), ("reference", reference)):
                np.ascontiguousarray(frames).tofile(Path(folder) / name)
        except OSError as error:
            raise WanlabError(
                f"No room for {2 * reference.nbytes:,} bytes of frames in {folder} ({error})",
                remedy="Free some, or name another folder in TMPDIR.",
            ) from None
        run_ffmpeg([*form, "other", *form, "reference", "-lavfi", graph, "-f", "null", "-"], folder, timeout)
        try:
            return (Path(folder) / "scores").read_text()
        except OSError as error:
            raise WanlabError(f"ffmpeg ended well but wrote no scores ({error.strerror})") from error


def run_ffmpeg(arguments: list[str], folder: str, timeout: float) -> None:
    """Run the package's ffmpeg in a folder. Raises WanlabError with its last line where it fails or takes too long."""
    if not (timeout > 0 and math.isfinite(timeout)):
        raise WanlabError(f"timeout = {timeout!r}", remedy="Give seconds, such as 600.")
    package = extra("imageio_ffmpeg", "ffmpeg (VMAF, XPSNR)")
    try:
        command = [package.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *arguments]
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WanlabError(
            f"ffmpeg was stopped after {timeout:g} seconds; its last line: {_last_line(error.stderr)}",
            remedy="Give a larger timeout, or fewer frames.",
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: the package found no binary
        raise WanlabError(f"ffmpeg cannot be run: {error}", remedy="pip install 'wanlab[metrics]'") from None
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        raise WanlabError(
            f"ffmpeg failed ({how}); its last line: {_last_line(done.stderr)}",
            remedy="The environment variable IMAGEIO_FFMPEG_EXE, if set, names the binary; it needs libvmaf and xpsnr.",
        )


def _last_line(output: bytes | None) -> str:
    lines = (output or b"").decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(none)")
