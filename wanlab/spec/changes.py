"""Turns what a user writes (flat, dotted, nested, words) into assignments to a spec's nested data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from wanlab.errors import WanlabError, shorten
from wanlab.spec.method_part import MethodPart
from wanlab.spec.part import Part
from wanlab.spec.problems import nearest

Target = tuple[str, str]  # (part, leaf or option); ("", name) for a plain field of the spec itself


class Layout:
    """Names of one kind of spec: its plain fields, its parts, their leaves."""

    def __init__(self, plain_fields: tuple[str, ...], parts: Mapping[str, type[Part]]) -> None:
        self.plain_fields = plain_fields
        self.parts = dict(parts)
        self.leaves = {
            leaf: part
            for part, cls in parts.items()
            for leaf in cls.model_fields
            if leaf not in MethodPart.model_fields
        }

    def merge(self, base: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """`base` (nested) with `changes` applied, and the method parts whose method or options were given.

        Naming a method drops the options of the earlier one, even when it is the same method.
        """
        given: dict[Target, Any] = {}
        for key, value in changes.items():
            for target, item in self._assignments(key, value):
                if target in given:
                    raise WanlabError(f"{'.'.join(filter(None, target))} is given twice", remedy="Give it once.")
                given[target] = self._listed(*target, item)
        _count_sigmas(given)
        return self._assign(copy.deepcopy(dict(base)), given)

    def _listed(self, part: str, name: str, value: Any) -> Any:
        """One number for a setting that is a tuple of numbers, as a list of it."""
        field = self.parts[part].model_fields.get(name) if part else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return [value] if is_number and field is not None and get_origin(field.annotation) is tuple else value

    def _assign(self, nested: dict[str, Any], given: dict[Target, Any]) -> tuple[dict[str, Any], set[str]]:
        touched = set()
        for (part, name), value in sorted(given.items(), key=lambda item: item[0][1] != "method"):
            values = nested.setdefault(part, {}) if part else nested
            if part and self._is_option(part, name):
                values.setdefault("options", {})[name] = value
                touched.add(part)
                continue
            values[name] = value
            if part and name == "method":
                values["options"] = {}
                touched.add(part)
        return nested, touched

    def _is_option(self, part: str, name: str) -> bool:
        return name != "method" and name not in self.parts[part].model_fields

    def _assignments(self, key: str, value: Any) -> Iterator[tuple[Target, Any]]:
        if key in self.plain_fields:
            yield ("", key), value
        elif key in self.parts:
            yield from self._part(key, value)
        elif key in self.leaves:
            yield (self.leaves[key], key), value
        else:
            yield self._split(key), value

    def _part(self, part: str, value: Any) -> Iterator[tuple[Target, Any]]:
        has_method = issubclass(self.parts[part], MethodPart)
        if has_method and isinstance(value, str):
            yield (part, "method"), value
        elif isinstance(value, Mapping):
            for name, item in value.items():
                if has_method and name == "options" and isinstance(item, Mapping):
                    yield from (((part, option), v) for option, v in item.items())
                else:
                    yield self._inside(part, name, f"{part}.{name}"), item
        else:
            form = (
                "a method's name or a dict" if has_method else f"a dict of {', '.join(self._names(part)) or 'nothing'}"
            )
            is_scale = part == "guidance" and isinstance(value, int | float)
            hint = f"Did you mean guidance_scale={value}?" if is_scale else f"Give {form}."
            raise WanlabError(f"{part} = {shorten(value)} is not allowed: it is a group of settings", remedy=hint)

    def _split(self, key: str) -> Target:
        """`cache.threshold` or `cache__threshold`."""
        for mark in (".", "__"):
            part, found, name = key.partition(mark)
            if found and part in self.parts and name:
                return self._inside(part, name, key)
        raise self._unknown(key, [*self.leaves, *self.parts, *self.plain_fields])

    def _inside(self, part: str, name: str, key: str) -> Target:
        cls = self.parts[part]
        if not issubclass(cls, MethodPart) and name not in cls.model_fields:
            raise self._unknown(key, self._names(part), name)
        if name == "options":
            raise WanlabError(f"{key} is not a dict", remedy=f"Give one option as {part}.<option>, or a dict of them.")
        return part, name

    def _names(self, part: str) -> list[str]:
        return [n for n in self.parts[part].model_fields if n != "options"]

    def _unknown(self, key: str, names: list[str], name: str | None = None) -> WanlabError:
        hint = nearest(name or key.rpartition(".")[2], names) or "spec.flat() lists every setting."
        return WanlabError(f"Unknown setting {shorten(key)}", choices=() if name is None else names, remedy=hint)


def _count_sigmas(given: dict[Target, Any]) -> None:
    """Explicit sigmas say how many steps there are."""
    sigmas = given.get(("sampling", "sigmas"))
    if isinstance(sigmas, list) and ("sampling", "num_steps") not in given and len(sigmas) > 1:
        given["sampling", "num_steps"] = len(sigmas) - 1
