"""Where stored media are: the workspace's store, and the folders of runs that this process opened or saved."""

from __future__ import annotations

from pathlib import Path

from wanlab.errors import WanlabError
from wanlab.media._store import MediaStore
from wanlab.spec.media_ref import MediaRef
from wanlab.spec.parts import MediaSpec
from wanlab.workspace import find_workspace

RUN_MEDIA = "media"
"""Folder of a run folder that holds what went into it."""
_runs: dict[Path, None] = {}  # a set that keeps the order


def default_store() -> MediaStore:
    """The workspace's store, where media given to a spec go."""
    return MediaStore(find_workspace().media)


def remember(run_folder: Path) -> None:
    """Let `find` look into a run folder, in this process."""
    _runs[Path(run_folder).absolute() / RUN_MEDIA] = None


def references(settings: MediaSpec) -> list[MediaRef]:
    """All media that the media part of a spec names, each content once."""
    found: dict[str, MediaRef] = {}
    for leaf in type(settings).model_fields:
        value = getattr(settings, leaf)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, MediaRef):
                found.setdefault(item.sha256, item)
    return list(found.values())


def run_files(settings: MediaSpec) -> dict[str, Path]:
    """The files that a run folder holds for a spec's media part, by their place in it. Raises as `find` does."""
    files = (find(ref) for ref in references(settings))
    return {f"{RUN_MEDIA}/{file.name}": file for file in files}


def find(ref: MediaRef) -> Path:
    """The file with the reference's content. Raises `WanlabError` that says where it is not."""
    places = [default_store(), *(MediaStore(folder) for folder in reversed(_runs))]
    for store in places:
        if store.holds(ref):
            return store.get(ref)
    looked = ", ".join(str(store.root) for store in places)
    raise WanlabError(
        f"{ref.name or ref.kind} ({ref.sha256[:12]}) is not stored in {looked}",
        remedy="Give the file again, spec.with_(...), or open the run that it came with: wanlab.open_result(folder)",
    )
