"""A spec as a form: its groups, bounds, choices and help come from the spec's own JSON schema."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from wanlab.errors import WanlabError
from wanlab.inline import ellipsis
from wanlab.spec import PARTS, GenerationSpec, MethodPart, Part, plain
from wanlab.widgets._closing import close
from wanlab.widgets._fields import Field, Line, Mask, Words, make_field
from wanlab.widgets._media import media_fields

if TYPE_CHECKING:
    from wanlab.models import Offers

FRONT = ("text.prompt", "sampling.seed", "sampling.num_steps", "guidance.guidance_scale")
"""Settings that are always in sight; the others lie folded in their groups."""
_ALWAYS = ("size",)  # groups whose settings are in the title even where they are the default
_NEVER = frozenset({"weights.dtype", "weights.vae_dtype", "memory.on_oom"})  # what no loaded model leaves open
_MOST_STEPS = 10_000  # of a mask
_UNTIL_NARROWED = _NEVER | {f"media.{leaf}" for leaf in PARTS["media"].model_fields}
_TITLE = 90  # characters of a folded group's title


class SpecForm(widgets.VBox):
    """Every setting that there is a choice for. `spec` reads the form and fills it.

    Settings without an input (the weights of a loaded model) pass from the spec that was written to the one that is
    read. `narrow(model.offers)` leaves only what the model can do, shows the options of methods and takes the model's
    media, which are stored as they are given; until then no method, and so no torch, is imported. Titles of folded
    groups tell what differs from `default`.
    Any thread may call.
    """

    def __init__(
        self, spec: GenerationSpec, offers: Offers | None = None, default: GenerationSpec | None = None
    ) -> None:
        self._guard = threading.RLock()  # a panel narrows its form in the thread that loads the model
        self._base = spec
        self._usual = (default or spec).to_dict()
        self._quiet = True
        self._narrowed = False
        self._hidden: frozenset[str] = frozenset()
        self._listeners: list[Callable[[], None]] = []
        self._options: dict[str, dict[str, Field]] = {}
        self._shown: dict[str, type[Part]] = {}  # whose options these are
        self._fields = {f.name: f for name, part in PARTS.items() for f in _fields_of(part, name)}
        self._rows = {
            name: _row(field, wide=isinstance(field, Line) and field.is_long) for name, field in self._fields.items()
        }
        self._option_rows = {name: widgets.VBox() for name, part in PARTS.items() if issubclass(part, MethodPart)}
        self._groups = {name: self._group(name) for name in PARTS}
        front = [self._rows[name] for name in FRONT]
        super().__init__([*front, *(group for group in self._groups.values() if group is not None)])
        self.add_class("wanlab-form")
        for field in self._fields.values():
            field.observe(self._changed)
        for name in self._option_rows:
            if (method := self._fields.get(f"{name}.method")) is not None:
                method.widget.observe(lambda change, name=name: self._new_method(name, change["new"]), "value")
        self.spec = spec
        self._hide(_UNTIL_NARROWED if offers is None else frozenset())
        if offers is not None:
            self.narrow(offers)

    def _group(self, name: str) -> Any:
        """The folded settings of a part; None where it has none besides those in front."""
        rows = [row for field, row in self._rows.items() if field.startswith(f"{name}.") and field not in FRONT]
        if not rows:
            return None
        box = widgets.VBox([*rows, *([self._option_rows[name]] if name in self._option_rows else [])])
        return widgets.Accordion([box], titles=[name], selected_index=None)

    @property
    def spec(self) -> GenerationSpec:
        """The spec that the form shows. Raises WanlabError for a field that cannot be read and for illegal values."""
        with self._guard:
            changes = self._changes()
            return self._base.with_(**changes) if changes else self._base

    @spec.setter
    def spec(self, spec: GenerationSpec) -> None:
        with self._guard:
            options = {name: _options_of(spec, name) for name in self._option_rows} if self._narrowed else {}
            self._base, self._quiet = spec, True
            try:
                nested = spec.to_dict()
                for name, field in self._fields.items():
                    part, _, leaf = name.partition(".")
                    field.write(nested[part][leaf])
                for name, values in options.items():
                    self._show_options(name, values)
            finally:
                self._quiet = False
            self._changed()

    def _changes(self) -> dict[str, Any]:
        """What the fields say that differs from the spec that was written; a changed method part comes as a whole."""
        nested, changes = self._base.to_dict(), {}
        for name, field in self._fields.items():
            part, _, leaf = name.partition(".")
            value = field.read()
            if value != nested[part][leaf]:
                changes[name] = value
        for part, fields in self._options.items():
            options = {name: field.read() for name, field in fields.items()}
            chosen = changes.pop(f"{part}.method", None)
            written = _options_of(self._base, part) if chosen is None else {}
            if chosen is not None or any(written.get(name) != value for name, value in options.items()):
                changes[part] = {"method": chosen or nested[part]["method"], **written, **options}
        return changes

    def field(self, name: str) -> Field:
        """The input of a setting, by its dotted name. Raises WanlabError for a setting without one."""
        if name not in self._fields:
            raise WanlabError(f"The form has no input for {name!r}", choices=self._fields)
        return self._fields[name]

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener()` after any change of any field; it may find that `spec` raises."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        with self._guard:
            if self._quiet:
                return
            for name, group in self._groups.items():
                if group is not None:
                    group.set_title(0, self._title(name))
            for listener in self._listeners:
                listener()

    def _title(self, part: str) -> str:
        """A group's name and its settings that are not the default; sizes always."""
        words = []
        for name, field in self._visible(part):
            leaf = name.partition(".")[2]
            if name not in FRONT and (part in _ALWAYS or field.is_other_than(self._usual[part][leaf])):
                words.append(field.words() if leaf == "method" else f"{leaf} {field.words()}")
        if part in self._options:
            usual = _defaults(self._shown[part])
            changed = ((n, f) for n, f in self._options[part].items() if n not in usual or f.is_other_than(usual[n]))
            words += [f"{name} {field.words()}" for name, field in changed]
        return ellipsis(f"{part} · {', '.join(words)}" if words else part, _TITLE)

    def _visible(self, part: str) -> Iterable[tuple[str, Field]]:
        return ((n, f) for n, f in self._fields.items() if n.startswith(f"{part}.") and n not in self._hidden)

    # Methods and their options

    def _option_class(self, part: str) -> type[Part]:
        cls: type[MethodPart] = PARTS[part]  # type: ignore[assignment]
        method = self._fields[f"{part}.method"].widget.value if f"{part}.method" in self._fields else cls().method
        return cls.choices().options_of(method)

    def _new_method(self, part: str, _: str) -> None:
        with self._guard:
            if not self._quiet and self._narrowed:
                self._show_options(part, {})
                self._changed()

    def _show_options(self, part: str, values: Mapping[str, Any]) -> None:
        """Inputs for the options of the part's method, with `values` over the method's own defaults."""
        cls = self._option_class(part)
        is_new = self._shown.get(part) is not cls
        fields = {f.name.partition(".")[2]: f for f in _fields_of(cls, part, "None")} if is_new else self._options[part]
        quiet, self._quiet = self._quiet, True
        try:
            for name, value in {**self._first_masks(fields), **_defaults(cls), **values}.items():
                if name in fields:
                    fields[name].write(value)
        finally:
            self._quiet = quiet
        if not is_new:
            return
        for field in fields.values():
            field.observe(self._changed)
        self._options[part], self._shown[part] = fields, cls
        earlier = self._option_rows[part].children
        self._option_rows[part].children = [_row(field) for field in fields.values()]
        close(*earlier)

    def _first_masks(self, fields: Mapping[str, Field]) -> dict[str, Any]:
        """A mask of the right length that changes nothing, to start from."""
        try:
            num_steps = self._fields["sampling.num_steps"].read()
        except WanlabError:  # what is typed there is no number yet
            num_steps = self._base.sampling.num_steps
        num_steps = num_steps if isinstance(num_steps, int) and 0 < num_steps <= _MOST_STEPS else 1
        num_steps = max(1, int(num_steps * self._strength()))
        return {name: [True] * num_steps for name, field in fields.items() if isinstance(field, Mask)}

    def _strength(self) -> float:
        """The share of the steps that run, by denoising_strength."""
        field = self._fields.get("sampling.denoising_strength")
        try:
            found = self._base.sampling.denoising_strength if field is None else field.read()
        except WanlabError:  # as above
            found = 1.0
        return float(found) if isinstance(found, int | float) else 1.0

    def _keeps_method(self, part: str) -> bool:
        field = self._fields.get(f"{part}.method")
        return field is None or field.read() == getattr(self._base, part).method

    # What a model can do

    def narrow(self, offers: Offers) -> None:
        """Hide settings without use, offer only the legal words, set the bounds, show the options of methods."""
        with self._guard:
            options = {part: _options_of(self._base, part) for part in self._option_rows if self._keeps_method(part)}
            self._quiet = self._narrowed = True
            try:
                for part in self._option_rows:
                    self._show_options(part, options.get(part, {}))
                self._add_media(offers.unused)
                self._offer(offers)
            finally:
                self._quiet = False
            self._changed()

    def _add_media(self, unused: frozenset[str]) -> None:
        """Inputs for the media that the model takes; most models take few of the kinds there are."""
        given, part = self._base.to_dict()["media"], PARTS["media"]
        for field in media_fields(part, "media", unused | self._fields.keys()):
            field.write(given[field.name.partition(".")[2]])
            field.observe(self._changed)
            self._fields[field.name], self._rows[field.name] = field, _row(field)
        rows = (self._rows.get(f"media.{leaf}") for leaf in part.model_fields)
        self._groups["media"].children[0].children = [row for row in rows if row is not None]

    def _offer(self, offers: Offers) -> None:
        for name, words in offers.choices.items():
            field = self._fields.get(name)
            if isinstance(field, Words):
                field.choose_from(words)
        for name, bounds in offers.bounds.items():
            if name in self._fields:
                self._fields[name].limit(*bounds)
        single = {n for n, f in self._fields.items() if isinstance(f, Words) and len(f.widget.options) < 2}
        self._hide(offers.unused | single)

    def _hide(self, names: frozenset[str] | set[str]) -> None:
        """Show all settings but these, and the groups in which something is left."""
        self._hidden = frozenset(names)
        for name, row in self._rows.items():
            row.layout.display = "none" if name in self._hidden else None
        for part, group in self._groups.items():
            if group is not None:
                shown = any(name not in FRONT for name, _ in self._visible(part)) or self._options.get(part)
                group.layout.display = None if shown else "none"


