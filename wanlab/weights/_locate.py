"""Find a model's files on this machine: whole folders first, then single files in the folders that tools keep them in.

Nothing here asks the network; `download` does. Files are found by name, what they hold is read from their headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wanlab.catalog import ComponentSource, Definition, FileSource, candidates, missing_files
from wanlab.errors import WanlabError, unknown
from wanlab.weights._checkpoint import Checkpoint, checkpoint_in
from wanlab.weights._component import Component, absent_shards, files_of
from wanlab.workspace import Workspace, find_workspace

KINDS = ("float", "fp8", "int8", "gguf")
"""Kinds of stored weights in the order in which `auto` prefers them."""
_FOLDERS = (  # of ComfyUI's models folder and of WanGP's ckpts
    "diffusion_models unet checkpoints vae text_encoders clip clip_vision umt5-xxl xlm-roberta-large ckpts models"
).split()
_COMMON = ("diffusion_pytorch_model", "model.safetensors", "model-", "config.json", "tokenizer", "pytorch_model")


def roots(workspace: Workspace) -> list[Path]:
    """Folders searched for single files, in order: the workspace's own, then those it names (WanGP, ComfyUI, hub)."""
    named = getattr(workspace, "roots", None)
    return [Path(root) for root in (named if named is not None else workspace.checkpoints)]


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
    ComfyUI folders that it names, in the hub's cache. Of a component's variants it takes the first of the kind
    `stored_as` (auto: floats, fp8, int8, gguf, whichever is there), those in `dtype` first. With `download` it fetches
    what lacks. `allow_pickle` accepts files of torch.save.
    Raises one `WanlabError` that names the missing files, their source and the folder to put them in.
    """
    workspace = workspace or find_workspace()
    found = find(definition, workspace, stored_as, dtype, allow_pickle)
    if isinstance(found, Checkpoint):
        return found
    if download:
        from wanlab.weights._fetch import download as fetch

        return fetch(definition, workspace, stored_as=stored_as, dtype=dtype)
    raise _nowhere(definition, workspace, found)


def find(
    definition: Definition, workspace: Workspace, stored_as: str, dtype: str, allow_pickle: bool = False
) -> Checkpoint | list[str]:
    """The definition's files on this machine, or the reasons why there is no complete set, in words."""
    reasons: list[str] = []
    if stored_as in ("auto", "float"):
        for folder in candidates(definition, workspace):
            missing = missing_files(definition, folder)
            if not missing:
                return checkpoint_in(definition.id, folder)
            if folder.is_dir():
                reasons.append(f"{folder} lacks {', '.join(missing)}")
    if definition.weights.components:
        found = _Search(definition, workspace, stored_as, dtype).run(allow_pickle)
        if isinstance(found, Checkpoint):
            return found
        reasons += found
    return reasons


def choose(variants: Sequence[FileSource], stored_as: str, dtype: str) -> list[FileSource]:
    """Variants of one component that will do, the best first. Raises WanlabError for a kind that it lacks."""
    kinds = {variant.stored_as for variant in variants}
    if stored_as != "auto" and stored_as not in kinds:
        raise unknown("stored_as", stored_as, sorted(kinds), remedy=f"{variants[0].path} does not come so")
    fitting = [v for v in variants if stored_as in ("auto", v.stored_as)]
    return sorted(fitting, key=lambda v: (KINDS.index(v.stored_as), v.dtype not in (None, dtype)))


def place_of(source: FileSource, workspace: Workspace) -> Path | None:
    """Where a file is on this machine, whole as far as its size tells; None if it is nowhere."""
    return next((path for path in places(source, workspace) if path.is_file() and _whole(source, path)), None)


def target_of(source: FileSource, workspace: Workspace) -> Path:
    """Where a download puts a file: its own path, or below the first checkpoint folder of the workspace."""
    own = Path(source.path).expanduser()
    return own if own.is_absolute() else roots(workspace)[0] / _plain(source.path)


def places(source: FileSource, workspace: Workspace) -> Iterator[Path]:
    """Paths at which a file may be, in the order in which they are tried.

    A file with a name of its own is also looked for in the folders in which ComfyUI and WanGP sort files; one called
    like many others (model.safetensors) only at its whole path.
    """
    own = Path(source.path).expanduser()
    if own.is_absolute():
        yield own
        return
    name = own.name
    for root in roots(workspace):
        yield root / source.path
        yield root / _plain(source.path)
        if source.repo:
            yield root / source.repo / source.path
            yield root / source.repo.split("/")[-1] / source.path
            cached = root / f"models--{source.repo.replace('/', '--')}" / "snapshots"
            yield from (snapshot / source.path for snapshot in sorted(cached.glob("*")))
        if not name.startswith(_COMMON):
            yield root / name
            yield from (root / folder / name for folder in _FOLDERS)
    if source.repo:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source.repo, source.path, revision=source.revision)
        if isinstance(found, str):
            yield Path(found)


