"""A user's own settings of a model, in the workspace's `configs`: defaults that were chosen, and the last ones used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wanlab.catalog._definition import Definition
from wanlab.errors import WanlabError, shorten
from wanlab.files import atomic_write, read_json, safe_path
from wanlab.spec import LEAVES, GenerationSpec, plain
from wanlab.spec.generation import LAYOUT
from wanlab.spec.migrations import SCHEMA, upgrade
from wanlab.workspace import Workspace, find_workspace

Settings = dict[str, Any]
_OF_A_SPEC = {"schema", "model", "text", "sampling"}
_OF_ONE_CLIP = ("model", "text.prompt", "sampling.seed")


def user_defaults(definition: Definition, workspace: Workspace | None = None) -> Settings:
    """The default settings of a model on this machine: the definition's, with the user's own over them."""
    own = read_user_defaults(definition.id, workspace)
    nested, _ = LAYOUT.merge({}, plain(definition.spec))
    return LAYOUT.merge(nested, own)[0]


def default_spec(definition: Definition, workspace: Workspace | None = None) -> GenerationSpec:
    """The full spec that a generation with a model starts from on this machine: `user_defaults` as a spec."""
    return GenerationSpec.of({**user_defaults(definition, workspace), "model": definition.id})


def read_user_defaults(model_id: str, workspace: Workspace | None = None) -> Settings:
    """The settings of `configs/<id>.json`, nested by part; empty if there is no file.

    It may say only some settings. Raises WanlabError, with the file, for one that no spec has, of this or an earlier
    schema: the file is the user's, so it is neither ignored nor changed. A full spec there is no defaults: before there
    were any, panels kept their last settings in this file, and `read_last` reads it.
    """
    path = _path(model_id, workspace, ".json")
    if not path.is_file() or _is_spec(path):
        return {}
    document = read_json(path)
    if not isinstance(document, dict):
        raise WanlabError(f"{path} holds {shorten(document, 40)}", remedy="Settings are a JSON object: {...}")
    try:
        return _checked(model_id, {k: v for k, v in upgrade(document).items() if k not in ("schema", "model")})
    except WanlabError as error:
        raise WanlabError(f"{path}: {error.problem}", choices=error.choices, remedy=error.remedy) from None


def write_user_defaults(model_id: str, settings: Mapping[str, Any], workspace: Workspace | None = None) -> Path:
    """Keep settings, flat or nested, as a model's defaults on this machine. Raises WanlabError for illegal ones."""
    document = {"schema": SCHEMA, **_checked(model_id, settings)}
    path, last = _path(model_id, workspace, ".json"), _path(model_id, workspace, ".last.json")
    if path.is_file() and not last.exists() and _is_spec(path):
        os.replace(path, last)
    return atomic_write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def own_settings(definition: Definition, spec: GenerationSpec) -> Settings:
    """What of a spec could be a user's defaults: all that differs from the definition's but prompt, seed and media.

    By dotted name; a method whose option differs is named with all its options.
    """
    found: Settings = {}
    for name, (_, value) in GenerationSpec.of({**definition.spec, "model": definition.id}).diff(spec).items():
        part, _, leaf = name.partition(".")
        if name in _OF_ONE_CLIP or part == "media":
            continue
        if LEAVES.get(leaf) == part:
            found[name] = value
        else:
            method = spec.methods()[part]
            found |= {part: method.method, **{f"{part}.{option}": value for option, value in method.options.items()}}
    return found


def save_last(spec: GenerationSpec, workspace: Workspace | None = None) -> str:
    """Keep the settings that were last used with the spec's model. Returns why that was not possible, or "".

    Never raises for the disk: a run does not fail because its settings could not be remembered. A spec whose prompts
    are to be left out of files loses them here too.
    """
    if spec.output.strip_prompt:
        spec = spec.with_(prompt="", negative_prompt="")
    try:
        atomic_write(_path(spec.model, workspace, ".last.json"), spec.to_json(indent=2) + "\n")
    except WanlabError as error:
        return str(error)
    return ""


def read_last(model_id: str, workspace: Workspace | None = None) -> GenerationSpec | None:
    """The settings last used with a model, of this or an earlier schema; None if there are none.

    Raises WanlabError for a file that cannot be read: it is the user's, so it is neither ignored nor deleted.
    """
    path = _path(model_id, workspace, ".last.json")
    if path.is_file():
        return GenerationSpec.from_json(path)
    earlier = _path(model_id, workspace, ".json")
    return GenerationSpec.from_json(earlier) if earlier.is_file() and _is_spec(earlier) else None


def _is_spec(path: Path) -> bool:
    """Whether a file holds a full spec, and no settings that someone chose."""
    document = read_json(path)
    return isinstance(document, dict) and document.keys() >= _OF_A_SPEC


def _path(model_id: str, workspace: Workspace | None, suffix: str) -> Path:
    return safe_path((workspace or find_workspace()).configs, f"{model_id}{suffix}")


def _checked(model_id: str, settings: Mapping[str, Any]) -> Settings:
    """The settings nested by part, after a full spec with them was made."""
    nested, _ = LAYOUT.merge({}, plain(settings))
    GenerationSpec.of({**nested, "model": model_id})
    return nested