def _fields_of(record: type[Part], prefix: str, empty: str = "the model's own") -> list[Field]:
    """An input for each field of a record that leaves a choice, named `prefix.field`; methods' options have none.

    empty: what an optional field means that is left empty.
    """
    schema = record.model_json_schema()
    properties = {n: s for n, s in schema.get("properties", {}).items() if n != "options"}
    found = (make_field(f"{prefix}.{name}", node, empty) for name, node in properties.items())
    return [field for field in found if field is not None]


def _options_of(spec: GenerationSpec, part: str) -> dict[str, Any]:
    """All options of a part's method as the spec means them, those too that it leaves out and that have no input.

    Raises WanlabError for options that the method does not have and for illegal ones.
    """
    bound: Part = getattr(spec, part).bind()
    return bound.model_dump(mode="json", by_alias=True)


def _defaults(record: type[Part]) -> dict[str, Any]:
    """The options that have a default, as JSON data."""
    fields = record.model_fields.items()
    return {n: plain(f.get_default(call_default_factory=True)) for n, f in fields if not f.is_required()}


def _row(field: Field, wide: bool = False) -> Any:
    """The input and its help beside it, below it where the page is narrow."""
    field.note.layout.flex = "1 1 100%" if wide else "1 1 180px"
    row = widgets.Box([field.widget, field.note], layout={"flex_flow": "row wrap", "align_items": "center"})
    row.add_class("wanlab-wide" if wide else "wanlab-row")
    return row
