"""What of a model is on this machine: whole folders in diffusers layout, and files of single components."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wanlab.catalog._choose import choose
from wanlab.catalog._definition import ComponentSource, Definition, FileSource, WeightSource
from wanlab.errors import WanlabError
from wanlab.files import read_json
from wanlab.workspace import Root, Workspace, find_workspace

INDEX_BYTES = 16 << 20  # an index of 100,000 tensors is 10 MB
INDEX = ".safetensors.index.json"
_PACKAGE = Path(__file__).resolve().parents[1]
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_COMMON_NAME = re.compile(r"(diffusion_pytorch_model|model|pytorch_model|tokenizer|config)\b.*")
"""Names that say nothing about what is in the file: never looked for by name alone."""
_COMMON_FOLDER = re.compile(r"(transformer(_2)?|vae|text_encoder|image_encoder|tokenizer|(high|low)_noise_model)?")
"""Folders that say nothing either: files of such names in them are found below their own repository's folder only."""


@dataclass(frozen=True)
class Presence:
    """Where a model's weights are."""

    folder: Path | None = None
    """The first complete folder in diffusers layout."""
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Files of each component that was found: the network's, then its modules'."""
    missing: dict[str, FileSource] = field(default_factory=dict)
    """A file to get for each component that was not found, by its name (`transformer`, `transformer module 1`)."""
    has_all_files: bool = False
    """Whether every network of the definition is among `files`."""

    @property
    def is_complete(self) -> bool:
        """Whether the model can be loaded."""
        return self.folder is not None or (self.has_all_files and not self.missing)

    @property
    def size(self) -> int | None:
        """Bytes on the disk; None unless complete."""
        if not self.is_complete:
            return None
        if self.folder is not None:
            return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        parts = {part for files in self.files.values() for file in files for part in (file, *shards(file))}
        return sum(part.stat().st_size for part in parts if part.is_file())


def presence(
    definition: Definition,
    workspace: Workspace | None = None,
    *,
    stored_as: str = "auto",
    dtype: str | None = None,
    roots: Sequence[Root] | None = None,
) -> Presence:
    """Where a model's weights are: the first complete folder, and the chosen file of each component.

    Asks the disk only, never the network. roots: those of the workspace, where the caller asks for many models.
    Raises WanlabError for a folder that may not be read.
    """
    try:
        return _presence(definition, workspace, stored_as, dtype, roots)
    except OSError as error:
        raise WanlabError(
            f"The weights of {definition.id} cannot be looked for: {error.filename} ({error.strerror})",
            remedy="Check that folder and its rights",
        ) from None


def _presence(
    definition: Definition,
    workspace: Workspace | None,
    stored_as: str,
    dtype: str | None,
    roots: Sequence[Root] | None,
) -> Presence:
    roots = (workspace or find_workspace()).roots if roots is None else roots
    folder = next((f for f in candidates(definition, workspace, roots) if not missing_files(definition, f)), None)
    files: dict[str, tuple[Path, ...]] = {}
    missing: dict[str, FileSource] = {}
    for name, component in definition.weights.components.items():
        found = _find_component(component, roots, stored_as, dtype)
        lacking = {f"{name} module {i}" if i else name: v for i, (v, path) in enumerate(found) if path is None}
        if lacking:
            missing |= lacking
        else:
            files[name] = tuple(path for _, path in found if path is not None)
    return Presence(folder, files, missing, bool(files) and files.keys() >= definition.architecture.keys())


def _find_component(
    component: ComponentSource, roots: Sequence[Root], stored_as: str, dtype: str | None
) -> list[tuple[FileSource, Path | None]]:
    """The chosen file of a component and of each of its modules, with its place; None for one that is not here."""

    def pick(variants: Sequence[FileSource], usable: Mapping[FileSource, Path]) -> tuple[FileSource, Path | None]:
        wanted = choose(variants, stored_as, dtype, usable.keys())
        return wanted, usable.get(wanted)

    modules = [pick(variants, _here(variants, roots)) for variants in component.modules]
    here = _here(component.variants, roots)
    if any(path is None for _, path in modules):  # what needs no module comes first
        here = {v: path for v, path in here.items() if v.holds_modules} or here
    first = pick(component.variants, here)
    return [first] if first[0].holds_modules else [first, *modules]


def _here(variants: Sequence[FileSource], roots: Sequence[Root]) -> dict[FileSource, Path]:
    return {v: path for v in variants if (path := find_component_file(v, roots)) is not None}


def on_disk(definition: Definition, workspace: Workspace | None = None) -> Path | None:
    """The first complete folder that holds the definition's files, or None. Asks the disk only, never the network."""
    return next((f for f in candidates(definition, workspace) if not missing_files(definition, f)), None)


