"""Settings of a point: how a user or a document writes them, how a grid keeps them, and the spec that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from wanlab import catalog
from wanlab.errors import WanlabError, shorten, unknown
from wanlab.spec import LEAVES, PARTS, GenerationSpec, plain
from wanlab.spec.media_given import with_stored
from wanlab.spec.problems import STORE
from wanlab.sweeps import _points
from wanlab.sweeps._points import Settings


def flat_name(name: str) -> str:
    """A setting's name as a grid has it: `seed` for sampling__seed, `cache.threshold` for cache__threshold."""
    for mark in (".", "__"):
        part, _, leaf = name.partition(mark)
        if leaf and part in PARTS:
            return part if leaf == "method" else leaf if LEAVES.get(leaf) == part else f"{part}.{leaf}"
    return name


def with_frames(axes: Mapping[str, Any]) -> Settings:
    """The axes with an array given as a medium as one value: a mask of (H, W) is no axis of rows."""
    media = {name for name in axes if LEAVES.get(flat_name(name)) == "media" and getattr(axes[name], "ndim", 0) > 1}
    return {name: [value] if name in media else value for name, value in axes.items()}


class Cleaner:
    """Settings of a user, or of a document, as a grid keeps them: flat names, JSON values, media stored."""

    def __init__(self, base: GenerationSpec, is_document: bool = False) -> None:
        self._nested, self._is_document = base.to_dict(), is_document

    def __call__(self, name: str, value: Any) -> tuple[str, Any]:
        known = flat_name(name)
        if known == "model":
            return known, catalog.find(value).id
        if self._is_document:
            _refuse_files(known, value)
        return known, plain(with_stored({known: value}, self._nested)[known], known)


def _refuse_files(name: str, value: Any) -> None:
    """Raise WanlabError for a file's name: a document may name files of this machine that are nobody's business."""
    if name == "media" and isinstance(value, Mapping):
        for leaf, item in value.items():
            _refuse_files(leaf, item)
    elif LEAVES.get(name) == "media" and name != "fit":
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                raise WanlabError(f"media.{name} = {shorten(item)} is a file's name in a document", remedy=STORE)


def clean_axis(clean: Cleaner, name: str, values: Any) -> tuple[str, list[Any]]:
    """An axis with its name and values as points have them."""
    cleaned = [clean(name, value) for value in _points.axis(name, values)[0]]
    return cleaned[0][0], [value for _, value in cleaned]


def spec_at(base: GenerationSpec, settings: Settings, i: int, count: int) -> GenerationSpec:
    """The point `i` of `count`; errors say which of its settings is wrong."""
    try:
        return base.with_(**settings)
    except WanlabError as error:
        place = f"Point {i + 1} of {count}"
        for name, value in settings.items():
            if (alone := _refusal(base, {name: value})) is not None and alone.problem == error.problem:
                remedy = _remedy(name, value, settings) or error.remedy
                problem = f"{place}, axis {name!r}, value {shorten(value, 80)}: {error.problem}"
                raise WanlabError(problem, choices=error.choices, remedy=remedy) from None
        listed = ", ".join(f"{name}={shorten(value, 40)}" for name, value in settings.items())
        remedy = next(filter(None, (_remedy(name, value, settings) for name, value in settings.items())), error.remedy)
        raise WanlabError(f"{place} ({listed}): {error.problem}", choices=error.choices, remedy=remedy) from None


def _remedy(name: str, value: Any, settings: Settings) -> str:
    """What to do about a mistake that only grids have; empty for others."""
    part, _, option = name.partition(".")
    if option and part in settings:
        return f"Options belong to one method: add a grid for each, grid(base, {part}=..., {part}__{option}=[...])."
    leaf = PARTS[LEAVES[name]].model_fields[name] if name in LEAVES else None
    is_several = leaf is not None and any(get_origin(a) is tuple for a in (leaf.annotation, *get_args(leaf.annotation)))
    if is_several and isinstance(value, int | float):
        return f"A value of {name} is itself a list: give {name}=[[...], [...]]."
    return ""


def _refusal(base: GenerationSpec, settings: Settings) -> WanlabError | None:
    try:
        base.with_(**settings)
    except WanlabError as error:
        return error
    return None


def changes(base: GenerationSpec, spec: GenerationSpec) -> Settings:
    """Settings with which `base.with_(...)` is `spec`, by flat name; a method that differs is whole."""
    found: Settings = {}
    for name, part in spec.methods().items():
        own = getattr(base, name)
        if (part.method, set(part.options)) != (own.method, set(own.options)):
            found[name] = {"method": part.method, **plain(part.options)} if part.options else part.method
    here = base.flat()
    for name, value in spec.flat().items():
        if name.partition(".")[0] not in found and here.get(name) != value:
            found[name] = plain(value, name)
    return found


def looked_up(spec: GenerationSpec, names: Iterable[str]) -> Settings:
    """Values of a spec by flat name, methods as {"method": ...} with their options; what it lacks is left out."""
    flat = spec.flat()
    whole = {name: {"method": part.method, **plain(part.options)} for name, part in spec.methods().items()}
    for name in names:
        if name not in whole and name not in flat and not (name.partition(".")[0] in whole and "." in name):
            raise unknown("setting in skip", name, {*flat, *whole}, "spec.flat() lists every setting")
    return {name: whole.get(name, plain(flat.get(name))) for name in names if name in whole or name in flat}


def agrees(there: Any, wanted: Any) -> bool:
    """Whether a value of `looked_up` is the wanted one; a method is its name's, or the options' that are given."""
    if isinstance(there, Mapping) and "method" in there:
        wanted = {"method": wanted} if isinstance(wanted, str) else wanted
        return isinstance(wanted, Mapping) and all(n in there and _points.same(there[n], v) for n, v in wanted.items())
    if isinstance(there, list) and not isinstance(wanted, list):  # one number for a setting that takes several
        wanted = [wanted]
    return _points.same(there, wanted)
