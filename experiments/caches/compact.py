"""JSON that people can read and git can compare: what fits a line is one, lists of numbers fill lines."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 140


def dumps(value: Any, indent: int = 0) -> str:
    """A JSON document, or a part of one that stands `indent` spaces deep; its first line is not indented."""
    text = _value(value, indent)
    return text + "\n" if indent == 0 else text


def _value(value: Any, indent: int) -> str:
    flat = json.dumps(value)
    if not value or not isinstance(value, dict | list) or (_shallow(value) and len(flat) + indent < WIDTH - 20):
        return flat
    pad, inner = " " * indent, " " * (indent + 2)
    if isinstance(value, dict):
        body = ",\n".join(f"{inner}{json.dumps(key)}: {_value(item, indent + 2)}" for key, item in value.items())
        return f"{{\n{body}\n{pad}}}"
    if not _shallow(value) or isinstance(value[0], str):
        body = ",\n".join(f"{inner}{_value(item, indent + 2)}" for item in value)
        return f"[\n{body}\n{pad}]"
    return f"[\n{_filled(value, inner)}\n{pad}]"


def _shallow(value: dict[str, Any] | list[Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return not any(isinstance(item, dict | list) for item in items)


def _filled(numbers: list[Any], pad: str) -> str:
    lines = [pad]
    for text in ", ".join(map(json.dumps, numbers)).split(" "):
        if len(lines[-1]) + len(text) + 1 > WIDTH - 5:
            lines[-1] = lines[-1].rstrip()
            lines.append(pad)
        lines[-1] += text + " "
    return "\n".join(line.rstrip() for line in lines)
