"""What a clip of moving shapes shows, read from its pixels alone: the measure of how well prompts are followed.

Classical vision: background by its edge, objects by their contrast, shapes by polar maps, motions by the path.
A clip whose object is missing, in pieces, a blob, or changes on the way gets None for what cannot be said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wanlab.errors import WanlabError
from wanlab.shapes._objects import MIN_CONTRAST, Objects, dilate, erode, find_background, find_objects, holds_throughout
from wanlab.shapes._outlines import centroids, name_shape, polar_maps, turning
from wanlab.shapes._paths import Track, name_motion
from wanlab.shapes.captions import read_caption
from wanlab.shapes.vocabulary import COLOURS

Array = np.ndarray

_WORDS = ("colour", "shape", "motion", "background", "colour2", "shape2")
_SCORED = ("colour", "shape", "motion")
_MAX_COLOUR_DISTANCE = 72.0
"""RGB distance, 0-441; the palette's nearest two, orange and yellow, are 95 apart."""
_MIN_PRESENCE = 0.9
_MIN_FRAMES = 8


@dataclass(frozen=True)
class Verdict:
    """Words of `wanlab.shapes.vocabulary`; None where the clip shows nothing that has one."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None
    colour2: str | None = None
    shape2: str | None = None

    def matches(self, caption: str) -> dict[str, bool]:
        """Which words of a caption the clip shows; a second object that was not asked for is a mismatch.

        Raises WanlabError for a caption outside the language.
        """
        said = read_caption(caption)
        return {word: getattr(self, word) == said.get(word) for word in _WORDS}


def _name_colours(pixels: Array) -> Array:
    """(...,) index of the nearest colour of the palette, -1 where none is near."""
    distance = np.sqrt(np.square(pixels[..., None, :] - np.array(list(COLOURS.values()), np.float32)).sum(-1))
    return np.where(distance.min(-1) <= _MAX_COLOUR_DISTANCE, distance.argmin(-1), -1)


def _name_colour(frames: Array, cores: Array) -> str | None:
    """The one colour of the objects' inner pixels, in nearly every frame; cores: (T, H, W) bool.

    Pixels without a name are often traces of a fast motion, mixed with the background: up to half of a frame's.
    """
    names = _name_colours(frames[cores])
    per_frame = [n for n in np.split(names, np.cumsum(cores.sum((1, 2)))[:-1]) if len(n)]
    votes = Counter(names[names >= 0].tolist()).most_common(1)
    if not votes:
        return None
    winner = votes[0][0]
    is_pure = np.array([(n == winner).sum() >= max(0.5 * len(n), 0.8 * (n >= 0).sum()) for n in per_frame])
    return list(COLOURS)[winner] if holds_throughout(is_pure, 0.85) else None


def _judge_corner(frames: Array, canvas: Array, corner: Array | None) -> tuple[str | None, str | None]:
    """Colour and shape of the small second object, from the median over the frames."""
    if corner is None:
        return None, None
    still = np.median(frames, axis=0)
    core = erode(corner)
    colour = np.median(still[core if core.any() else corner], axis=0)
    canvas = canvas.mean(0)
    reach = np.sqrt(np.square(colour - canvas).sum(-1)).clip(MIN_CONTRAST)
    alpha = ((np.sqrt(np.square(still - canvas).sum(-1)) / reach - 0.5) * 2 + 0.5).clip(0, 1)
    alpha = alpha * dilate(dilate(corner))
    index = int(_name_colours(colour))
    return (list(COLOURS)[index] if index >= 0 else None), name_shape(
        polar_maps(alpha[None]), min_likeness=0.8, min_lead=0.015
    )


def _judge_main(frames: Array, objects: Objects) -> tuple[str | None, str | None, str | None]:
    """Colour, shape and motion of the main object."""
    if objects.is_valid.mean() < _MIN_PRESENCE:
        return None, None, None
    seen = np.flatnonzero(objects.is_valid)
    is_whole = objects.is_whole[seen]
    alpha = objects.alpha[seen]
    cores = erode(objects.main[seen])
    colour = _name_colour(frames[seen], cores)
    maps = polar_maps(alpha[is_whole] if is_whole.sum() >= _MIN_FRAMES else alpha)
    shape = name_shape(maps)
    x, y, area = centroids(alpha)
    _, height, width = alpha.shape
    log_area = np.where(is_whole, np.log(area), np.nan)
    return colour, shape, name_motion(Track(seen, x / width, y / height, log_area, turning(maps, shape)))


def judge(frames: Array) -> Verdict:
    """Read a clip: uint8 (T, H, W, 3), T >= 8; the rules are relative to the picture's size.

    Takes about 0.1 s on one core for 33x96x96. Raises WanlabError for anything but such an array.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise WanlabError("a clip to judge is a uint8 array (T, H, W, 3)", remedy="Pass `result.frames`.")
    if len(frames) < _MIN_FRAMES:
        raise WanlabError(f"{len(frames)} frames are too few to see a motion", remedy=f"Pass at least {_MIN_FRAMES}.")
    seen = frames.astype(np.float32)
    background, canvas = find_background(seen)
    objects = find_objects(seen, canvas)
    if objects is None:
        return Verdict(background=background)
    return Verdict(*_judge_main(seen, objects), background, *_judge_corner(seen, canvas, objects.corner))


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if num == 0:
        return 0.0, 1.0
    z = 1.959964
    share = num_right / num
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(claims: list[bool]) -> dict[str, float | int]:
    low, high = wilson(sum(claims), len(claims))
    return {"share": sum(claims) / max(1, len(claims)), "low": low, "high": high, "num": len(claims)}


def score(
    clips: Iterable[Array], captions: list[str], per_class: bool = True, pool: Executor | None = None
) -> dict[str, Any]:
    """Judge clips against their captions; JSON-ready.

    Returns {"colour", "shape", "motion", "all", "background", "second": {share, low, high, num}} with 95 % Wilson
    intervals ("all" is colour, shape and motion together; "second" is about the captions that name one), "confusions"
    [{what, said, seen, num}] most frequent first, "verdicts", and with `per_class` "classes": {what: {word: {...}}}.
    A `pool` of processes judges clips in parallel. Raises WanlabError where clips and captions differ in number.
    """
    verdicts = list((pool.map if pool else map)(judge, clips))
    if len(verdicts) != len(captions):
        raise WanlabError(f"{len(verdicts)} clips but {len(captions)} captions", remedy="Pass one caption a clip.")
    said = [read_caption(caption) for caption in captions]
    right = [verdict.matches(caption) for verdict, caption in zip(verdicts, captions, strict=True)]
    result: dict[str, Any] = {word: _share([r[word] for r in right]) for word in (*_SCORED, "background")}
    result["all"] = _share([all(r[word] for word in _SCORED) for r in right])
    result["second"] = _share([r["colour2"] and r["shape2"] for r, s in zip(right, said, strict=True) if "shape2" in s])
    wrong = Counter(
        (word, s[word], getattr(v, word))
        for word in _SCORED
        for s, v in zip(said, verdicts, strict=True)
        if s[word] != getattr(v, word)
    )
    result["confusions"] = [{"what": w, "said": a, "seen": b, "num": n} for (w, a, b), n in wrong.most_common()]
    result["verdicts"] = [asdict(v) for v in verdicts]
    if per_class:
        result["classes"] = {
            word: {
                name: _share([r[word] for r, s in zip(right, said, strict=True) if s[word] == name])
                for name in sorted({s[word] for s in said})
            }
            for word in _SCORED
        }
    return result
