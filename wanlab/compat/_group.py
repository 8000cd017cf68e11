"""One group of WanGP's settings and the settings of a spec that they decide, read and written together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wanlab.compat.models import WanGPModel
from wanlab.errors import WanlabError, shorten
from wanlab.spec import GenerationSpec

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a translation depends on besides the settings."""

    model: WanGPModel
    usual: GenerationSpec
    """The model's own default spec: what settings that are missing stand for."""


def _nothing(settings: Settings, context: Context) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Group:
    """A translation in both directions; `keys.KEYS` names it for each of its keys."""

    name: str
    leaves: tuple[str, ...]
    """Settings of the spec, flat; a part's name stands for its method and options."""
    read: Callable[[Settings, Context], dict[str, Any]]
    """Changes to the model's usual spec, as `GenerationSpec.with_` takes them."""
    write: Callable[[GenerationSpec, Settings, Context], dict[str, Any]]
    """WanGP's keys that say what the spec says; may look at the present settings."""
    left: Callable[[Settings, Context], dict[str, str]] = _nothing
    """Keys that `read` does not follow as WanGP would, with the reason."""


def number(settings: Settings, key: str, default: float | None = None) -> float | None:
    """A key's number; null counts as missing."""
    value = settings.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WanlabError(f"{key} = {shorten(value)} is no number", remedy="Give a number, without quotes.")
    return value


def whole(value: float) -> float:
    """A number as WanGP's files have it: whole ones without a point."""
    return int(value) if float(value).is_integer() else value
