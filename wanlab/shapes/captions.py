"""Scenes as numbers and as sentences: drawing them at random, saying them, reading them back.

The language: "a {colour} {shape} {motion} on a {background} background", optionally followed by
"and a small {colour} {shape} in the top left corner".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from wanlab.errors import WanlabError, shorten
from wanlab.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, ROUND, SHAPES

Split = Literal["train", "held_out"]
NUM_JITTERS = 6
SECOND_SHARE = 0.4
"""Share of scenes with a small second object."""
_HELD_OUT_SHARE = 10  # one combination in ten is never trained on
_SPLIT_SEED = 20
_COLOURS, _BACKGROUNDS = list(COLOURS), list(BACKGROUNDS)
_SENTENCE = re.compile(
    r"an? (?P<colour>\w+) (?P<shape>\w+) (?P<motion>[\w ]+?) on an? (?P<background>\w+) background"
    r"(?: and a small (?P<colour2>\w+) (?P<shape2>\w+) in the top left corner)?"
)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes; every field but `jitter` is (B,) int64, an index into the vocabulary."""

    colour: Tensor
    shape: Tensor
    motion: Tensor
    background: Tensor
    second: Tensor
    """1 where a small second object stands in the top left corner."""
    colour2: Tensor
    shape2: Tensor
    jitter: Tensor
    """(B, NUM_JITTERS) float32 in [0, 1): size, position, speed and phase of the main object."""

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: str | torch.device) -> Scenes:
        return Scenes(*(getattr(self, f.name).to(device) for f in fields(self)))


@cache
def combinations(split: Split) -> Tensor:
    """All legal (colour, shape, motion, background) of a split, (N, 4) int64.

    The split is by combination: none of "held_out" is ever seen in training, though each word is.
    """
    sizes = (len(COLOURS), len(SHAPES), len(MOTIONS), len(BACKGROUNDS))
    every = torch.cartesian_prod(*(torch.arange(n) for n in sizes))
    spins = every[:, 2] == MOTIONS.index("spins")
    round_shape = torch.isin(every[:, 1], torch.tensor([SHAPES.index(s) for s in ROUND]))
    legal = every[~(spins & round_shape)]
    order = torch.randperm(len(legal), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    num_held_out = len(legal) // _HELD_OUT_SHARE
    return legal[order[:num_held_out]] if split == "held_out" else legal[order[num_held_out:]]


def sample_scenes(num: int, generator: torch.Generator, split: Split = "train", replace: bool = True) -> Scenes:
    """Draw `num` scenes on the generator's device; `replace=False` gives every combination at most once."""
    device = generator.device
    table = combinations(split).to(device)
    if not replace and num > len(table):
        raise WanlabError(f"{num} different scenes were asked of {len(table)} in split {split!r}")
    if replace:
        rows = torch.randint(len(table), (num,), generator=generator, device=device)
    else:
        rows = torch.randperm(len(table), generator=generator, device=device)[:num]
    colour, shape, motion, background = table[rows].unbind(1)
    second = (torch.rand(num, generator=generator, device=device) < SECOND_SHARE).long()
    colour2 = torch.randint(len(COLOURS), (num,), generator=generator, device=device)
    shape2 = torch.randint(len(SHAPES), (num,), generator=generator, device=device)
    jitter = torch.rand(num, NUM_JITTERS, generator=generator, device=device)
    return Scenes(colour, shape, motion, background, second, colour2, shape2, jitter)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def captions(scenes: Scenes) -> list[str]:
    """One sentence a scene."""
    sentences = []
    rows = zip(*(getattr(scenes, f.name).tolist() for f in fields(scenes)[:7]), strict=True)
    for colour, shape, motion, background, second, colour2, shape2 in rows:
        c, b = _COLOURS[colour], _BACKGROUNDS[background]
        text = f"{_article(c)} {c} {SHAPES[shape]} {MOTIONS[motion]} on a {b} background"
        if second:
            text += f" and a small {_COLOURS[colour2]} {SHAPES[shape2]} in the top left corner"
        sentences.append(text)
    return sentences


def read_caption(caption: str) -> dict[str, str]:
    """The words of a caption: colour, shape, motion, background and, if said, colour2 and shape2.

    Raises WanlabError for a sentence outside the language.
    """
    match = _SENTENCE.fullmatch(caption.strip())
    words = {k: v for k, v in match.groupdict().items() if v} if match else {}
    legal = {"colour": _COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": _BACKGROUNDS}
    if not words or any(words[k] not in legal[k.rstrip("2")] for k in words):
        raise WanlabError(
            f"{shorten(caption)} is not a sentence about shapes",
            remedy="Write 'a red circle moves right on a black background', with words of wanlab.shapes.vocabulary.",
        )
    return words
