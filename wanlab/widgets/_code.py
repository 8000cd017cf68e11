"""Specs and grids as the cell that makes them."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from typing import Any

from wanlab import catalog
from wanlab.errors import WanlabError
from wanlab.spec import PARTS, GenerationSpec, MethodPart, plain
from wanlab.workspace import find_workspace

_LINE = 100  # characters of a call before it gets a line an argument


def spec_as_code(spec: GenerationSpec) -> str:
    """Lines that load the model and make exactly this spec."""
    return "\n".join(["import wanlab", "", *base_lines(spec, "spec")])


def base_lines(spec: GenerationSpec, name: str) -> list[str]:
    """Lines that set `model` and, under `name`, the spec: by what differs from the model's defaults, else as JSON."""
    load = f"model = wanlab.load({spec.model!r})"
    try:
        changes = changes_from(default_of(spec), spec)
        return [load, f"{name} = {call('model.spec', changes)}"]
    except WanlabError:  # a model that is not in the catalogue, or settings that no change leads to
        return [load, f"{name} = wanlab.GenerationSpec.from_json(", f"    {spec.to_json()!r}", ")"]


def default_of(spec: GenerationSpec) -> GenerationSpec:
    """What `model.spec()` is for the spec's model. Raises WanlabError for one that the catalogue does not have."""
    workspace = find_workspace()
    return catalog.default_spec(catalog.find(spec.model, workspace), workspace)


def changes_from(base: GenerationSpec, spec: GenerationSpec) -> dict[str, Any]:
    """Keyword arguments with which `base.with_(...)` is `spec`. Raises WanlabError where none do that."""
    changes: dict[str, Any] = {}
    for name, (_, value) in base.diff(spec).items():
        part, _, leaf = name.partition(".")
        cls = PARTS.get(part)
        if cls is not None and issubclass(cls, MethodPart) and (not leaf or leaf not in cls.model_fields):
            changes[part] = _method(getattr(spec, part))
        else:
            changes[leaf or part] = plain(value)
    made = base.with_(**changes)
    if made != spec:
        raise WanlabError("The spec is not what these changes make", remedy="Write it as JSON")
    return changes


def _method(part: MethodPart) -> Any:
    """A method with the options that are not its own defaults; the word alone where there are none."""
    changed = {name: plain(value) for name, value in part.changed().items()}
    return {"method": part.method, **changed} if changed else part.method


def call(function: str, arguments: Mapping[str, Any], first: Iterable[str] = ()) -> str:
    """A call as code, over several lines where one would be long. Values are shown as Python has them."""
    parts = [*first, *(f"{name}={source(value)}" for name, value in _keywords(arguments).items())]
    others = {k: v for k, v in arguments.items() if not _is_keyword(k)}
    if others:
        parts.append(f"**{source(others)}")
    line = f"{function}({', '.join(parts)})"
    if len(line) <= _LINE and "\n" not in line:
        return line
    inside = "".join(f"    {part},\n" for part in parts)
    return f"{function}(\n{inside})"


def _keywords(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {k.replace(".", "__"): v for k, v in arguments.items() if _is_keyword(k)}


def _is_keyword(name: str) -> bool:
    name = name.replace(".", "__")
    return name.isidentifier() and not keyword.iskeyword(name)


def source(value: Any) -> str:
    """A value as code: lists for tuples, and a range as itself."""
    if isinstance(value, range):
        return repr(value) if value.start or value.step != 1 else f"range({value.stop})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {source(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(source(part) for part in value)}]"
    return repr(value)
