"""Findings as data, and as text that fits 100 columns."""

from __future__ import annotations

import html
import json
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from wanlab.errors import WanlabError

_WIDTH = 100  # columns
_MARKS = {"ok": "ok", "note": "", "absent": "-", "failed": "FAILED"}
_FAULT = "A fault of wanlab or of a package: report it with the output of `wanlab doctor --json`"

Status = Literal["ok", "note", "absent", "failed"]
"""ok: tried, works; note: a fact; absent: optional and not here; failed: required, or here and wrong."""


@dataclass(frozen=True)
class Fact:
    """One finding."""

    name: str
    status: Status
    text: str
    remedy: str = ""
    """What to do about it; empty where nothing needs doing."""
    data: dict[str, Any] = field(default_factory=dict)
    """The same for programs: versions, bytes, seconds."""


@dataclass(frozen=True)
class Section:
    """Findings that belong together."""

    title: str
    facts: tuple[Fact, ...] = ()

    def __repr__(self) -> str:
        width = max((len(fact.name) for fact in self.facts), default=0)
        return "\n".join([self.title, *(line for fact in self.facts for line in _lines(fact, width))])


@dataclass(frozen=True)
class Report:
    """Everything that was found; prints as text, in a notebook too."""

    sections: tuple[Section, ...]

    @property
    def failed(self) -> list[str]:
        """What is required and does not work, as "section (fact)"."""
        return [f"{s.title} ({fact.name})" for s in self.sections for fact in s.facts if fact.status == "failed"]

    @property
    def ok(self) -> bool:
        """Whether everything required works."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """One line: all is well, or what is not."""
        return f"Not well: {', '.join(self.failed)}." if self.failed else "Everything required works."

    def to_json(self) -> str:
        """`ok`, `failed` and all facts as JSON text."""
        return json.dumps({"ok": self.ok, "failed": self.failed, **asdict(self)}, indent=2)

    def __repr__(self) -> str:
        return "\n\n".join([*map(str, self.sections), self.verdict])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def failure(error: Exception, name: str = "error") -> Fact:
    """An error as a fact: what it says, and what to do."""
    if isinstance(error, WanlabError):
        return Fact(name, "failed", error.problem, error.remedy or _FAULT)
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
    return Fact(name, "failed", text[:300], _remedy(error))


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name:
        return f"pip install --force-reinstall {error.name.partition('.')[0]}"
    if isinstance(error, OSError):
        return "Check the path, its permissions and the space on the disk"
    return _FAULT


def size(count: float) -> str:
    """Bytes as people say them.

    >>> size(27_400_000), size(85e9), size(12)
    ('27.4 MB', '85.0 GB', '0.0 MB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def home(path: Path | str) -> str:
    """A path with `~` for the user's home."""
    place = Path(path)
    try:
        return str("~" / place.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere, or a user without a home
        return str(place)


def _lines(fact: Fact, width: int) -> list[str]:
    lead = f"  {_MARKS[fact.status]:6}  {fact.name:{width}}  "
    lines = _wrapped(fact.text, lead)
    if fact.remedy:
        lines += _wrapped(f"-> {fact.remedy}", " " * len(lead))
    return lines


def _wrapped(text: str, lead: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [lead.rstrip()]
