"""Names of methods and families, known from the package's files and imported on first use.

This is the one place that imports upward: `Registry.get` imports `<package>.<name>` when a name is first used, `late`
a function's module when it is first called.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from wanlab.errors import WanlabError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of name -> object, one file of `package` a name.

    Modules starting with `_` or listed in `skip` are not methods.
    Code outside the package (a notebook, a test) adds to it with `register` too.
    """

    def __init__(self, kind: str, package: str, skip: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.package = package
        self._skip = set(skip)
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate the object that `name` stands for."""

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """All names, without importing any method's file."""
        package = importlib.util.find_spec(self.package)  # found, not imported: methods' packages may import torch
        assert package is not None, self.package
        files = {m.name for m in pkgutil.iter_modules(package.submodule_search_locations)}
        return sorted((files - self._skip - {f for f in files if f.startswith("_")}) | set(self._entries))

    def check(self, name: str) -> str:
        """Return `name` if it exists; raise `WanlabError` with the nearest names if not. Imports no method."""
        if name not in self._entries and name not in self.names():
            raise unknown(self.kind, name, self.names())
        return name

    def get(self, name: str) -> T:
        """The object behind `name`; imports its file on first use."""
        if name not in self._entries:
            self.check(name)
            importlib.import_module(f"{self.package}.{name}")
        if name not in self._entries:
            raise WanlabError(f"{self.package}.{name} registers no {self.kind} called {name!r}")
        return self._entries[name]

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self.names())})"


def lazy(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports `<package>.<homes[name]>` when a name is first used.

    So a package of methods can be listed, and its light names used, without importing torch.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get


def late(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of a module that comes later in the order; the module is imported when it is first called."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **keywords)

    return call


ATTENTION: Registry[Any] = Registry("attention backend", "wanlab.attention")
CACHES: Registry[Any] = Registry("cache", "wanlab.caches")
FAMILIES: Registry[Any] = Registry("model family", "wanlab.models", skip=("base",))
GUIDANCE: Registry[Any] = Registry("guidance rule", "wanlab.guidance")
SAMPLERS: Registry[Any] = Registry("sampler", "wanlab.sampling")
