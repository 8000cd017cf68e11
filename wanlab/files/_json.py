"""JSON without the traps of `json.loads`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from wanlab.errors import WanlabError, shorten

_MAX_JSON = 4 << 20  # bytes
_MAX_DEPTH = 64
_CONSTANTS = ("NaN", "Infinity", "-Infinity")
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s*:)|"(?:[^"\\]|\\.)*"|[{}\[\]]|-?Infinity|NaN', re.DOTALL)
"""A key (its text is the first group), a text, a bracket or a constant that JSON does not have."""


def read_json(source: Path | str, max_bytes: int = _MAX_JSON) -> Any:
    """JSON from a file, or from text that starts with `{` or `[`.

    Stricter than `json.loads`: WanlabError, with the line where there is one, for NaN, duplicate keys, depth over 64,
    lone surrogates, huge numbers and anything over `max_bytes`.
    """
    is_text = isinstance(source, str) and source.lstrip("\ufeff \t\r\n")[:1] in ("{", "[")
    name = "The JSON text" if is_text else str(source)
    raw = str(source).encode(errors="surrogatepass") if is_text else _read(Path(source), max_bytes)
    if len(raw) > max_bytes:
        raise WanlabError(f"{name} is larger than {max_bytes:,} bytes", remedy="It is not one of wanlab's records.")
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        _check_tree(value)
    except RecursionError:
        remedy = f"At most {_MAX_DEPTH} levels are read."
        raise WanlabError(f"{name} is nested too deeply{_where(raw)}", remedy=remedy) from None
    except ValueError as error:
        problem = f"{error.problem}{_where(raw)}" if isinstance(error, WanlabError) else str(error)
        raise WanlabError(f"{name} is not valid JSON: {problem}", remedy="Correct it or write it anew.") from None
    return value


def _where(raw: bytes) -> str:
    """` (line 3)` of the first NaN, key given twice or level too deep in a JSON text; empty if it has none.

    Only called for a text that was refused. Linear in its length, without recursion.
    """
    text = raw.decode("utf-8-sig", errors="replace")
    open_objects: list[set[str] | None] = []  # keys seen in each object, None for a list
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in "{[":
            open_objects.append(set() if word == "{" else None)
        elif word in "}]":
            del open_objects[-1:]
        keys = open_objects[-1] if open_objects else None
        is_key = token[1] is not None and keys is not None
        if len(open_objects) > _MAX_DEPTH or word in _CONSTANTS or (is_key and keys is not None and token[1] in keys):
            return f" (line {text.count(chr(10), 0, token.start()) + 1})"
        if is_key and keys is not None:
            keys.add(token[1])
    return ""


def _read(path: Path, max_bytes: int) -> bytes:
    """At most max_bytes + 1 bytes of a file."""
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise WanlabError(f"Cannot read {shorten(str(path))}: {reason}", remedy="Check the path.") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [k for k, _ in pairs]
        raise WanlabError(f"the key {shorten(next(k for k in keys if keys.count(k) > 1))} is given twice")
    return table


def _no_constant(word: str) -> NoReturn:
    raise WanlabError(f"{word} is not a number of JSON")


def _check_tree(value: Any) -> None:
    """Refuse depth and lone surrogates without recursion."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        if any(isinstance(v, str) and not v.isascii() and any("\ud800" <= c <= "\udfff" for c in v) for v in level):
            raise WanlabError("a text has a lone surrogate")
        pairs = [pair for v in level if isinstance(v, dict) for pair in v.items()]
        level = [*(x for v in level if isinstance(v, list) for x in v), *(x for pair in pairs for x in pair)]
        if not level:
            return
    raise WanlabError(f"it is nested deeper than {_MAX_DEPTH} levels")
