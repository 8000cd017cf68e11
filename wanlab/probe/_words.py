"""Words of a prompt as positions of text tokens."""

from __future__ import annotations

from collections.abc import Collection

from wanlab.errors import WanlabError, unknown

_START = "▁"  # before the first piece of a word in T5's tokenizers


def words(pieces: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The positions of each word's tokens, all occurrences together; words are lower case, without punctuation.

    >>> words(["▁a", "▁Trian", "gle", ",", "</s>"])
    {'a': (0,), 'triangle': (1, 2)}
    """
    spans: list[tuple[str, list[int]]] = []
    for position, piece in enumerate(pieces):
        if piece.startswith(_START) or not spans:
            spans.append(("", []))
        text, taken = spans[-1]
        cleaned = "" if piece.startswith("<") and piece.endswith(">") else "".join(filter(str.isalnum, piece)).lower()
        spans[-1] = (text + cleaned, [*taken, position] if cleaned else taken)
    found: dict[str, tuple[int, ...]] = {}
    for text, taken in spans:
        if text:
            found[text] = (*found.get(text, ()), *taken)
    return found


def positions(tokens: Collection[int | str], pieces: Collection[str]) -> tuple[int, ...]:
    """Tokens by position or word as positions, in order and once; raises WanlabError for a word that is not there."""
    found: set[int] = set()
    for token in tokens:
        found.update([token] if isinstance(token, int) else word(token, pieces))
    return tuple(sorted(found))


def word(text: str, pieces: Collection[str]) -> tuple[int, ...]:
    """Positions of one word. Raises WanlabError where the prompt is not known or lacks it."""
    if not pieces:
        raise WanlabError(
            f"The prompt is not known, so {text!r} is no token", remedy="record(..., prompt=the prompt), or token=n"
        )
    known = words(pieces)
    if text.lower() not in known:
        raise unknown("word of the prompt", text, known)
    return known[text.lower()]
