"""The one exception a user sees: what was wrong, what would be right, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_SHOWN = 200  # characters of an offending value that are worth repeating in a message
_MANY = 12  # choices; of more only the nearest are shown, where the remedy says how to list all
_NEAREST = 5


class WanlabError(ValueError):
    """A mistake of the user or of a file, with the value, the choices and the remedy.

    The message is one paragraph: `problem` first, then the legal `choices`, then the `remedy`.
    """

    def __init__(self, problem: str, *, choices: Iterable[Any] = (), remedy: str = "") -> None:
        self.problem = problem
        self.choices = tuple(choices)
        self.remedy = remedy
        parts = [problem.rstrip(".") + "."]
        if self.choices:
            parts.append(f"Choices: {', '.join(str(c) for c in self.choices)}.")
        if remedy:
            parts.append(remedy if remedy.endswith(("?", ".")) else remedy + ".")
        super().__init__(" ".join(parts))


def shorten(value: Any, limit: int = _SHOWN) -> str:
    """`repr(value)` cut to `limit` characters, so that a 100,000-character prompt fits a message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def unknown(kind: str, value: Any, choices: Iterable[str], remedy: str = "") -> WanlabError:
    """Make the error for a name that does not exist, with the nearest name.

    Of more than 12 choices only the nearest ones are kept, if there is a `remedy`: it says how to list all.

    >>> str(unknown("sampler", "eular", ["euler", "unipc"]))
    "Unknown sampler 'eular'. Choices: euler, unipc. Did you mean 'euler'?"
    """
    names = sorted(str(c) for c in choices)
    near = difflib.get_close_matches(str(value), names, n=_NEAREST, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    shown = near if len(names) > _MANY and remedy else names
    return WanlabError(f"Unknown {kind} {shorten(value)}", choices=shown, remedy=" ".join(filter(None, [hint, remedy])))
