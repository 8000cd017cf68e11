"""One input for one setting, made from its JSON schema: type, bounds, choices and help all come from there.

`read` gives JSON data and `write` takes it, so that what was written and not touched is read back unchanged.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from wanlab.errors import WanlabError, shorten
from wanlab.files import read_json

_LONG = 1_000  # characters from which a text gets several lines
_LAYOUT = {"width": "330px", "max_width": "100%", "flex": "0 1 330px"}
_LABEL = 130  # pixels of a name, more where it is longer
_LETTER = 8.4
_BOX = 290  # pixels for a checkbox and its name

Schema = Mapping[str, Any]


class Field:
    """A setting's name, its widget, and the way between the widget's value and JSON."""

    def __init__(self, name: str, schema: Schema, widget: Any) -> None:
        self.name = name
        self.widget = widget
        self.widget.description = name.rpartition(".")[2]
        self.note = widgets.HTML()
        self.note.add_class("wanlab-help")
        self.explain(str(schema.get("description", "")))

    def explain(self, text: str) -> None:
        """Show what the setting means, beside it and over it."""
        self.help = text
        self.widget.tooltip = text
        self.note.value = f"<span>{html.escape(text)}</span>"

    def read(self) -> Any:
        """The value as JSON data. Raises WanlabError for a text that is none."""
        return self.widget.value

    def write(self, value: Any) -> None:
        """Show a value."""
        self.widget.value = value

    def is_other_than(self, value: Any) -> bool:
        """Whether the input says something else than `value`, or nothing that can be read."""
        try:
            return bool(self.read() != value)
        except WanlabError:
            return True

    def words(self) -> str:
        """The value in a title."""
        return str(self.widget.value)

    def observe(self, changed: Callable[[], None]) -> None:
        """Call `changed()` whenever the value changes, by a hand or by `write`."""
        self.widget.observe(lambda _: changed(), "value")

    def limit(self, smallest: int, largest: int, step: int) -> None:
        """Tell the bounds that a model adds; who leaves them is told by the check of the spec."""
        offset = f"{smallest % step} more than " if smallest % step else ""
        rule = f", {offset}a multiple of {step}" if step > 1 else ""
        self.explain(f"{self.help.partition(' Here: ')[0]} Here: {smallest} to {largest}{rule}.")


class Words(Field):
    """One of some words."""

    def __init__(self, name: str, schema: Schema) -> None:
        super().__init__(
            name, schema, widgets.Dropdown(options=list(schema["enum"]), layout=_LAYOUT, style=_label(name))
        )

    def write(self, value: Any) -> None:
        if value not in self.widget.options:  # a model offers fewer words; what the spec says is shown all the same
            self.widget.options = [*self.widget.options, value]
        self.widget.value = value

    def choose_from(self, words: Sequence[str]) -> None:
        """Offer these words, and the present one if it is another."""
        value = self.widget.value
        self.widget.options = [*words, *([] if value in words else [value])]
        self.widget.value = value


class Switch(Field):
    """Yes or no."""

    def __init__(self, name: str, schema: Schema) -> None:
        left = min(_LABEL, round(_BOX - _LETTER * len(name.rpartition(".")[2])))
        style = {"description_width": f"{left}px"}
        super().__init__(name, schema, widgets.Checkbox(indent=True, layout=_LAYOUT, style=style))


class Line(Field):
    """Text, of one line or of several."""

    def __init__(self, name: str, schema: Schema) -> None:
        self.is_long = schema.get("maxLength", 0) >= _LONG
        if self.is_long:
            layout = {"width": "100%", "height": "66px"}
            widget: Any = widgets.Textarea(continuous_update=False, layout=layout, style=_label(name))
        else:
            widget = widgets.Text(continuous_update=False, layout=_LAYOUT, style=_label(name))
        super().__init__(name, schema, widget)


class Data(Field):
    """Anything else, typed as JSON: numbers, lists, tables.

    A browser's own number inputs would not do: they change what is typed ("2.5" is 25, "x" the old number), silently.
    """

    def __init__(self, name: str, schema: Schema, empty: str = "") -> None:
        self._optional = bool(empty)
        kinds = {schema.get("type"), *(choice.get("type") for choice in schema.get("anyOf", ()))}
        self._is_number = bool(kinds & {"integer", "number"})
        hint = f"empty: {empty}" if empty else ""
        super().__init__(
            name,
            schema,
            widgets.Text(placeholder=hint, continuous_update=False, layout=_LAYOUT, style=_label(name)),
        )

    def read(self) -> Any:
        text = self.widget.value.strip()
        if not text:
            if self._optional:
                return None
            raise WanlabError(f"{self.name} is empty", remedy="Give a value")
        try:
            [value] = read_json(f"[{text}]")
        except ValueError:  # not JSON, or several values
            remedy = 'Write it as JSON: 7, [1.0, 0.5, 0.0], {"a": 1}'
            remedy = "Write a number, such as 7 or 0.5" if self._is_number else remedy
            raise WanlabError(f"{self.name} = {shorten(text, 80)} cannot be read", remedy=remedy) from None
        return value

    def write(self, value: Any) -> None:
        self.widget.value = "" if value is None and self._optional else json.dumps(value, ensure_ascii=False)


class Mask(Field):
    """A list of yes and no, typed as 1 and 0: "11010"; where it is optional, nothing is none."""

    def __init__(self, name: str, schema: Schema, optional: bool = False) -> None:
        self._optional = optional
        super().__init__(
            name,
            schema,
            widgets.Text(placeholder="1 or 0 a step", continuous_update=False, layout=_LAYOUT, style=_label(name)),
        )

    def read(self) -> Any:
        text = re.sub(r"[\s,]", "", self.widget.value)
        if not text and self._optional:
            return None
        if not re.fullmatch("[01]*", text):
            raise WanlabError(
                f"{self.name} = {shorten(text, 80)} is no mask", remedy="Write 1 or 0 for each step: 1010"
            )
        return [c == "1" for c in text]

    def write(self, value: Any) -> None:
        self.widget.value = "" if value is None and self._optional else "".join("01"[bool(v)] for v in value)


def make_field(name: str, schema: Schema, empty: str = "the model's own") -> Field | None:
    """The input for a setting; None where there is nothing to choose, and for records such as media.

    empty: what an input means that is left empty, where that is legal.
    """
    if "anyOf" in schema:
        inner = [s for s in schema["anyOf"] if s.get("type") != "null"]
        if any("$ref" in s for s in inner):
            return None
        optional = len(inner) < len(schema["anyOf"])
        if len(inner) == 1 and _is_mask(inner[0]):
            return Mask(name, schema, optional)
        return Data(name, schema, empty if optional else "")
    if "const" in schema:
        return None
    kind = schema.get("type")
    if "enum" in schema:
        return Words(name, schema) if len(schema["enum"]) > 1 else None
    if kind == "boolean":
        return Switch(name, schema)
    if kind == "string":
        return Line(name, schema)
    if kind == "array" and (schema.get("maxItems") == 0 or "$ref" in schema.get("items", {})):
        return None
    return Mask(name, schema) if _is_mask(schema) else Data(name, schema)


def _label(name: str) -> dict[str, str]:
    """The style in which a setting's name is not cut."""
    return {"description_width": f"{max(_LABEL, round(_LETTER * len(name.rpartition('.')[2])))}px"}


def _is_mask(schema: Schema) -> bool:
    return schema.get("type") == "array" and schema.get("items", {}).get("type") == "boolean"
