"""Find a model's files on this machine, by the catalogue's search: whole folders first, then files of single networks.

Nothing here asks the network; `download` does. Files are found by name, what they hold is read from their headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wanlab.catalog import (
    Definition,
    FileSource,
    check_stored_as,
    find_component_file,
    home,
    nearest_folder,
    needed,
    presence,
)
from wanlab.errors import WanlabError
from wanlab.weights._checkpoint import Checkpoint, checkpoint_in
from wanlab.weights._component import Component, absent_shards, files_of
from wanlab.workspace import Workspace, find_workspace


@dataclass(frozen=True)
class Absent:
    """Why there is no complete set of a model's files, in words."""

    reasons: tuple[str, ...]
    """What is wrong with what is here."""
    files: tuple[str, ...]
    """A line for each file that is not here: its place, and where it comes from."""


def locate(
    definition: Definition,
    workspace: Workspace | None = None,
    *,
    stored_as: str = "auto",
    dtype: str = "auto",
    download: bool = False,
    allow_pickle: bool = False,
) -> Checkpoint:
    """The definition's files on this machine.

    Looks for the whole folder (shipped asset, the definition's folder, the workspace's checkpoint paths, the hub's
    cache), then for each component's file: at its own path, in the workspace's checkpoint folders, in the WanGP and
    ComfyUI folders that it names, in the hub's cache. `catalog.choose` says which of a component's variants is taken.
    With `download` it fetches what lacks. `allow_pickle` accepts files of torch.save.
    Raises one `WanlabError` that names the missing files, their source and the folder to put them in.
    """
    workspace = workspace or find_workspace()
    found = find(definition, workspace, stored_as, dtype, allow_pickle)
    if isinstance(found, Checkpoint):
        return found
    if download:
        from wanlab.weights._fetch import download as fetch

        fetched = fetch(definition, workspace, stored_as=stored_as, dtype=dtype)
        if not allow_pickle or fetched.folder is not None:
            return fetched
        found = find(definition, workspace, stored_as, dtype, allow_pickle)
        assert isinstance(found, Checkpoint), "it was just fetched"
        return found
    raise _nowhere(definition, workspace, found, stored_as)


def find(
    definition: Definition, workspace: Workspace, stored_as: str, dtype: str, allow_pickle: bool = False
) -> Checkpoint | Absent:
    """The definition's files on this machine, or what of them is not here."""
    check_stored_as(definition, stored_as)
    here = presence(definition, workspace, stored_as=stored_as, dtype=None if dtype == "auto" else dtype)
    if here.folder is not None and stored_as in ("auto", "float"):
        return checkpoint_in(definition.id, here.folder)
    wrong = [text for sources in _sources(definition) for s in sources if (text := _wrong_size(s, workspace))]
    if here.is_complete and here.files and not wrong:
        return _gathered(definition, here.files, allow_pickle)
    folder, missing = nearest_folder(definition, workspace) if definition.weights.is_folder else (None, [])
    lacks = [f"{folder} lacks {', '.join(missing)}"] if folder else []
    sources = definition.weights.components
    lacks += [
        f"the definition names no file for the {n}" for n in definition.architecture if sources and n not in sources
    ]
    torn = [text for source in here.missing.values() if (text := _torn(source, workspace))]
    files = (f"{target_of(s, workspace)} from {origin(s)}" for s in here.missing.values() if not _torn(s, workspace))
    return Absent((*lacks, *wrong, *torn), tuple(dict.fromkeys(files)))


def _sources(definition: Definition) -> list[tuple[FileSource, ...]]:
    """Variants of every file of every component."""
    return [group for c in definition.weights.components.values() for group in (c.variants, *c.modules)]


def _gathered(definition: Definition, files: dict[str, tuple[Path, ...]], allow_pickle: bool) -> Checkpoint:
    """The checkpoint of single files."""
    place = Path(f"the definition {definition.id}")
    components = {
        name: Component(
            name,
            tuple(file for path in paths for file in files_of(path)),
            definition.architecture.get(name, {}),
            place,
            allow_pickle,
        )
        for name, paths in files.items()
        if not name.startswith("tokenizer")
    }
    tokenizers = {name: paths[0].parent for name, paths in files.items() if name.startswith("tokenizer")}
    return Checkpoint(definition.id, components, tokenizers)


def place_of(source: FileSource, workspace: Workspace) -> Path | None:
    """Where a file is on this machine, whole as far as its size tells; None if it is nowhere."""
    path = find_component_file(source, workspace.roots)
    return None if path is None or _wrong_size(source, workspace) else path


def target_of(source: FileSource, workspace: Workspace) -> Path:
    """Where a download puts a file: its own path, or below the first checkpoint folder of the workspace."""
    return Path(source.path).expanduser() if source.is_local else home(source, workspace.checkpoints[0])


def _wrong_size(source: FileSource, workspace: Workspace) -> str:
    """What is wrong with the file that stands for `source`; empty if nothing is, or there is none."""
    path = find_component_file(source, workspace.roots) if source.size is not None else None
    if path is None or (size := path.stat().st_size) == source.size:
        return ""
    return f"{path} has {size:,} bytes, not {source.size:,}: it is another or cut short"


def _torn(source: FileSource, workspace: Workspace) -> str:
    """Which shard is missing of an index that is here; empty for all other files."""
    if source.path.endswith(".index.json"):
        for index in (root.path / source.path for root in workspace.roots):
            if index.is_file() and (absent := absent_shards(index)):
                return f"{absent[0]} is missing: {index.name} names it"
    return ""


def origin(source: FileSource) -> str:
    """Where a file comes from, in words."""
    if source.url:
        return source.url
    if source.repo:
        return f"https://huggingface.co/{source.repo}/blob/{source.revision or 'main'}/{source.path}"
    return "the place that it came from"


def _nowhere(definition: Definition, workspace: Workspace, absent: Absent, stored_as: str) -> WanlabError:
    """The command first, then what to bring by hand: the folder, which holds floats, or the files, one a line."""
    source = definition.weights
    by_hand = []
    if (source.is_folder or not source.components) and stored_as in ("auto", "float"):
        target = Path(source.folder) if source.folder else workspace.checkpoints[0] / definition.id
        place = f"https://huggingface.co/{source.repo}" if source.repo else f"the place {definition.id} came from"
        by_hand.append("\n  ".join([f"the folder {target} from {place}, with", *needed(source)]))
    if absent.files:
        by_hand.append("\n  ".join(["these files", *absent.files]))
    bring = f"ring {'either ' if len(by_hand) > 1 else ''}" + "\nor ".join(by_hand)
    remedies = [f"`wanlab models {definition.id}` says where they are looked for."]
    if source.repo or any(v.repo or v.url for variants in _sources(definition) for v in variants):
        kind = "" if stored_as == "auto" else f" --stored-as {stored_as}"
        command = f"`wanlab models --download {definition.id}{kind}` fetches them."
        remedies = [command, *([f"Or b{bring}"] if by_hand else []), *remedies]
    elif by_hand:
        remedies = [f"B{bring}", *remedies]
    why = f": {'; '.join(absent.reasons)}" if absent.reasons else ""
    problem = f"The weights of {definition.id} are not on this machine{why}"
    return WanlabError(problem, remedy="\n".join(remedies))
