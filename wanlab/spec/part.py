"""The base class of every checked record: a spec's parts, methods' options, definitions."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from wanlab.errors import WanlabError, shorten
from wanlab.spec.problems import STORE, explain

_LARGEST = 2**63  # integers beyond 64 bits have no place in JSON that other programs read


class HashDefault:
    """Marks a field added after its record was first hashed: `Annotated[int, HashDefault(0)]`.

    A field equal to `value` is left out of the hash, and a record written before the field existed reads as `value`.
    Freeze it when the field is added: it is what the program did until then, whatever the default becomes later.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


class Unhashed:
    """Marks a field that says nothing about the outcome (a file's name, a schema number): never part of an id."""


def marker(field: FieldInfo, kind: type) -> Any:
    """The first annotation of type `kind` on a field, or None."""
    return next((m for m in field.metadata if isinstance(m, kind)), None)


def plain(value: Any, name: str = "") -> Any:
    """`value` as JSON data: numpy and torch scalars, arrays, tuples, ranges, paths, enums and records arrive.

    Raises WanlabError, naming the setting, for NaN, infinities, integers beyond 64 bits and what JSON cannot say.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value, name)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, int | float):
        return _number(value, name)
    if isinstance(value, PurePath):
        return _text(str(value), name)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {_key(k, name): plain(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if getattr(value, "ndim", 0) > 2 or hasattr(value, "convert"):  # frames, or a PIL image
        raise WanlabError(f"{name or 'The value'} is a {type(value).__name__}, not a MediaRef", remedy=STORE)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy or torch, without importing either
        return plain(value.tolist(), name)
    raise WanlabError(
        f"{name or 'The value'} = {shorten(value)} cannot be stored as JSON",
        remedy="Give text, a number, true or false, a list or a path.",
    )


def _text(value: str, name: str) -> str:
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise WanlabError(
            f"{name or 'The value'} = {shorten(value)} has a lone surrogate", remedy="Give valid Unicode."
        )
    return str(value)


def _number(value: float, name: str) -> float:
    if not isinstance(value, int) and not math.isfinite(value):
        raise WanlabError(f"{name or 'The value'} = {value} is not a finite number", remedy="Give a finite number.")
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise WanlabError(f"{name or 'The value'} has more than 64 bits", remedy="Give a value below 2**63.")
    return value


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str):
        raise WanlabError(f"{name or 'The record'} has the key {shorten(key)}", remedy="Keys are text.")
    return key


class Part(BaseModel):
    """A frozen, strict record: unknown keys, NaN and numbers in quotes are refused with one WanlabError.

    Values are checked in pydantic's JSON mode, so lists become tuples and whatever `plain` takes is accepted.
    The text under a field is its description in `model_json_schema()`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, /, **values: Any) -> None:
        self.fill_from(plain(values))

    # pydantic then validates nested records itself instead of calling __init__ for each (as its RootModel does)
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def fill_from(self, values: dict[str, Any], prefix: str = "") -> None:
        """Validate JSON data into this new object; errors name their field as `prefix.field`."""
        try:
            self.__pydantic_validator__.validate_json(json.dumps(values), self_instance=self)
        except ValidationError as error:
            raise explain(error, type(self), prefix) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """Make the record from a mapping; errors name their field as `prefix.field`."""
        part = cls.__new__(cls)
        part.fill_from(plain(values, prefix), prefix)
        return part

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields changed and everything checked again."""
        return type(self)(**{**self.model_dump(mode="json", by_alias=True), **changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """pydantic's copy; refuses `update`, which would check nothing."""
        if update:
            raise WanlabError("model_copy(update=...) checks nothing", remedy="Use with_(...).")
        return super().model_copy(deep=deep)


class FrozenDict(dict[str, Any]):
    """A dict that cannot change and can be hashed; lists inside are tuples, dicts are FrozenDicts."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__({k: _frozen(v) for k, v in (values or {}).items()})

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("a spec's options never change; use spec.with_(...)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict(value)
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    return value
