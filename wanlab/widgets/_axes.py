"""Inputs for the axes of a grid: which setting, which values, and whether it goes with the axis above."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from wanlab.errors import WanlabError
from wanlab.spec import PARTS, GenerationSpec, MethodPart, plain
from wanlab.sweeps._settings import flat_name
from wanlab.widgets._buttons import button
from wanlab.widgets._fields import Field, Line, Mask, Switch, Words
from wanlab.widgets._values import read_values, values_as_text
from wanlab.widgets.form import _NEVER, _fields_of

if TYPE_CHECKING:
    from wanlab.models import Offers

_FIRST = ("cache", "attention", "sampler", "num_steps", "guidance", "guidance_scale", "flow_shift", "seed", "prompt")
_NOT_VARIED = ("media", "weights", "output")  # parts


class Choice:
    """A setting that may be varied: its flat name, its help, the words it may be, how values are typed."""

    def __init__(self, field: Field, words: Sequence[str]) -> None:
        self.name = flat_name(field.name)
        self.help = field.help
        part = field.name.partition(".")[0]
        self.is_method = self.name == part and issubclass(PARTS[part], MethodPart)
        self.words: tuple[Any, ...] = (False, True) if isinstance(field, Switch) else tuple(words)
        self.is_text = isinstance(field, Line)
        self.is_mask = isinstance(field, Mask)


def choices(base: GenerationSpec, offers: Offers | None) -> dict[str, Choice]:
    """Settings to vary, the usual ones first; the options of the base's methods too. Only what the model can do."""
    hidden = _NEVER | (offers.unused if offers is not None else frozenset())
    found: dict[str, Choice] = {}
    for part, cls in PARTS.items():
        if part in _NOT_VARIED:
            continue
        fields = _fields_of(cls, part)
        if issubclass(cls, MethodPart) and getattr(base, part).needs_filling():
            fields += _fields_of(cls.choices().options_of(getattr(base, part).method), part, "None")
        for field in fields:
            words = _words(field, offers)
            if field.name not in hidden and not (isinstance(field, Words) and len(words) < 2):
                choice = Choice(field, words)
                found[choice.name] = choice
            field.widget.close()
            field.note.close()
    order = [*(name for name in _FIRST if name in found), *(name for name in found if name not in _FIRST)]
    return {name: found[name] for name in order}


def _words(field: Field, offers: Offers | None) -> Sequence[str]:
    if not isinstance(field, Words):
        return ()
    return (offers.choices.get(field.name) if offers is not None else None) or tuple(field.widget.options)


class Axis(widgets.Box):
    """One axis: `read()` gives its values, `is_zipped` whether it goes with the axis above it.

    Untouched it returns the very values that it was given.
    """

    def __init__(
        self, choice: Choice, values: Any, changed: Callable[[], None], remove: Callable[[Axis], None], zipped: bool
    ) -> None:
        self.choice = choice
        self._given = values
        name = widgets.HTML(f'<b title="{html.escape(choice.help, quote=True)}">{html.escape(choice.name)}</b>')
        name.layout.min_width = "110px"
        self._ticks = {word: self._tick(word) for word in choice.words}
        hint = {"placeholder": _hint(choice), "layout": {"flex": "1 1 240px", "max_width": "480px"}}
        if choice.is_text:
            hint["layout"] |= {"height": "66px"}
            self._text: Any = widgets.Textarea(continuous_update=False, **hint)
        else:
            self._text = widgets.Text(continuous_update=False, **hint)
        self._text.tooltip = _hint(choice)
        if choice.words and not choice.is_method:
            self._text.layout.display = "none"
        self._zip = widgets.Checkbox(zipped, description="with the one above", indent=False, layout={"width": "auto"})
        self._zip.tooltip = "Go through the values of both together, first with first, instead of all combinations"
        away = button("", f"Do not vary {choice.name}", lambda: remove(self), "times")
        away.layout.width = "34px"
        away.add_class("wanlab-small")
        self._write(values)
        self._first = self._state()
        for part in (*self._ticks.values(), self._text, self._zip):
            part.observe(lambda _: changed(), "value")
        inputs = widgets.Box(
            [*self._ticks.values(), self._text],
            layout={"flex_flow": "row wrap", "flex": "1 1 300px", "align_items": "center"},
        )
        layout = {"flex_flow": "row wrap", "align_items": "center"}
        super().__init__([away, name, inputs, self._zip], layout=layout)
        self.add_class("wanlab-entry")
        self.add_class("wanlab-axis")

    def _tick(self, word: Any) -> Any:
        box = widgets.Checkbox(
            False, description=str(word), indent=False, layout={"width": "auto", "margin": "0 10px 0 0"}
        )
        box.tooltip = f"Try {word}"
        return box

    def _write(self, values: Any) -> None:
        listed = list(values)
        for word, box in self._ticks.items():
            box.value = any(value == word and type(value) is type(word) for value in listed)
        rest = [value for value in listed if not any(box.value and word == value for word, box in self._ticks.items())]
        if self.choice.is_text:
            self._text.value = "\n".join(map(str, listed))
        elif self.choice.is_mask:
            self._text.value = ", ".join("".join("01"[bool(v)] for v in value or ()) for value in listed)
        elif isinstance(values, range):
            self._text.value = values_as_text(values)
        else:
            self._text.value = values_as_text(rest)
        if rest:
            self._text.layout.display = None

    def _state(self) -> tuple[Any, ...]:
        return (self._text.value, *(box.value for box in self._ticks.values()))

    @property
    def is_zipped(self) -> bool:
        """Whether it goes with the axis above it."""
        return bool(self._zip.value)

    def allow_zip(self, allowed: bool) -> None:
        """The first axis has none above it."""
        self._zip.layout.display = None if allowed else "none"
        if not allowed and self._zip.value:
            self._zip.value = False

    def read(self) -> Any:
        """The values, a list or a range. Raises WanlabError for what cannot be read and where there is none."""
        if self._state() == self._first and self._given:
            return self._given
        name, text = self.choice.name, self._text.value
        ticked = [word for word, box in self._ticks.items() if box.value]
        if self.choice.is_text:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if not lines:
                raise WanlabError(f"{name} has no values", remedy="Write one a line, or take the axis away")
            return lines
        if self.choice.words and not text.strip():
            if not ticked:
                raise WanlabError(f"{name} has no values", remedy="Tick some, or take the axis away")
            return ticked
        values = read_values(name, text)
        if self.choice.is_mask:
            values = [[c == "1" for c in str(value)] for value in text.replace(" ", "").split(",") if value]
        return [*ticked, *values] if ticked else values


def _hint(choice: Choice) -> str:
    if choice.is_method:
        return "with options: magcache(threshold=0.1)" if choice.name == "cache" else "with options: name(option=value)"
    if choice.is_text:
        return "one a line"
    return "1010, 1100" if choice.is_mask else "2, 4, 6 or range(4)"


def first_values(base: GenerationSpec, choice: Choice) -> list[Any]:
    """What an axis starts with: the base's own value."""
    part = getattr(base, choice.name, None)
    if choice.is_method and isinstance(part, MethodPart):
        changed: Mapping[str, Any] = part.changed()
        return [{"method": part.method, **plain(dict(changed))} if changed else part.method]
    return [plain(base.flat().get(choice.name))]
