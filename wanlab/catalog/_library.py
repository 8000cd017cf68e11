"""All definitions by name: those that ship with wanlab, and the user's finetunes; references are followed here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanlab.catalog._definition import Definition
from wanlab.catalog._merge import Raw, merged
from wanlab.catalog._source import Record, read_finetune, read_shipped
from wanlab.errors import WanlabError, shorten, unknown
from wanlab.files import resource
from wanlab.registry import FAMILIES
from wanlab.spec import GenerationSpec
from wanlab.workspace import Workspace, find_workspace

MAX_DEPTH = 10
"""References from one definition to the next that are followed."""
LORAS = "LoRAs: part of this checkpoint is a LoRA file, and wanlab cannot apply LoRAs yet"


@dataclass
class Library:
    """Definitions by id. What one of them gets wrong is kept in `errors` and raised when that one is asked for."""

    records: dict[str, Record] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Every name, ids and aliases, with the id it stands for."""
    errors: dict[str, WanlabError] = field(default_factory=dict)
    shipped: Library | None = None
    """The library of the definitions below the user's; None in that library itself."""
    _raws: dict[str, Raw] = field(default_factory=dict)
    _made: dict[str, Definition] = field(default_factory=dict)
    _is_judging: bool = False

    def add(self, record: Record) -> None:
        """Take a definition in. Raises WanlabError for a name that another one has."""
        aliases = record.data.get("aliases")
        names = (record.id, *(map(str, aliases) if isinstance(aliases, list) else ()))
        for name in names:
            owner = self.id_of(name)
            if owner is not None and (owner != record.overrides or owner in self.records):
                raise WanlabError(
                    f"{record.path}: the name {shorten(name)} already belongs to {owner!r}",
                    remedy="Give this definition another name",
                )
        self.records[record.id] = record
        self.names |= dict.fromkeys(names, record.id)

    def id_of(self, name: str) -> str | None:
        """The id that a name stands for, here or among the shipped definitions; None for a name of nobody."""
        return self.names.get(name) or (self.shipped.names.get(name) if self.shipped is not None else None)

    def find(self, name: str) -> Definition:
        """The definition that a name stands for. Raises WanlabError: the nearest names, or what is wrong with it."""
        found = self._holder(name)
        if found is None:
            assert self.shipped is not None, "somebody holds it"
            return self.shipped.find(name)
        if found not in self._made:
            record = self.records[found]
            with record.placed():
                definition = self.finish(self.raw(found), record.origin)
                if self.shipped is not None:  # what ships is tested
                    _check_use(definition)
                self._made[found] = definition
        return self._made[found]

    def _holder(self, name: str) -> str | None:
        """The id of a definition of this library, None for one of the shipped below. Raises WanlabError for others."""
        found = self.id_of(name) or name
        if found in self.errors:
            raise self.errors[found]
        if found in self.records:
            return found
        if self.shipped is not None and found in self.shipped.records:
            return None
        raise unknown("model", name, self._sound_names(), remedy="wanlab.catalogue() or `wanlab models` lists all")

    def _sound_names(self) -> set[str]:
        """Every name, but not those of the user's definitions that are broken."""
        if self.shipped is None:
            return set(self.names)
        broken = set(self.errors)
        if not self._is_judging:  # else a definition whose base is unknown would be judged while it is judged
            self._is_judging = True
            try:
                broken |= {found for found in self.records if self._is_broken(found)}
            finally:
                self._is_judging = False
        mine = {name for name, found in self.names.items() if found not in broken}
        return mine | {name for name, found in self.shipped.names.items() if found not in broken}

    def file_of(self, name: str) -> Path | None:
        """The user's file that defines or changes a model; None for one that is as it ships, or unknown."""
        record = self.records.get(self.id_of(name) or name) if self.shipped is not None else None
        return None if record is None else record.path

    def _is_broken(self, name: str) -> bool:
        try:
            self.find(name)
        except WanlabError:
            return True
        return False

    def ids(self) -> list[str]:
        """Ids of all definitions, broken ones included."""
        return sorted({*self.records, *self.errors, *(self.shipped.records if self.shipped else ())})

    def finish(self, raw: Raw, origin: str = "") -> Definition:
        """The checked definition of data whose references are resolved; it stands alone, so its base is None."""
        raw = _titled({**raw, "base": None}, raw)
        if isinstance(table := raw.get("architecture"), Mapping):
            raw["architecture"] = {name: table.get(v) if isinstance(v, str) else v for name, v in table.items()}
        if raw.get("loras") and not raw.get("missing"):
            raw["missing"] = LORAS
        return Definition.of(raw, origin)

    def raw(self, name: str, chain: tuple[str, ...] = ()) -> Raw:
        """The data of a definition with its base merged in and the references of its weights resolved."""
        found = self._holder(name)
        if found is None:
            assert self.shipped is not None, "somebody holds it"
            return self.shipped.raw(name, chain)
        chain = (*chain, found)
        if found in chain[:-1]:
            circle = " -> ".join(chain)
            raise WanlabError(f"{name!r} leads back to itself: {circle}", remedy="Break this circle of references")
        if len(chain) > MAX_DEPTH + 1:
            remedy = "Refer to the model at the end of the chain"
            raise WanlabError(f"{name!r} is more than {MAX_DEPTH} references away: {' -> '.join(chain)}", remedy=remedy)
        if found not in self._raws:
            record = self.records[found]
            with record.placed():
                self._raws[found] = self.resolved(record.data, chain, overrides=record.overrides)
        return self._raws[found]

    def resolved(self, data: Raw, chain: tuple[str, ...] = (), *, overrides: str | None = None) -> Raw:
        """`data` with its base merged in and the references of its weights resolved.

        overrides: id of the shipped definition that it is laid over, keeping that one's name.
        """
        weights = data.get("weights")
        if isinstance(weights, Mapping) and isinstance(parts := weights.get("components"), Mapping):
            resolved = {name: self._component(name, part, chain) for name, part in parts.items()}
            data = {**data, "weights": {**weights, "components": resolved}}
        if isinstance(data.get("loras"), str):
            data = {**data, "loras": self.raw(data["loras"], chain).get("loras") or []}
        if overrides is not None:
            assert self.shipped is not None, "only finetunes override"
            over = {k: v for k, v in data.items() if k not in ("id", "base")}
            return merged(self.shipped.raw(overrides), over, same=True)
        if (base := data.get("base")) is None:
            return data
        if not isinstance(base, str):
            raise WanlabError(f"base = {shorten(base)} names no model", remedy="Give the id of one")
        below = self.raw(base, chain)
        return _titled(merged(below, data), below)

    def _component(self, name: str, part: Any, chain: tuple[str, ...]) -> Any:
        """A component's files; it, its variants, its modules or one of them may be the id of a model that has them."""
        if isinstance(part, str):
            return self._borrowed(part, name, chain)
        if not isinstance(part, Mapping):
            return part
        found = dict(part)
        variants = found.get("variants")
        if isinstance(variants, str | list | tuple):
            several = [variants] if isinstance(variants, str) else variants
            groups = (self._borrowed(v, name, chain)["variants"] if isinstance(v, str) else [v] for v in several)
            found["variants"] = [variant for group in groups for variant in group]
        modules = found.get("modules")
        if isinstance(modules, str):
            found["modules"] = self._modules(modules, name, chain)
        elif isinstance(modules, list | tuple):
            lists = (self._modules(m, name, chain) if isinstance(m, str) else [m] for m in modules)
            found["modules"] = [module for group in lists for module in group]
        return found

    def _borrowed(self, owner: str, component: str, chain: tuple[str, ...]) -> Raw:
        parts = (self.raw(owner, chain).get("weights") or {}).get("components") or {}
        if not isinstance(parts.get(component), Mapping):
            raise WanlabError(f"{owner!r} has no files of a {component} to refer to", choices=parts)
        return {"variants": [], **parts[component]}

    def _modules(self, owner: str, component: str, chain: tuple[str, ...]) -> list[Any]:
        """A model's modules; those of a model with one expert fit both experts of another."""
        parts = (self.raw(owner, chain).get("weights") or {}).get("components") or {}
        found = (parts.get(component) or parts.get("transformer") or {}).get("modules")
        if not found:
            raise WanlabError(f"{owner!r} has no module to refer to", remedy="Name a model that has modules")
        return list(found)