def candidates(
    definition: Definition, workspace: Workspace | None = None, roots: Sequence[Root] | None = None
) -> list[Path]:
    """Folders that may hold the whole model, in the order in which they are tried; they need not exist."""
    source = definition.weights
    folders = [_PACKAGE / "assets" / source.asset] if source.asset else []
    if source.folder:
        folders.append(Path(source.folder).expanduser())
    for root in (workspace or find_workspace()).roots if roots is None else roots:
        if root.kind == "folder":
            folders.append(root.path / definition.id)
            if source.repo:
                folders += [root.path / source.repo, root.path / source.repo.split("/")[-1]]
        if source.repo:
            folders += _snapshots(root.path, source.repo, source.revision)
    return folders


def find_component_file(source: FileSource, roots: Sequence[Root]) -> Path | None:
    """A file of one component on this machine, complete with the shards that an index names; None if it is not here.

    Looked for by its path below each root, below its repository's folder there and in the hub's cache, and by its name
    alone where the name tells what it is.
    """
    if source.is_local:
        place = Path(source.path).expanduser()
        return place if _is_complete(place) else None
    return next((place for root in roots for place in _places(source, root) if _is_complete(place)), None)


def _places(source: FileSource, root: Root) -> Iterator[Path]:
    """Where a root may hold a file; only existing files for those that are looked up by name."""
    if source.repo:
        for snapshot in _snapshots(root.path, source.repo, source.revision):
            yield snapshot / source.path
    if root.kind == "hub":
        return
    if source.repo:
        yield root.path / source.repo / source.path
        yield root.path / source.repo.split("/")[-1] / source.path
    if not _says_nothing(source):
        yield root.path / source.path
    if not _COMMON_NAME.fullmatch(source.name):
        yield from root.named(source.name)


def _says_nothing(source: FileSource) -> bool:
    """Whether neither the file's name nor its folder's tells what it is, but its repository does."""
    is_common = _COMMON_NAME.fullmatch(source.name) is not None
    return is_common and bool(source.repo) and bool(_COMMON_FOLDER.fullmatch(source.path.rpartition("/")[0]))


def home(source: FileSource, folder: Path) -> Path:
    """Where a file belongs below a folder of checkpoints, so that it is found there again.

    ComfyUI's hub repositories keep files under split_files/, its own folder does not.
    """
    if _says_nothing(source):
        return folder / str(source.repo) / source.path
    return folder / source.path.removeprefix("split_files/")


def _snapshots(root: Path, repo: str, revision: str | None) -> list[Path]:
    """Folders of a repository's files in a hub cache: those of the revision, or the default branch's and all others."""
    place = root / f"models--{repo.replace('/', '--')}"
    if not place.is_dir():
        return []
    named = place / "refs" / (revision or "main")
    commit = named.read_text().strip() if named.is_file() else revision
    found = [place / "snapshots" / commit] if commit else []
    others = sorted((place / "snapshots").glob("*")) if revision is None else []
    return [*found, *(folder for folder in others if folder not in found)]


def _is_complete(file: Path) -> bool:
    return file.is_file() and all(shard.is_file() for shard in shards(file))


def shards(file: Path) -> list[Path]:
    """Files that an index of shards names; none for any other file."""
    return [file.parent / name for name in sorted(_shard_names(file))] if file.name.endswith(INDEX) else []


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
    best: tuple[Path | None, list[str]] = None, needed(definition.weights)
    for place in candidates(definition, workspace):
        if place.is_dir() and len(missing := missing_files(definition, place)) < len(best[1]):
            best = place, missing
    return best


def needed(source: WeightSource) -> list[str]:
    """Patterns of the files of a whole folder; for a model without one, the preferred file of each component."""
    if source.is_folder or not source.components:
        return list(source.files or ("model_index.json",))
    groups = (g for c in source.components.values() for g in (c.variants, *c.modules))
    return [choose(variants).path for variants in groups]


def _missing_shards(place: Path) -> list[Path]:
    """Files that a component's folder needs and lacks, because of what its indexes and its shards are called."""
    indexes = [file for file in place.glob(f"*{INDEX}") if file.is_file()]
    if not indexes and (shard := next((f for f in place.glob("*.safetensors") if _SHARD.search(f.name)), None)):
        return [place / _SHARD.sub(INDEX, shard.name)]
    named = {place / name for index in indexes for name in _shard_names(index)}
    return sorted(file for file in named if not file.is_file())


def _shard_names(index: Path) -> set[str]:
    """Files that an index names; none if it cannot be read, which `weights.check_folder` explains."""
    try:
        table = read_json(index, INDEX_BYTES)
        return set(map(str, table["weight_map"].values()))
    except (WanlabError, KeyError, TypeError, AttributeError):
        return set()
