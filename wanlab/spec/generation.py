"""GenerationSpec: everything that decides a result, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field

from wanlab.errors import WanlabError, shorten
from wanlab.files import read_json
from wanlab.spec import parts
from wanlab.spec.changes import Layout
from wanlab.spec.identity import content, content_id
from wanlab.spec.media_given import with_stored
from wanlab.spec.method_part import MethodPart
from wanlab.spec.migrations import SCHEMA, upgrade
from wanlab.spec.part import HashDefault, Part, Unhashed, marker, plain

if TYPE_CHECKING:
    from typing import Protocol

    class Resolver(Protocol):
        """A loaded model, as far as a spec needs it."""

        def resolve(self, spec: GenerationSpec) -> GenerationSpec: ...


class GenerationSpec(Part):
    """One generation, as data: frozen, checked, equal on every machine.

    Settings are named flat (`num_steps`), dotted (`sampling.num_steps`) or nested (`sampling={"num_steps": 8}`); a
    method's option is `cache.threshold`, or `cache__threshold` where an identifier is needed. Naming a method
    (`cache="fixed"`) drops the options of the earlier one. `model.spec(...)` makes a full one,
    from the model's defaults; `GenerationSpec(...)` alone does not know them, and a model refuses its open sizes.
    """

    schema_version: Annotated[int, Unhashed()] = Field(SCHEMA, alias="schema", ge=SCHEMA, le=SCHEMA)
    """Version of this record's layout."""
    model: Annotated[str, Field(min_length=1, max_length=500)]
    """Id of the model, as in the catalogue."""
    weights: parts.WeightsSpec = parts.WeightsSpec()
    text: parts.TextSpec = parts.TextSpec()
    media: parts.MediaSpec = parts.MediaSpec()
    size: parts.SizeSpec = parts.SizeSpec()
    sampling: parts.SamplingSpec = parts.SamplingSpec()
    guidance: parts.GuidanceSpec = parts.GuidanceSpec()
    cache: parts.CacheSpec = parts.CacheSpec()
    attention: parts.AttentionSpec = parts.AttentionSpec()
    lora: parts.LoraSpec = parts.LoraSpec()
    memory: parts.MemorySpec = parts.MemorySpec()
    compile: parts.CompileSpec = parts.CompileSpec()
    window: parts.WindowSpec = parts.WindowSpec()
    post: parts.PostSpec = parts.PostSpec()
    output: parts.OutputSpec = parts.OutputSpec()

    def __init__(self, /, **settings: Any) -> None:
        nested, _ = LAYOUT.merge({}, plain(settings))
        self.fill_from(nested)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def of(cls, model_default: Mapping[str, Any], /, **changes: Any) -> Self:
        """A full spec: the default settings (nested or flat, with their `model` id), then `changes` as in `with_`."""
        base, touched = LAYOUT.merge({}, plain(model_default))
        return cls._make(base, changes, touched)

    def with_(self, **changes: Any) -> Self:
        """The same spec with some settings changed and everything checked again.

        Accepts leaves, dotted names (through `**{"cache.mask": ...}`), parts as dicts, methods as words and
        `part__option`. Values may be numpy scalars, lists or paths. Media (image="kite.png", a PIL image, frames) are
        stored in the workspace, and the spec holds their MediaRef. Raises WanlabError.
        """
        return type(self)._make(self.to_dict(), changes)

    @classmethod
    def _make(cls, base: Mapping[str, Any], changes: Mapping[str, Any], chosen: set[str] | None = None) -> Self:
        """Merge and check; parts whose method or options were chosen get the options checked and written out."""
        nested, touched = LAYOUT.merge(base, plain(with_stored(changes, base)))
        spec = cls.parse(nested)
        parts_to_fill = (name for name in sorted(touched | (chosen or set())) if getattr(spec, name).needs_filling())
        filled = {name: getattr(spec, name).filled().model_dump(mode="json") for name in parts_to_fill}
        return cls.parse({**nested, **filled}) if filled else spec

    def methods(self) -> dict[str, MethodPart]:
        """The method parts by name: guidance, cache, attention, memory, window."""
        return {name: part for name in LAYOUT.parts if isinstance(part := getattr(self, name), MethodPart)}

    def flat(self) -> dict[str, Any]:
        """Every setting by its flat name, options as `part.option`; `spec.with_(**spec.flat())` is the same spec."""
        return {name.rpartition(".")[2] if not is_option else name: v for name, is_option, v in self._settings()}

    def diff(self, other: GenerationSpec) -> dict[str, tuple[Any, Any]]:
        """Settings that differ, by dotted name: (here, there); an option that one side lacks is None there."""
        here = {name: value for name, _, value in self._settings()}
        there = {name: value for name, _, value in other._settings()}
        pairs = {name: (here.get(name), there.get(name)) for name in [*here, *(n for n in there if n not in here)]}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _settings(self) -> list[tuple[str, bool, Any]]:
        """(dotted name, whether it is an option, value) of every setting; a method is named as its part."""
        found: list[tuple[str, bool, Any]] = [("model", False, self.model)]
        for name in LAYOUT.parts:
            part = getattr(self, name)
            if isinstance(part, MethodPart):
                found += [(name, False, part.method)]
                found += [(f"{name}.{option}", True, value) for option, value in part.options.items()]
            leaves = (leaf for leaf in type(part).model_fields if leaf in LAYOUT.leaves)
            found += [(f"{name}.{leaf}", False, getattr(part, leaf)) for leaf in leaves]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON data."""
        return self.model_dump(mode="json", by_alias=True)

    def to_json(self, indent: int | None = None) -> str:
        """JSON text; on one line unless `indent` is given."""
        return self.model_dump_json(by_alias=True, indent=indent)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a spec from JSON text, a file or decoded JSON, of this or an earlier schema.

        A setting that the document lacks was added later and reads as its HashDefault, else as its default.
        Raises WanlabError for unknown or illegal settings.
        """
        document = plain(source) if isinstance(source, Mapping) else read_json(source)
        if not isinstance(document, dict):
            raise WanlabError(f"The spec is {shorten(document, 40)}", remedy="A spec is a JSON object: {...}.")
        nested, _ = LAYOUT.merge(_recorded_defaults(), upgrade(document))
        return cls.parse(nested)

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the settings' hash, methods' option defaults included, `auto` kept as the word.

        Known before a model is loaded, but only full specs (from `model.spec()` or `of`) compare. Imports the methods.
        """
        return content_id(self.content())

    def content(self) -> dict[str, Any]:
        """What `id` is the hash of: the settings that count, with the methods' options. Imports the methods."""
        payload = content(self)
        for name, part in self.methods().items():
            payload[name] = {**payload.get(name, {}), "options": content(part.bind())}
        return payload

    def resolve(self, model: Resolver) -> GenerationSpec:
        """The spec with every `auto` and None made concrete for a loaded model; raises where they disagree."""
        return model.resolve(self)

    def __repr__(self) -> str:
        return f"GenerationSpec({', '.join(self._shown())})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows: a setting a line."""
        printer.text("GenerationSpec(\n" + "".join(f"    {setting},\n" for setting in self._shown()) + ")")

    def _shown(self) -> list[str]:
        """The settings that are not the spec's bare defaults, as keyword arguments."""
        shown = {k: v for k, v in self.flat().items() if k == "model" or k not in _DEFAULTS or _DEFAULTS[k] != v}
        return [f"{k.replace('.', '__')}={shorten(v, 80)}" for k, v in shown.items()]

    __str__ = __repr__


def _recorded_defaults() -> dict[str, Any]:
    """Nested values of settings that older documents lack."""
    return {
        name: {n: m.value for n, f in cls.model_fields.items() if (m := marker(f, HashDefault)) is not None}
        for name, cls in LAYOUT.parts.items()
    }


PARTS: dict[str, type[Part]] = {
    name: field.annotation
    for name, field in GenerationSpec.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Part)
}
"""The spec's parts by name."""
LAYOUT = Layout(("model", "schema"), PARTS)
LEAVES: dict[str, str] = LAYOUT.leaves
"""Every plain setting and the part it belongs to."""
_DEFAULTS = GenerationSpec(model="-").flat()
