"""Definitions of the models that wanlab knows: `defaults/<id>.json`, read and checked on first use.

A variant of a known family is one JSON; nothing here asks which family a definition belongs to.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from wanlab.errors import WanlabError, shorten, unknown
from wanlab.files import read_json, resource
from wanlab.spec.part import Part
from wanlab.workspace import Workspace, find_workspace

SCHEMA = 1
_PACKAGE = Path(__file__).resolve().parent
_MAX_BYTES = 4 << 20  # a definition is a few kilobytes
INDEX_BYTES = 16 << 20  # an index of 100,000 tensors is 10 MB
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


class FileSource(Part):
    """One file, or the index of its shards, of one component of a checkpoint, in one variant."""

    path: str
    """Name below a folder of checkpoints; an absolute path or one from `~` in a user's own definition."""
    repo: str | None = None
    """Repository on the Hugging Face hub that holds the file as `path`."""
    revision: str | None = None
    """Branch, tag or commit of `repo`; None is its default branch."""
    url: str | None = None
    """https address of a file that is not on the hub."""
    stored_as: Literal["float", "int8", "fp8", "gguf"] = "float"
    """How its linear weights are stored."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of a float file, or of the float part of a quantised one."""
    size: int | None = None
    """Bytes."""
    sha256: str | None = None
    """Hexadecimal."""


class ComponentSource(Part):
    """Where one component's weights are."""

    variants: tuple[FileSource, ...]
    """The same weights, stored in several ways; one of them is read."""
    modules: tuple[tuple[FileSource, ...], ...] = ()
    """Weights that are added to the component's own (VACE blocks), each a list of variants."""


class WeightSource(Part):
    """Where a checkpoint's files are, in the order in which `weights.locate` looks."""

    asset: str | None = None
    """Folder under the package's assets: weights that ship with wanlab."""
    folder: str | None = None
    """A local folder in diffusers layout."""
    repo: str | None = None
    """Repository on the Hugging Face hub, `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit of `repo`; None is its default branch."""
    files: tuple[str, ...] = ()
    """Glob patterns below the folder; each must match at least one file for the checkpoint to be complete, and where
    weights are in shards, all of them."""
    components: dict[str, ComponentSource] = Field(default_factory=dict)
    """Component (transformer, transformer_2, vae, text_encoder, image_encoder, tokenizer) -> its own files."""


class Definition(Part):
    """One model: what to build, where its weights are, and the settings it was trained for."""

    schema_version: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    id: str = Field(min_length=1, max_length=100)
    family: str
    title: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    """Other names: WanGP's id of the same model, the hub's repository."""
    architecture: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Component (transformer, vae, text_encoder, ...) -> keyword arguments of its diffusers or transformers config."""
    weights: WeightSource = WeightSource()
    spec: dict[str, Any] = Field(default_factory=dict)
    """Defaults of a GenerationSpec for this checkpoint, nested by part."""
    constants: dict[str, Any] = Field(default_factory=dict)
    """Numbers that methods need for this checkpoint."""
    preload: tuple[FileSource, ...] = ()
    """Files that a download brings besides the components' own."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the values above come from, by dotted name."""

    @classmethod
    def of(cls, data: Mapping[str, Any], origin: str = "") -> Definition:
        """Check a dictionary. Raises `WanlabError` that names `origin`, the key and the nearest legal key."""
        schema = data.get("schema", SCHEMA)
        if isinstance(schema, int) and schema > SCHEMA:
            remedy = "A newer wanlab wrote it: update wanlab"
            raise WanlabError(f"{origin or 'The definition'} has schema {schema}, not {SCHEMA}", remedy=remedy)
        return cls.parse(data, origin)

    def __repr__(self) -> str:
        return f"Definition({self.id!r}, family={self.family!r}, title={self.title!r})"


def _read(path: Path) -> Definition:
    data = read_json(path, _MAX_BYTES)
    if not isinstance(data, dict):
        raise WanlabError(f"{path.name} holds no JSON object", remedy="A definition is an object with id and family")
    return Definition.of(data, origin=path.name)


@functools.cache
def _shipped() -> tuple[Definition, ...]:
    return tuple(_read(path) for path in sorted(resource("defaults").glob("*.json")))


def find(what: str | Path | Mapping[str, Any] | Definition | Any) -> Definition:
    """The definition that `what` names.

    `what`: an id, an alias (WanGP's id, the hub's repository), the path of a definition's JSON, a dictionary, a
    `GenerationSpec` (its model), or a Definition. Raises `WanlabError` with the nearest names.
    """
    if isinstance(what, Definition):
        return what
    if isinstance(what, Mapping):
        return Definition.of(what)
    if isinstance(what, Path) or (isinstance(what, str) and what.endswith(".json")):
        return _read(Path(what))
    name = what if isinstance(what, str) else getattr(what, "model", None)
    if not isinstance(name, str):
        raise WanlabError(f"{shorten(what, 80)} names no model", remedy="Give an id, a definition or a spec")
    names = {}
    for definition in _shipped():
        names.update(dict.fromkeys(definition.aliases, definition))
    names.update({definition.id: definition for definition in _shipped()})
    if name in names:
        return names[name]
    raise unknown("model", name, names, remedy="wanlab.catalogue() lists them")


