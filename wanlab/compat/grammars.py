"""The little languages in WanGP's settings: frame positions, kept frames, outpainting.

Source: deepbeepmeep/Wan2GP at commit 8681e9f7, wgp.py and shared/utils/utils.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wanlab.errors import WanlabError, shorten

Position = int | Literal["L"]


@dataclass(frozen=True)
class Windows:
    """What places the last frames of windows: all in frames."""

    size: int
    """Of every window."""
    overlap: int = 0
    """Frames that a window shares with the one before."""
    discard: int = 0
    """Frames thrown away at the end of a window."""


def parse_positions(text: str) -> tuple[Position, ...]:
    """`frames_positions`: frames from 1, or `L`, the last one of the next window; spaces or commas between them.

    >>> parse_positions("1 L,49")
    (1, 'L', 49)
    """
    found: list[Position] = []
    for word in text.replace(",", " ").split():
        if word in ("L", "l"):
            found.append("L")
        elif word.isascii() and word.isdigit() and int(word) >= 1:
            found.append(int(word))
        else:
            raise WanlabError(
                f"frames_positions: {shorten(word, 40)} is no frame", remedy="Give frames from 1, or L: 1 L 49."
            )
    return tuple(found)


def format_positions(positions: tuple[Position, ...]) -> str:
    """The text of positions."""
    return " ".join(map(str, positions))


def place(positions: tuple[Position, ...], num_frames: int, windows: Windows | None = None) -> tuple[int, ...]:
    """Frames from 0 of a video of `num_frames` new frames, without a source video before them.

    The first L that reaches the end is the last frame; a later one lies beyond it, as in WanGP. Without windows the
    video is one.
    """
    windows = windows or Windows(num_frames)
    first = min(num_frames, windows.size)
    found, last, num_windows, is_at_end = [], -1, 0, False
    for position in positions:
        if position != "L":
            found.append(position - 1)
            continue
        last += windows.size if num_windows else first
        num_windows += 1
        if last >= num_frames - 1 and not is_at_end:
            last, is_at_end = num_frames - 1, True
        found.append(last)
        last -= windows.discard + windows.overlap
    return tuple(found)


_KEPT = re.compile(r"(-?\d+)(?::(-?\d+))?", re.ASCII)


def kept_frames(text: str, num_frames: int) -> tuple[bool, ...]:
    """`keep_frames_video_guide`: which frames of the control video are used; the others are generated freely.

    Frames from 1, negative ones from the end, `a:b` with both ends in it; nothing at all keeps everything.

    >>> kept_frames("1:2 -1", 5)
    (True, True, False, False, True)
    """
    words = text.split()
    kept = [not words] * num_frames
    for word in words:
        match = _KEPT.fullmatch(word)
        if match is None or word == "0" or max(map(len, match.groups(default=""))) > 9:
            raise WanlabError(
                f"keep_frames_video_guide: {shorten(word, 40)} is no frame",
                remedy="Give frames from 1, negative ones from the end, and ranges: 1:20 -1.",
            )
        first = _absolute(int(match[1]), num_frames)
        last = first if match[2] is None else _absolute(int(match[2]), num_frames)
        kept[first : last + 1] = [True] * (last + 1 - first)
    return tuple(kept)


def _absolute(frame: int, num_frames: int) -> int:
    """From 1 or from the end to from 0, inside the video."""
    return max(0, num_frames + frame) if frame < 0 else min(max(frame - 1, 0), num_frames - 1)


def source_frames(text: str, num_frames: int) -> int:
    """`keep_frames_video_source`: how many frames of the video to continue are used; negative numbers trim its end."""
    if not text.strip():
        return num_frames
    if not re.fullmatch(r"\s*-?\d{1,9}\s*", text, re.ASCII):
        raise WanlabError(
            f"keep_frames_video_source = {shorten(text, 40)} is no number of frames",
            remedy="Give frames to keep, or a negative number to cut from the end.",
        )
    count = int(text)
    return max(0, num_frames + count) if count < 0 else min(count, num_frames)


@dataclass(frozen=True)
class Outpainting:
    """How far a video is extended, in percent of its own height (top, bottom) and width (left, right)."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    ratio: str = ""
    """Aspect ratio to reach by extending one direction, such as `16:9`; the percents then only share out the rest."""

    @classmethod
    def parse(cls, text: str | None, ratio: str = "") -> Outpainting | None:
        """`video_guide_outpainting` and its ratio; None where it is off.

        Four percents, top bottom left right, with spaces between them. Semicolons, which WanGP's help shows, switch it
        off there without a word; here they are an error.
        """
        words = (text or "").strip()
        if words.startswith("#") or text is None or (words in ("", "0 0 0 0") and not ratio):
            return None
        if ratio and not re.fullmatch(r"\d{1,5}:\d{1,5}", ratio):
            raise WanlabError(f"video_guide_outpainting_ratio = {shorten(ratio, 40)}", remedy="Give W:H, such as 16:9.")
        parts = words.split(" ") if words else ["0"] * 4
        if len(parts) != 4 or not all(re.fullmatch(r"-?\d{1,5}", part, re.ASCII) for part in parts):
            raise WanlabError(
                f"video_guide_outpainting = {shorten(words, 40)}",
                remedy="Give four percents with single spaces between them, top bottom left right: 0 0 10 10.",
            )
        return cls(*(max(0, int(part)) for part in parts), ratio)

    @property
    def text(self) -> str:
        """The value of `video_guide_outpainting`."""
        return f"{self.top} {self.bottom} {self.left} {self.right}"

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of the extended picture, before it is fitted to the video's size."""
        if self.ratio:
            wide, high = map(int, self.ratio.split(":"))
            return max(height, round(width * high / wide)), max(width, round(height * wide / high))
        return int(height * (100 + self.top + self.bottom) / 100), int(width * (100 + self.left + self.right) / 100)
