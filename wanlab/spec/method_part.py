"""Parts that choose a method by name and carry that method's own options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, PlainSerializer
from pydantic_core import CoreSchema, core_schema

from wanlab.errors import WanlabError, unknown
from wanlab.registry import Registry
from wanlab.spec.part import FrozenDict, HashDefault, Part, marker, plain
from wanlab.spec.problems import nearest


class NameIn:
    """Marks a word that names an entry of a registry, or one of `words` that mean themselves ("none", "auto").

    Checking a name imports no method. In the JSON schema the names of the day are an enum, for forms.
    """

    def __init__(self, kind: str, registry: Registry[Any] | None, *words: str) -> None:
        self.kind = kind
        self.registry = registry
        self.words = words

    def names(self) -> list[str]:
        """All legal words."""
        return [*self.words, *(n for n in (self.registry.names() if self.registry else ()) if n not in self.words)]

    def check(self, name: str) -> str:
        """Return `name` if it is legal, else raise WanlabError with the nearest names."""
        if name not in self.words and name not in (names := self.names()):
            raise unknown(self.kind, name, names)
        return name

    def options_of(self, name: str, registry: Registry[Any] | None = None) -> type[Part]:
        """The `Options` class of a method; imports the method's file."""
        registry = registry or self.registry
        if name in self.words or registry is None:
            return NoOptions
        found = getattr(registry.get(name), "Options", NoOptions)
        assert issubclass(found, Part), f"{registry.kind} {name}: Options must be a Part"
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}


class NoOptions(Part):
    """The options of a method that has none."""


# Frozen, so lists are tuples: pydantic would warn about them when it dumps a JsonValue.
Options = Annotated[dict[str, JsonValue], AfterValidator(FrozenDict), PlainSerializer(dict, return_type=dict[str, Any])]


class MethodPart(Part):
    """`{method, options}` and the leaves that all methods of the part share.

    `method` in a subclass is annotated with the `NameIn` that knows the names and their options.
    """

    method: str
    """Name of the method."""
    options: Options = Field(default_factory=FrozenDict)
    """The method's own options by name; those left out have the method's defaults."""

    def __init__(self, /, **values: Any) -> None:
        values = plain(values)
        loose = {k: values.pop(k) for k in list(values) if k not in type(self).model_fields}
        if loose:
            values["options"] = {**values.get("options", {}), **loose}
        self.fill_from(values)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def choices(cls) -> NameIn:
        """The annotation that knows the part's methods."""
        found = marker(cls.model_fields["method"], NameIn)
        assert found is not None, f"{cls.__name__}.method lacks its NameIn"
        return found  # type: ignore[no-any-return]

    def bind(self, registry: Registry[Any] | None = None) -> Part:
        """The method's checked `Options`; imports the method's file, from `registry` or the part's own.

        An option that is not stored was added to the method after the spec was written: it reads as its HashDefault.
        Raises WanlabError for an option of another method, a missing or an illegal one.
        """
        cls = self.choices().options_of(self.method, registry)
        frozen = {n: m.value for n, f in cls.model_fields.items() if (m := marker(f, HashDefault)) is not None}
        return self._bind_to(cls, {**frozen, **self.options})

    def changed(self) -> dict[str, Any]:
        """The options whose values are not the method's own defaults; imports the method's file. Raises as `bind`."""
        bound = self.bind()
        fields = type(bound).model_fields.items()
        values = {n: getattr(bound, n) for n, f in fields if f.is_required() or n in self.options}
        usual = {n: f.get_default(call_default_factory=True) for n, f in fields if not f.is_required()}
        return {n: value for n, value in values.items() if n not in usual or usual[n] != value}

    def needs_filling(self) -> bool:
        """Whether something was chosen: not the part's default method without options, nor a word like `none`."""
        default = type(self).model_fields["method"].default
        return bool(self.options) or self.method not in (default, *self.choices().words)

    def filled(self) -> Self:
        """The same part with every option written out, so that it means the same when a default changes later."""
        options = self._bind_to(self.choices().options_of(self.method), self.options)
        return self.with_(options=options.model_dump(mode="json", by_alias=True))

    def _bind_to(self, cls: type[Part], options: Mapping[str, Any]) -> Part:
        kind = self.choices().kind
        assert not set(cls.model_fields) & set(type(self).model_fields), f"{kind} {self.method}: an option hides a leaf"
        legal = sorted(cls.model_fields)
        if wrong := sorted(set(options) - set(legal)):
            text = f"{kind} {self.method!r} has no option {wrong[0]!r}"
            hint = nearest(wrong[0], legal) or f"Options belong to one method: give {kind} and its options together."
            raise WanlabError(text, choices=legal, remedy=hint)
        return cls.parse(options, prefix=kind)
