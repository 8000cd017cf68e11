"""Clips that went through a file: how far apart they are, and how much of that the codec alone accounts for."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wanlab import video
from wanlab.errors import WanlabError
from wanlab.files import read_json
from wanlab.metrics._frames import Array, check_pair, frame_distances
from wanlab.metrics._structural import ssim


@dataclass(frozen=True)
class CodecFloor:
    """How far a clip is from its own mp4: a distance between files that is no larger says nothing about the clips."""

    crf: int
    """x264's quality, 0 (best) to 51."""
    psnr: float
    """dB, one error over the clip."""
    psnr_frames: float
    """dB, the mean over frames; an equal frame counts 100."""
    ssim: float


@dataclass(frozen=True)
class FileDistance:
    """How far two files' decoded frames are apart, and the codec's floor."""

    psnr: float
    psnr_frames: float
    ssim: float
    floor: CodecFloor | None
    """Of the first file; None for pictures without loss (PNG)."""

    def __str__(self) -> str:
        text = f"PSNR {self.psnr:.2f} dB over the clip, {self.psnr_frames:.2f} dB frame by frame, SSIM {self.ssim:.4f}"
        if self.floor is None:
            return f"{text}; the files lose nothing"
        return f"{text}; the codec alone at crf {self.floor.crf}: {self.floor.psnr:.2f} dB, SSIM {self.floor.ssim:.4f}"


def codec_floor(frames: Array, crf: int = 18, *, fps: float = 16.0) -> CodecFloor:
    """Distance of a clip to its own mp4, as `wanlab.video.write_video` writes it (H.264, yuv420p).

    Raises WanlabError for a crf outside 0 to 51, for frames smaller than 11 x 11 and of another shape.
    """
    check_pair(frames, frames)
    if isinstance(crf, bool) or not isinstance(crf, int) or not 0 <= crf <= 51:
        raise WanlabError(f"crf = {crf!r}", remedy="Give a whole number from 0 (best) to 51.")
    with tempfile.TemporaryDirectory(prefix="wanlab-") as folder:
        coded, _, _ = video.read_video(video.write_video(Path(folder) / "clip.mp4", frames, fps, crf=crf))
    found = frame_distances(frames, coded)
    return CodecFloor(crf, found.clip_psnr, float(found.finite_psnr.mean()), ssim(frames, coded))


def compare_files(
    reference: str | os.PathLike[str], other: str | os.PathLike[str], *, crf: int | None = None
) -> FileDistance:
    """Compare the decoded frames of two mp4s, or of two PNGs, and state the codec's floor.

    crf is what the files were written with; by default it is read from the reference's spec. The floor is that of the
    reference's decoded frames coded again, which suit the codec better than what was generated: the true floor is
    lower, in dB, and `codec_floor(result.frames)` gives it. Where frames are at hand, compare those.
    Raises WanlabError for files that cannot be read, of other sizes, and where neither tells a crf.
    """
    first, second = Path(reference), Path(other)
    if video.is_png(first) != video.is_png(second):
        raise WanlabError(f"{first.name} and {second.name} are a picture and a video", remedy="Give two of a kind.")
    if video.is_png(first):
        return _distance(video.read_image(first)[0][None], video.read_image(second)[0][None], None)
    frames, fps, comment = video.read_video(first)
    others, _, _ = video.read_video(second)
    check_pair(frames, others)
    crf = _crf(comment, first) if crf is None else crf
    return _distance(frames, others, codec_floor(frames, crf, fps=fps or 16.0))


def _distance(a: Array, b: Array, floor: CodecFloor | None) -> FileDistance:
    found = frame_distances(a, b)
    return FileDistance(found.clip_psnr, float(found.finite_psnr.mean()), ssim(a, b), floor)


def _crf(comment: str, path: Path) -> int:
    """The quality that a file's own spec asked for."""
    from wanlab.spec import GenerationSpec  # here: numbers of frames need no pydantic

    try:
        inside = read_json(comment if comment.startswith("{") else "{}", max_bytes=video.MAX_COMMENT)["wanlab"]
        return GenerationSpec.from_json(inside["spec"]).output.crf
    except (KeyError, TypeError, WanlabError):
        raise WanlabError(
            f"{path.name} does not say which crf it was written with", remedy="Give crf=, such as 18."
        ) from None
