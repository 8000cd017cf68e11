"""WanGP's letter codes as words, and back without loss.

A letter is a word; the order of the letters is kept, because WanGP keeps the order in which they were chosen. What a
letter means depends on the model in a few places: `1`, `#`, `&`, `+`, `-` and `|` are words of their own sign.
Source: deepbeepmeep/Wan2GP at commit 8681e9f7, wgp.py and the families' handlers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from wanlab.errors import unknown

_PROCESSES = ("aligned_pose", "pose", "depth", "scribble", "canny", "flow", "gray", "inpaint", "identity")


@dataclass(frozen=True)
class Letters:
    """A code of one kind as words, in the order of its letters."""

    words: tuple[str, ...] = ()

    table: ClassVar[Mapping[str, str]] = {}
    """Letter -> word. A sign that is not in it is a word that is the sign."""

    @classmethod
    def parse(cls, code: str | None) -> Self:
        """The words of a code; any text has some, and `code` gives it back exactly. None is empty."""
        return cls(tuple(cls.table.get(letter, letter) for letter in code or ""))

    @classmethod
    def of(cls, *words: str) -> Self:
        """A code of these words. Raises WanlabError for one that does not exist."""
        for word in words:
            if word not in cls.table.values() and (len(word) != 1 or word in cls.table):
                raise unknown(f"word of {cls.__name__}", word, cls.table.values())
        return cls(words)

    @property
    def code(self) -> str:
        """The letters."""
        signs = {word: letter for letter, word in self.table.items()}
        return "".join(signs.get(word, word) for word in self.words)

    def with_(self, *words: str) -> Self:
        """The same with words added that it lacks."""
        return type(self).of(*self.words, *(word for word in dict.fromkeys(words) if word not in self.words))

    def without(self, *words: str) -> Self:
        """The same without these words."""
        return type(self)(tuple(word for word in self.words if word not in words))

    def __contains__(self, word: str) -> bool:
        return word in self.words

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __bool__(self) -> bool:
        return bool(self.words)


class ImagePrompt(Letters):
    """`image_prompt_type`: what the video starts from."""

    table: ClassVar[Mapping[str, str]] = {
        "T": "text",
        "S": "first_frame",
        "E": "last_frame",
        "V": "continue_video",
        "L": "continue_last",
    }


class VideoPrompt(Letters):
    """`video_prompt_type`: what the video follows, where, and which pictures appear in it."""

    table: ClassVar[Mapping[str, str]] = {
        "V": "control_video",
        "G": "denoise",
        "U": "identity",
        "P": "pose",
        "O": "aligned_pose",
        "D": "depth",
        "S": "scribble",
        "E": "canny",
        "L": "flow",
        "C": "gray",
        "M": "inpaint",
        "B": "faces",
        "H": "mask_box",
        "A": "mask",
        "N": "mask_negated",
        "X": "outside_inpaint",
        "Y": "outside_depth",
        "W": "outside_scribble",
        "Z": "outside_flow",
        "I": "references",
        "K": "background_first",
        "F": "positioned_frames",
        "J": "style",
        "T": "align_to_window",
        "R": "sparse",
        "0": "sharp_cut",
        "Q": "face_embedding",
    }

    @property
    def processes(self) -> tuple[str, ...]:
        """How the control video is prepared: at most two, which make two contexts; none is the video as it is."""
        return tuple(word for word in _PROCESSES if word in self)[:2]

    @property
    def outside(self) -> str | None:
        """What is done outside of the mask. `outside_flow` is a word that WanGP accepts and never applies."""
        words = ("outside_depth", "outside_scribble", "outside_inpaint")
        return next((word.removeprefix("outside_") for word in words if word in self), None)


class AudioPrompt(Letters):
    """`audio_prompt_type`: which sound the video follows."""

    table: ClassVar[Mapping[str, str]] = {
        "A": "first",
        "B": "second",
        "X": "separate_speakers",
        "C": "one_after_another",
        "P": "at_once",
        "K": "control_video",
        "V": "voice_only",
        "N": "normalise",
        "L": "length",
        "F": "full",
        "R": "control_soundtrack",
        "Y": "replace_voice",
        "Z": "replace_two_voices",
    }


class PromptEnhancer(Letters):
    """`prompt_enhancer`: what a language model reads to write the prompt anew."""

    table: ClassVar[Mapping[str, str]] = {"T": "text", "I": "image", "K": "think", "1": "other_instructions"}
