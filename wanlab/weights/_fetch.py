"""Download a definition's files: what is on this machine is left alone, what is known of a file is checked."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path

from wanlab.catalog import Definition, FileSource, choose, missing_files
from wanlab.errors import WanlabError
from wanlab.weights._checkpoint import Checkpoint, checkpoint_in
from wanlab.weights._component import absent_shards
from wanlab.weights._http import Remote, Transfer, fetch
from wanlab.weights._locate import find, locate, origin, place_of, target_of
from wanlab.workspace import Workspace, find_workspace

__all__ = ["Transfer", "download"]


def download(
    definition: Definition,
    workspace: Workspace | None = None,
    *,
    stored_as: str = "auto",
    dtype: str = "auto",
    progress: Callable[[Transfer], None] | None = None,
    check: Callable[[], None] | None = None,
) -> Checkpoint:
    """Fetch what of a model is not on this machine, and return its files.

    Single files go into the first checkpoint folder of the workspace, whole hub repositories into the hub's cache. A
    download that was stopped, even by kill -9, continues where it was; sizes and hashes are checked, and nothing has
    its final name before. `progress(Transfer)` is called for each megabyte, `check()` too; it may raise to stop.
    Raises WanlabError: offline (HF_HUB_OFFLINE), with every file and its folder; no source; and as `fetch` does.
    """
    workspace = workspace or find_workspace()
    found = find(definition, workspace, stored_as, dtype)
    lacking = [s for s in _files(definition, workspace, stored_as, dtype) if place_of(s, workspace) is None]
    if isinstance(found, Checkpoint):
        lacking = [s for s in definition.preload if place_of(s, workspace) is None]
        if not lacking:
            return found
    _refuse_offline(definition, workspace, lacking)
    if not isinstance(found, Checkpoint) and not definition.weights.components:
        found = checkpoint_in(definition.id, _whole_repository(definition, check))
    for number, source in enumerate(lacking, 1):
        _Fetcher(f"{number}/{len(lacking)} ", progress, check).run(source, workspace)
    return found if isinstance(found, Checkpoint) else locate(definition, workspace, stored_as=stored_as, dtype=dtype)


def _files(definition: Definition, workspace: Workspace, stored_as: str, dtype: str) -> Iterator[FileSource]:
    """The variant of every file that a download takes; what is here already counts."""
    wanted = None if dtype == "auto" else dtype
    for component in definition.weights.components.values():
        groups = [component.variants, *component.modules]
        for variants in groups:
            here = [v for v in variants if place_of(v, workspace) is not None]
            chosen = choose(variants, stored_as, wanted, here)
            yield chosen
            if chosen.holds_modules:
                break
    yield from definition.preload


class _Fetcher:
    """Fetches one file, and those that belong to it: the shards of an index, the settings of a tokenizer."""

    def __init__(
        self, title: str, progress: Callable[[Transfer], None] | None, check: Callable[[], None] | None
    ) -> None:
        self._title, self._progress, self._check = title, progress, check or (lambda: None)

    def run(self, source: FileSource, workspace: Workspace) -> None:
        path = self._one(source, workspace)
        names = []
        if path.name.endswith(".index.json"):
            names = [file.name for file in absent_shards(path)]
        elif path.name == "tokenizer.json" and not path.with_name("tokenizer_config.json").is_file():
            names = ["tokenizer_config.json"]
        for name in names:
            self._one(_beside(source, name), workspace)

    def _one(self, source: FileSource, workspace: Workspace) -> Path:
        target = target_of(source, workspace)
        if target.is_file() and source.size in (None, target.stat().st_size):  # an index whose shards are not all there
            return target
        return fetch(_remote(source, target), self._show, self._check)

    def _show(self, transfer: Transfer) -> None:
        if self._progress is not None:
            self._progress(dataclasses.replace(transfer, stage=self._title + transfer.stage))


def _beside(source: FileSource, name: str) -> FileSource:
    """The source of another file of the same folder."""
    path, url = source.path, source.url
    return FileSource(
        path=posixpath.join(posixpath.dirname(path), name),
        repo=source.repo,
        revision=source.revision,
        url=url and posixpath.join(posixpath.dirname(url), name),
    )


def _remote(source: FileSource, target: Path) -> Remote:
    if source.url:
        return Remote(source.url, target, source.size, source.sha256)
    if not source.repo:
        raise WanlabError(f"{source.path} has neither a repository nor an address", remedy=f"Put it at {target}")
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(source.repo, source.path, revision=source.revision)
    return Remote(url, target, source.size, source.sha256, build_hf_headers(library_name="wanlab"))


def _refuse_offline(definition: Definition, workspace: Workspace, lacking: list[FileSource]) -> None:
    from huggingface_hub.constants import is_offline_mode

    if not is_offline_mode():
        return
    files = "; ".join(f"{origin(s)} to {target_of(s, workspace)}" for s in lacking)
    if not definition.weights.components:
        files = f"the files of https://huggingface.co/{definition.weights.repo}" if definition.weights.repo else "none"
    raise WanlabError(
        f"{definition.id} cannot be downloaded: the network is not asked because HF_HUB_OFFLINE is set",
        remedy=f"Unset it, or bring on another way: {files}",
    )


def _whole_repository(definition: Definition, check: Callable[[], None] | None) -> Path:
    """The hub's snapshot of a repository in diffusers layout, in the hub's cache."""
    from huggingface_hub import snapshot_download

    source = definition.weights
    if source.repo is None:
        raise WanlabError(
            f"The definition of {definition.id} names no source to download from",
            remedy="Give its weights a repo, or the folder they are in",
        )
    if check is not None:
        check()
    patterns = [*source.files] + [f"{p}.index.json" for p in source.files if p.endswith(".safetensors")]
    try:
        folder = Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns or None))
    except (OSError, ValueError, RuntimeError) as error:  # no network, gated, no such revision, disk full
        reason = str(error).strip().split("\n")[0][:200]
        raise WanlabError(
            f"{source.repo} could not be downloaded ({type(error).__name__}: {reason})",
            remedy=f"Try again, which continues, or bring https://huggingface.co/{source.repo} on another way",
        ) from error
    if missing := missing_files(definition, folder):
        raise WanlabError(f"{source.repo} holds no {', '.join(missing)}", remedy="Correct the definition's files")
    return folder
