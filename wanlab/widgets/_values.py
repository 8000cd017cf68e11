"""What is typed as the values of an axis: "2, 4, 6", "range(4)", "none, fixed(a=1)". Nothing is executed."""

from __future__ import annotations

import ast
from typing import Any

from wanlab.errors import WanlabError, shorten
from wanlab.sweeps._points import MOST

_REMEDY = "Write values with commas between them: 2, 4, 6 or range(4)"
_RANGES = {"range": range, "seeds": lambda n, start=0: range(start, start + n)}


def read_values(name: str, text: str) -> list[Any] | range:
    """The values of a text; a single range stays one. Raises WanlabError for what is no value, and for none.

    Words need no quotes, a method with options is word(option=value), null and true are as in JSON.
    """
    try:
        parts = ast.parse(f"[{text.strip().rstrip(',')}\n]", mode="eval").body
        assert isinstance(parts, ast.List)
        found = [_value(node) for node in parts.elts]
    except (SyntaxError, ValueError, TypeError, AssertionError, MemoryError, RecursionError):
        raise WanlabError(f"{name} = {shorten(text, 80)} cannot be read", remedy=_REMEDY) from None
    if not found:
        raise WanlabError(f"{name} has no values", remedy=f"{_REMEDY}, or take the axis away")
    if sum(len(value) for value in found if isinstance(value, range)) > MOST:
        raise WanlabError(f"{name} has more than {MOST:,} values", remedy="Vary less")
    if len(found) == 1 and isinstance(found[0], range):
        return found[0]
    return [item for value in found for item in (value if isinstance(value, range) else [value])]


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in _RANGES:
            made: range = _RANGES[node.func.id](*map(ast.literal_eval, node.args), **_keywords(node))
            return made
        if node.args:
            raise ValueError("options have names")
        return {"method": node.func.id, **_keywords(node)}
    return ast.literal_eval(node)


def _keywords(node: ast.Call) -> dict[str, Any]:
    if any(k.arg is None for k in node.keywords):
        raise ValueError("options have names")
    return {str(k.arg): _value(k.value) for k in node.keywords}


def values_as_text(values: Any) -> str:
    """Values as `read_values` reads them."""
    if isinstance(values, range):
        return f"range({values.stop})" if not values.start and values.step == 1 else repr(values)
    return ", ".join(_text(value) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("method"), str):
        options = ", ".join(f"{name}={part!r}" for name, part in value.items() if name != "method")
        return f"{value['method']}({options})" if options else value["method"]
    return value if isinstance(value, str) and value.isidentifier() else repr(value)
