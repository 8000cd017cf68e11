"""One change that a newer version of WanGP makes to older settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wanlab.compat.models import WanGPModel

DROP = object()
"""The value of a key that a change removes."""

Change = Callable[[Mapping[str, Any], WanGPModel], dict[str, Any]]
"""Pure: looks at settings and their model, returns the keys that change."""


@dataclass(frozen=True)
class Migration:
    """One row of the table."""

    what: str
    change: Change
    below: float = math.inf
    """Applies to versions under this number."""
    exactly: float | None = None
    """Applies to this version alone."""
    handler: str = ""
    """Applies to models of this family; empty is all."""
    architectures: tuple[str, ...] = ()
    """Applies to these architectures; empty is all."""

    def applies(self, version: float, model: WanGPModel) -> bool:
        """Whether settings of that version and model are changed."""
        return (
            (version < self.below if self.exactly is None else version == self.exactly)
            and self.handler in ("", model.handler)
            and (not self.architectures or model.architecture in self.architectures)
        )


def letters(settings: Mapping[str, Any], key: str) -> str:
    """A key of letters; one that is missing or null has none."""
    return settings.get(key) or ""


def replaced(key: str, old: str, new: str) -> Change:
    """Replace letters of a key wherever they stand."""

    def change(settings: Mapping[str, Any], model: WanGPModel) -> dict[str, Any]:
        found = letters(settings, key)
        return {key: found.replace(old, new)} if old in found else {}

    return change


def added(key: str, letter: str) -> Change:
    """Append a letter that the key lacks."""

    def change(settings: Mapping[str, Any], model: WanGPModel) -> dict[str, Any]:
        found = letters(settings, key)
        return {} if letter in found else {key: found + letter}

    return change


def renamed(**names: str) -> Change:
    """Move keys to new names; a value that the new name has already wins."""

    def change(settings: Mapping[str, Any], model: WanGPModel) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for old, new in names.items():
            if old in settings:
                found |= {old: DROP} | ({} if new in settings else {new: settings[old]})
        return found

    return change


def values(**fixed: Any) -> Change:
    """Set keys whatever they were."""
    return lambda settings, model: dict(fixed)


def missing(**defaults: Any) -> Change:
    """Set keys that the settings lack."""
    return lambda settings, model: {key: value for key, value in defaults.items() if key not in settings}
