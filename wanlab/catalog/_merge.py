"""A definition on top of another one, property by property."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wanlab.errors import WanlabError, shorten
from wanlab.spec import plain
from wanlab.spec.generation import LAYOUT

Raw = dict[str, Any]

_OWN = ("schema", "id", "title", "description", "aliases", "base", "visible")
"""Never taken from a base."""
_PLACES = ("asset", "folder", "repo", "revision")
_TABLES = ("architecture", "constants", "sources", "extra")


def merged(base: Mapping[str, Any], over: Mapping[str, Any], *, same: bool = False) -> Raw:
    """What `over` says, and for the rest what `base` says.

    Tables merge by key: `spec` by setting, `architecture` by component and argument, `weights.components` by
    component, its variants and its modules each as a whole.
    A definition that names weights of its own does not take its base's folder or repository, which hold others, and
    with `"components": null` none of its base's files. Names,
    texts, aliases and `visible` are each definition's own, except when both are the same model (`same`).
    """
    found: Raw = {k: v for k, v in base.items() if same or k not in _OWN}
    for key, value in over.items():
        if not isinstance(value, Mapping):
            found[key] = value
        elif key == "spec":
            nested, _ = LAYOUT.merge({}, plain(found.get(key) or {}))
            found[key] = LAYOUT.merge(nested, plain(value))[0]
        elif key == "weights":
            found[key] = _weights(found.get(key) or {}, value)
        elif key in _TABLES:
            found[key] = _table(found.get(key) or {}, value, deep=key == "architecture")
        else:
            found[key] = value
    return found


def _weights(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    kept = {k: v for k, v in base.items() if k not in _PLACES}
    components = over.get("components", {})
    if components is None:
        return {**kept, **over, "components": {}}
    if not isinstance(components, Mapping):
        raise WanlabError(f"weights.components is {shorten(components, 40)}", remedy="Give a table of components")
    return {**kept, **over, "components": _table(base.get("components") or {}, components, deep=True)}


def _table(base: Mapping[str, Any], over: Mapping[str, Any], deep: bool) -> Raw:
    found = {**base, **over}
    if deep:
        both = [k for k in over if isinstance(base.get(k), Mapping) and isinstance(over[k], Mapping)]
        found |= {k: {**base[k], **over[k]} for k in both}
    return found
