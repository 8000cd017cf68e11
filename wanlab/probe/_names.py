"""Names of what can be recorded: `<site>.<quantity>`, or `<expert>.<site>.<quantity>` for one expert of several.

A site is "stack" (all blocks together), a block ("blocks.3"), or an attention of a block, by its name or by its role
("blocks.3.attn1" is "blocks.3.self"). In a pattern, `*` stands for any part of what lies between two dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from wanlab.errors import WanlabError, unknown
from wanlab.sites import Site

STACK = "stack"
BLOCK = "block"
FLOW = ("in", "out", "change", "cosine", "residual", "ratio", "tensor")
"""Quantities of blocks and of the stack."""
ATTENTION = ("out", "change", "cosine", "entropy", "tensor")
BY_ROLE = {
    "self": ("mass",),
    "cross": ("mass", "text_map"),
    "image_cross": ("mass",),
    "audio": ("mass",),
    "joint": ("mass", "text_mass", "text_map"),
}
"""Quantities of attentions besides, by their role."""


@dataclass(frozen=True, order=True)
class Where:
    """A place in a model: `part` is an attention's name within its block, empty for the block and the stack."""

    expert: str
    block: str
    part: str = ""
    role: str = BLOCK

    @property
    def site(self) -> str:
        """Its name, without the expert."""
        return f"{self.block}.{self.part}" if self.part else self.block

    @property
    def forms(self) -> tuple[str, ...]:
        """All its names without the expert: by the attention's name and by its role."""
        return (self.site, f"{self.block}.{self.role}") if self.part else (self.site,)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What can be recorded here."""
        return (*ATTENTION, *BY_ROLE.get(self.role, ())) if self.part else FLOW


@dataclass(frozen=True)
class Place:
    """A place of a loaded model, with its site."""

    where: Where
    site: Site
    kind: str = STACK
    """The block's kind, as its stack names it."""


def places(model: Any) -> Iterator[Place]:
    """Every place of a model in the order of its blocks; reads the networks of all experts."""
    for expert, stack in model.stacks.items():
        yield Place(Where(expert, STACK, role=STACK), stack.site)
        for entry in stack:
            yield Place(Where(expert, entry.name), entry.site, entry.kind)
            for part, site in entry.attentions.items():
                yield Place(Where(expert, entry.name, part, site.role), site, entry.kind)


def names(model: Any, pattern: str = "*") -> list[str]:
    """The names that `record` takes, those whose site and quantity match `pattern`; "*" is all of them.

    "blocks.0.*" lists what can be recorded of a block, "blocks.0.*.*" of its attentions. With two experts each name
    starts with one of them; without that start, a name means both. Raises WanlabError for a pattern without a match.
    """
    found = [place.where for place in places(model)]
    listed = [
        f"{where.expert}.{name}" if len(model.stacks) > 1 else name
        for where in found
        for name in _spellings(where)
        if pattern == "*" or fits(name, pattern) or fits(f"{where.expert}.{name}", pattern)
    ]
    if not listed:
        raise missing(pattern, (name for where in found for name in _spellings(where)))
    return listed


def _spellings(where: Where) -> list[str]:
    """All names of a place's quantities, without its expert."""
    return [f"{form}.{quantity}" for form in where.forms for quantity in where.quantities]


def fits(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern, one dot-separated word after the other."""
    words, wanted = name.split("."), pattern.split(".")
    return len(words) == len(wanted) and all(map(fnmatchcase, words, wanted))


def calls(where: Where, quantity: str, pattern: str) -> bool:
    """Whether a pattern means this quantity of this place."""
    return any(fits(name, pattern) for name in _with_expert(where, quantity))


def _with_expert(where: Where, quantity: str) -> list[str]:
    """All names of one quantity, without its expert and with it."""
    plain = [f"{form}.{quantity}" for form in where.forms]
    return [*plain, *(f"{where.expert}.{name}" for name in plain)]


def select(model: Any, patterns: Iterable[str]) -> list[tuple[Place, list[str]]]:
    """Places and what is wanted of each. Raises WanlabError for a pattern that matches nothing, with the nearest."""
    left, everywhere = dict.fromkeys(patterns), list(places(model))
    if not left:
        raise WanlabError(
            "Nothing is named to record", remedy="Name sites, e.g. 'blocks.*.out'; model.sites() lists all"
        )
    globs = [pattern for pattern in left if _is_glob(pattern)]
    matched: set[str] = set()
    chosen = []
    for place in everywhere:
        wanted = []
        for quantity in place.where.quantities:
            spellings = _with_expert(place.where, quantity)
            by = [name for name in spellings if name in left]
            by += [glob for glob in globs if any(fits(name, glob) for name in spellings)]
            matched.update(by)
            wanted += [quantity] if by else []
        if wanted:
            chosen.append((place, wanted))
    if unmatched := [pattern for pattern in left if pattern not in matched]:
        raise missing(unmatched[0], (name for place in everywhere for name in _spellings(place.where)))
    return chosen


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def missing(pattern: str, choices: Iterable[str], what: str = "site and quantity") -> WanlabError:
    """The error for a name that matches nothing, with the nearest names: patterns where a pattern was given."""
    choices = set(choices)
    if "*" in pattern:
        choices = {re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in choices}
    return unknown(
        what, pattern, choices, remedy="model.sites() lists them, model.sites('blocks.0.*') those of a block"
    )