def _titled(raw: Raw, other: Raw) -> Raw:
    """`raw` with the title, else the id, of the other where it has no title."""
    titles = (other.get("title"), other.get("id"))
    title = next((t for t in titles if isinstance(t, str) and t), "")
    return raw if raw.get("title", "") != "" else {**raw, "title": title}


def _check_use(definition: Definition) -> None:
    """Raise WanlabError for a family that is not there and for default settings that no spec may have."""
    if not definition.missing and definition.family not in FAMILIES.names():
        raise unknown("family", definition.family, FAMILIES.names())
    GenerationSpec.of({**definition.spec, "model": definition.id})


@functools.cache
def _shipped() -> Library:
    library = Library()
    for path in sorted(resource("defaults").glob("*.json")):
        library.add(read_shipped(path))
    return library


def library(workspace: Workspace | None = None) -> Library:
    """The shipped definitions with a workspace's finetunes over them. Reads `finetunes/*.json`, never the network."""
    shipped = _shipped()
    workspace = workspace or find_workspace()
    paths = sorted(workspace.finetunes.glob("*.json"))
    if not paths:
        return shipped
    found = Library(shipped=shipped)
    for path in paths:
        name = shipped.names.get(path.stem, path.stem)
        try:
            found.add(read_finetune(path, shipped.names, workspace.root))
        except WanlabError as error:
            found.errors[name] = error
    return found


def find(what: str | Path | Mapping[str, Any] | Definition | Any, workspace: Workspace | None = None) -> Definition:
    """The definition that `what` names.

    `what`: an id, an alias (WanGP's id, the hub's repository), the path of a definition's JSON, a dictionary, a
    `GenerationSpec` (its model), or a Definition. The user's finetunes come first. Raises `WanlabError` with the
    nearest names, or with what is wrong in the finetune's file.
    """
    if isinstance(what, Definition):
        return what
    known = library(workspace)
    if isinstance(what, Mapping):
        return known.finish(known.resolved(dict(what)))
    if isinstance(what, Path) or (isinstance(what, str) and what.endswith(".json")):
        record = read_finetune(Path(what), {})
        with record.placed():
            return known.finish(known.resolved(record.data), record.origin)
    name = what if isinstance(what, str) else getattr(what, "model", None)
    if not isinstance(name, str):
        raise WanlabError(f"{shorten(what, 80)} names no model", remedy="Give an id, a definition or a spec")
    return known.find(name)


def defined_in(what: str | Path, workspace: Workspace | None = None) -> Path | None:
    """The user's file that defines or changes the model; None for one that is as it ships, or unknown."""
    if isinstance(what, Path) or what.endswith(".json"):
        return Path(what)
    return library(workspace).file_of(what)
