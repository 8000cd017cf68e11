"""From the words of a command line and a file to the spec they mean; needs no torch."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from wanlab import catalog
from wanlab.catalog import Definition
from wanlab.cli._console import say
from wanlab.compat import wangp_model
from wanlab.compat.documents import read_document
from wanlab.errors import WanlabError, shorten
from wanlab.files import read_json
from wanlab.settings import open_settings
from wanlab.spec import LEAVES, PARTS, GenerationSpec

_EXAMPLE = 'Write for example: wanlab generate wan_tiny prompt="a red circle moves right on a black background" seed=7'


def request(words: Sequence[str], source: str | None, task: int | None = None) -> tuple[Definition, GenerationSpec]:
    """The model and the full spec that `MODEL setting=value ...`, a `--spec` and its `--task` mean together.

    MODEL is the first word without "=", and may be missing where a spec is given. Raises WanlabError for a word that is
    no setting, for unknown or illegal settings, and for a spec of another model than MODEL.
    """
    named = words[0] if words and "=" not in words[0] else None
    changes = read_settings(words if named is None else words[1:])
    given = None if source is None else read_spec(Path(source), named, changes, task)
    if named is None and given is None:
        names = [row.id for row in catalog.catalogue()]
        raise WanlabError("No model is named", choices=names, remedy=_EXAMPLE)
    definition = catalog.find(given if named is None else named)
    if given is None:
        defaults = catalog.user_defaults(definition)
        return definition, GenerationSpec.of({**defaults, "model": definition.id}, **changes)
    if given.model not in (definition.id, *definition.aliases):
        remedy = "Leave the model out to use the spec's, or leave the spec out"
        raise WanlabError(f"{source} is a spec of {given.model}, not of {definition.id}", remedy=remedy)
    return definition, GenerationSpec.of(given.to_dict(), **changes)


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """`setting=value` words as a dict. A value is what its JSON says; text that is no JSON stays text, as do paths.

    >>> read_settings(["seed=7", "prompt=a red circle", "cache.mask=[true, false]", "cache=fixed"])
    {'seed': 7, 'prompt': 'a red circle', 'cache.mask': [True, False], 'cache': 'fixed'}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise WanlabError(f"{shorten(word)} is not setting=value", remedy=_EXAMPLE)
        if name in found:
            raise WanlabError(f"{shorten(name)} is given twice", remedy="Give it once")
        found[name] = _value(name, text)
    return found


def _value(name: str, text: str) -> Any:
    try:
        value = read_json(text) if text.lstrip()[:1] in ("{", "[") else json.loads(text)
    except ValueError:  # WanlabError is one
        return text
    return text if _is_text(name) and not isinstance(value, str) else value


def _is_text(name: str) -> bool:
    """Whether a setting holds text, so that the prompt `7` is no number."""
    leaf = name.replace("__", ".").rpartition(".")[2]
    return leaf in LEAVES and PARTS[LEAVES[leaf]].model_fields[leaf].annotation is str


def read_spec(
    path: Path, model: str | None = None, given: Collection[str] = (), task: int | None = None
) -> GenerationSpec:
    """The spec in a file that `wanlab.open_settings` reads: by wanlab or by WanGP.

    model: of WanGP's presets, which name none. given: settings that the command line replaces. task: of a queue. What
    WanGP's settings say and a spec does not goes to stderr. Raises WanlabError for files that they name and that are
    not given.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = open_settings(path, model=model if model and _is_preset(path, task) else None, task=task)
    for warning in caught:
        say(str(warning.message), sys.stderr)
    leaves = {name.replace("__", ".").rpartition(".")[2] for name in given}
    there = {*leaves, "keyframe_positions", *(leaf for leaf in settings.media if getattr(settings.spec.media, leaf))}
    if lacking := [leaf for leaf in settings.media if leaf not in there]:
        raise WanlabError(
            f"{path} names files that it does not hold: {', '.join(lacking)}",
            remedy=f"Give them, or null to do without: {' '.join(f'{leaf}=PATH' for leaf in lacking)}",
        )
    return settings.spec


def _is_preset(path: Path, task: int | None) -> bool:
    """Whether a file holds settings of WanGP that name no model; what is wrong with it, `open_settings` says."""
    try:
        document = read_document(path, task)
    except (OSError, WanlabError):
        return False
    return document.whose == "wangp" and not wangp_model(document.content).id
