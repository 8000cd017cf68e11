"""A model's files on this machine as a checkpoint: its whole folder first, then a file for each component.

Nothing here asks the network; `download` does. Files are found by name, what they hold is read from their headers.
"""

from __future__ import annotations

from pathlib import Path

from wanlab.catalog import (
    Definition,
    FileSource,
    Presence,
    candidates,
    check_stored_as,
    find_component_file,
    missing_files,
    presence,
)
from wanlab.errors import WanlabError
from wanlab.weights._checkpoint import Checkpoint, checkpoint_in
from wanlab.weights._component import Component, files_of
from wanlab.workspace import Workspace, find_workspace


def locate(
    definition: Definition,
    workspace: Workspace | None = None,
    *,
    stored_as: str = "auto",
    dtype: str | None = None,
    download: bool = False,
    allow_pickle: bool = False,
) -> Checkpoint:
    """The definition's files on this machine.

    Looks for the whole folder (shipped asset, the definition's folder, the workspace's checkpoint paths, the hub's
    cache), then for each component's file: at its own path, in the workspace's checkpoint folders, in the WanGP and
    ComfyUI folders that it names, in the hub's cache. Of a component's variants it takes one of the kind `stored_as`
    (auto: floats first, else whatever is there), those in `dtype` first. With `download` it fetches what lacks.
    `allow_pickle` accepts files of torch.save.
    Raises one `WanlabError` that names the missing files, their source and the folder to put them in.
    """
    workspace = workspace or find_workspace()
    check_stored_as(definition, stored_as)
    found = presence(definition, workspace, stored_as=stored_as, dtype=dtype)
    if found.folder is not None and stored_as in ("auto", "float"):
        return checkpoint_in(definition.id, found.folder)
    if found.has_all_files and not found.missing:
        return _gathered(definition, found, allow_pickle)
    if download:
        from wanlab.weights._fetch import download as fetch

        return fetch(definition, workspace, stored_as=stored_as, dtype=dtype)
    raise _nowhere(definition, workspace, found)


def _gathered(definition: Definition, found: Presence, allow_pickle: bool) -> Checkpoint:
    """The checkpoint of single files, whose configurations the definition gives."""
    place = Path(f"the definition {definition.id}")
    components, tokenizers = {}, {}
    for name, places in found.files.items():
        if name.startswith("tokenizer"):
            tokenizers[name] = places[0].parent
            continue
        files = tuple(file for part in places for file in files_of(part))
        components[name] = Component(name, files, definition.architecture.get(name, {}), place, allow_pickle)
    return Checkpoint(definition.id, components, tokenizers)


def place_of(source: FileSource, workspace: Workspace) -> Path | None:
    """Where a file is on this machine, whole as far as its size tells; None if it is nowhere."""
    return find_component_file(source, workspace.roots)


def target_of(source: FileSource, workspace: Workspace) -> Path:
    """Where a download puts a file: its own path, or below the first checkpoint folder of the workspace."""
    if source.is_local:
        return Path(source.path).expanduser()
    return workspace.checkpoints[0] / source.path.removeprefix("split_files/")  # ComfyUI's repositories have that


def origin(source: FileSource) -> str:
    """Where a file comes from, in words."""
    if source.url:
        return source.url
    if source.repo:
        return f"https://huggingface.co/{source.repo}/blob/{source.revision or 'main'}/{source.path}"
    return "the place that it came from"


def _nowhere(definition: Definition, workspace: Workspace, found: Presence) -> WanlabError:
    source = definition.weights
    folders = [f for f in candidates(definition, workspace) if f.is_dir()]
    reasons = [f"{folder} lacks {', '.join(missing_files(definition, folder))}" for folder in folders]
    reasons += [_lacks(file, workspace) for file in found.missing.values()]
    target = Path(source.folder) if source.folder else workspace.checkpoints[0] / definition.id
    if source.components and not source.repo and not source.folder:
        what, where = f"{'; '.join(reasons)}", ""
    else:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        what = f"Files: {', '.join(source.files or ('model_index.json',))}{why}"
        home = f"https://huggingface.co/{source.repo}" if source.repo else f"the place {definition.id} came from"
        where = f"Put these files from {home} into {target}"
    can_fetch = source.repo or any(v.repo or v.url for c in source.components.values() for v in c.variants)
    fetch = f"`wanlab models --download {definition.id}` fetches them" if can_fetch else ""
    remedy = ", or: ".join(filter(None, [where, fetch]))
    return WanlabError(f"The weights of {definition.id} are not on this machine. {what}", remedy=remedy)


def _lacks(source: FileSource, workspace: Workspace) -> str:
    """What is wrong with a file that is not here: cut short, without its shards, or nowhere."""
    target = target_of(source, workspace)
    for path in (Path(source.path).expanduser(), target):
        if path.is_file() and source.size not in (None, size := path.stat().st_size):
            return f"{path} has {size:,} bytes, not {source.size:,}: it is another or cut short"
        if path.is_file():
            files_of(path)  # names the shard that is missing
    return f"{source.path} is nowhere; put it at {target} from {origin(source)}"