def _plain(path: str) -> str:
    """ComfyUI's hub repositories keep files under split_files/, its own folder does not."""
    return path.removeprefix("split_files/")


def _whole(source: FileSource, path: Path) -> bool:
    if source.size is not None and path.stat().st_size != source.size:
        return False
    return not path.name.endswith(".index.json") or not absent_shards(path)


class _Search:
    """Looks for every component of a definition."""

    def __init__(self, definition: Definition, workspace: Workspace, stored_as: str, dtype: str) -> None:
        self._definition, self._workspace = definition, workspace
        self._wanted = stored_as, dtype

    def run(self, allow_pickle: bool) -> Checkpoint | list[str]:
        """The checkpoint, or what lacks, in words."""
        components: dict[str, Component] = {}
        tokenizers: dict[str, Path] = {}
        lacking: list[str] = []
        for name, source in self._definition.weights.components.items():
            if name.startswith("tokenizer"):
                found = self._first(source.variants)
                if found is None:
                    lacking.append(self._lacks(source.variants))
                else:
                    tokenizers[name] = found.parent
                continue
            files = self._files(source, lacking)
            if files is not None:
                config = self._definition.architecture.get(name, {})
                place = Path(f"the definition {self._definition.id}")
                components[name] = Component(name, files, config, place, allow_pickle)
        return lacking or Checkpoint(self._definition.id, components, tokenizers)

    def _files(self, source: ComponentSource, lacking: list[str]) -> tuple[Path, ...] | None:
        files: list[Path] = []
        for position, variants in enumerate((source.variants, *source.modules)):
            fitting = self._fitting(variants, is_module=position > 0)
            found = self._first(fitting)
            if found is None:
                lacking.append(self._lacks(fitting))
                return None
            files += files_of(found)
        return tuple(files)

    def _fitting(self, variants: Sequence[FileSource], is_module: bool) -> list[FileSource]:
        """Modules come in fewer kinds than networks: any kind will do where the wanted one is not made."""
        stored_as, dtype = self._wanted
        if is_module and stored_as not in {v.stored_as for v in variants}:
            stored_as = "auto"
        return choose(variants, stored_as, dtype)

    def _first(self, variants: Sequence[FileSource]) -> Path | None:
        return next((path for v in variants if (path := place_of(v, self._workspace)) is not None), None)

    def _lacks(self, variants: Sequence[FileSource]) -> str:
        for variant in variants:
            for path in places(variant, self._workspace):
                if path.is_file() and path.name.endswith(".index.json") and (absent := absent_shards(path)):
                    return f"{absent[0]} is missing: {path.name} names it"
                if path.is_file():
                    return f"{path} has {path.stat().st_size:,} bytes, not {variant.size:,}: it is another or cut short"
        best = variants[0]
        return f"{best.path} is nowhere; put it at {target_of(best, self._workspace)} from {origin(best)}"


def origin(source: FileSource) -> str:
    """Where a file comes from, in words."""
    if source.url:
        return source.url
    if source.repo:
        return f"https://huggingface.co/{source.repo}/blob/{source.revision or 'main'}/{source.path}"
    return "the place that it came from"


def _nowhere(definition: Definition, workspace: Workspace, reasons: list[str]) -> WanlabError:
    source = definition.weights
    files: Any = source.files or ("model_index.json",)
    target = Path(source.folder) if source.folder else roots(workspace)[0] / definition.id
    if source.components and not source.repo and not source.folder:
        what, where = f"{'; '.join(reasons)}", ""
    else:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        what = f"Files: {', '.join(files)}{why}"
        home = f"https://huggingface.co/{source.repo}" if source.repo else f"the place {definition.id} came from"
        where = f"Put these files from {home} into {target}"
    can_fetch = source.repo or any(v.repo or v.url for c in source.components.values() for v in c.variants)
    fetch = f"`wanlab models {definition.id} --download` fetches them" if can_fetch else ""
    remedy = ", or: ".join(filter(None, [where, fetch]))
    return WanlabError(f"The weights of {definition.id} are not on this machine. {what}", remedy=remedy)