class Row(Part):
    """One line of the catalogue."""

    id: str
    family: str
    title: str
    on_disk: bool
    size: int | None
    """Bytes of its files on disk; None if they are not there."""
    remedy: str
    """What to do to have the weights; empty if they are there."""


class Catalogue(Sequence[Row]):
    """The models wanlab knows, as a list of rows that prints as a table."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        lines = [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(_HEADS, *lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in [_HEADS, *lines])

    def _repr_html_(self) -> str:
        def line(tag: str, cells: Sequence[str]) -> str:
            left = "text-align:left"  # notebooks align to the right, for numbers
            styles = (left if name in ("title", "remedy") else f"{left};white-space:nowrap" for name in _HEADS)
            pairs = zip(styles, cells, strict=True)
            return "<tr>" + "".join(f'<{tag} style="{s}">{html.escape(c)}</{tag}>' for s, c in pairs) + "</tr>"

        return f"<table>{line('th', _HEADS)}{''.join(line('td', _cells(row)) for row in self.rows)}</table>"


_HEADS = ("id", "family", "title", "on disk", "remedy")


def _cells(row: Row) -> tuple[str, ...]:
    size = f"{row.size / 1e6:,.1f} MB" if row.size is not None else "no"
    return (row.id, row.family, row.title, size, row.remedy)


def catalogue(workspace: Workspace | None = None) -> Catalogue:
    """All definitions, those whose weights are on this machine first. Asks the disk only, never the network."""
    rows = [_row(definition, on_disk(definition, workspace)) for definition in _shipped()]
    return Catalogue(sorted(rows, key=lambda row: not row.on_disk))


def on_disk(definition: Definition, workspace: Workspace | None = None) -> Path | None:
    """The first complete folder that holds the definition's files, or None. Asks the disk only, never the network."""
    return next((f for f in candidates(definition, workspace) if not missing_files(definition, f)), None)


def candidates(definition: Definition, workspace: Workspace | None = None) -> list[Path]:
    """Folders that may hold the weights, in the order in which they are tried; they need not exist."""
    source = definition.weights
    folders = [_PACKAGE / "assets" / source.asset] if source.asset else []
    if source.folder:
        folders.append(Path(source.folder).expanduser())
    for root in (workspace or find_workspace()).checkpoints:
        folders.append(Path(root) / definition.id)
        if source.repo:
            folders += [Path(root) / source.repo, Path(root) / source.repo.split("/")[-1]]
            folders += sorted((Path(root) / f"models--{source.repo.replace('/', '--')}" / "snapshots").glob("*"))
    return folders + _hub_cache(source)


def missing_files(definition: Definition, folder: Path) -> list[str]:
    """What `folder` lacks: patterns that match no file, shards that an index names, the index of shards.

    Empty if the folder is complete; an interrupted download, which may end at any file, is not.
    """
    patterns = definition.weights.files or ("model_index.json",)
    found = {pattern: [file for file in folder.glob(pattern) if file.is_file()] for pattern in patterns}
    missing = [pattern for pattern, files in found.items() if not files]
    places = {file.parent for files in found.values() for file in files}
    if not definition.weights.files:
        places |= {place for place in folder.glob("*") if place.is_dir()}
    for place in sorted(places):
        missing += (name.relative_to(folder).as_posix() for name in _missing_shards(place))
    return missing


def nearest_folder(definition: Definition, workspace: Workspace | None = None) -> tuple[Path | None, list[str]]:
    """The folder that lacks the fewest of a model's files, and those; None and all files where none holds any."""
    best: tuple[Path | None, list[str]] = None, list(definition.weights.files or ("model_index.json",))
    for place in candidates(definition, workspace):
        if place.is_dir() and len(missing := missing_files(definition, place)) < len(best[1]):
            best = place, missing
    return best


def _missing_shards(place: Path) -> list[Path]:
    """Files that a component's folder needs and lacks, because of what its indexes and its shards are called."""
    indexes = [file for file in place.glob("*.safetensors.index.json") if file.is_file()]
    if not indexes and (shard := next((f for f in place.glob("*.safetensors") if _SHARD.search(f.name)), None)):
        return [place / _SHARD.sub(".safetensors.index.json", shard.name)]
    named = {place / name for index in indexes for name in _shard_names(index)}
    return sorted(file for file in named if not file.is_file())


def _shard_names(index: Path) -> set[str]:
    """Files that an index names; none if it cannot be read, which `weights.check_folder` explains."""
    try:
        table = read_json(index, INDEX_BYTES)
        return set(map(str, table["weight_map"].values()))
    except (WanlabError, KeyError, TypeError, AttributeError):
        return set()


def _hub_cache(source: WeightSource) -> list[Path]:
    if source.repo is None:
        return []
    from huggingface_hub import try_to_load_from_cache  # a third of a second, and only needed for hub models

    found = try_to_load_from_cache(source.repo, "model_index.json", revision=source.revision)
    return [Path(found).parent] if isinstance(found, str) else []


def _row(definition: Definition, folder: Path | None) -> Row:
    source = definition.weights
    remedy = ""
    if folder is None:
        fetch = f"`wanlab models {definition.id} --download` brings {source.repo}"
        remedy = fetch if source.repo else "its folder is missing"
    size = None if folder is None else sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return Row(
        id=definition.id,
        family=definition.family,
        title=definition.title,
        on_disk=folder is not None,
        size=size,
        remedy=remedy,
    )
