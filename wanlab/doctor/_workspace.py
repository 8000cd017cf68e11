"""The user's folders and the models on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from wanlab.doctor._report import Fact, home, size
from wanlab.workspace import MARKER, Workspace, find_workspace


def workspace() -> Iterator[Fact]:
    """Where it is and why, and what is in its folders."""
    found = find_workspace()
    marker = found.root / MARKER
    why = f"it holds {MARKER}" if marker.is_file() else f"no {MARKER} from here upward, so the user's data folder"
    yield Fact("root", "note", f"{home(found.root)} ({why})", data={"root": str(found.root)})
    yield from _folders(found)
    for root in found.roots:
        if root.kind == "folder":
            yield _counted("checkpoints", root.path, "models")
        else:
            yield _counted(root.kind, root.path, "entries")
    there = next(place for place in (found.root, *found.root.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    yield Fact("disk", "note", f"{size(free)} free", data={"free": free})


def _folders(found: Workspace) -> Iterator[Fact]:
    """One fact a folder that is there; one for all that are not, which is no fault."""
    kinds = {
        "finetunes": "definitions",
        "configs": "files",
        "loras": "families",
        "profiles": "files",
        "media": "pictures, videos and sounds that specs name",
        "runs": "runs",
    }
    places = {name: (getattr(found, name), what) for name, what in kinds.items()}
    for name, (place, what) in places.items():
        if place.is_dir():
            yield _counted(name, place, what)
    if absent := [name for name, (place, _) in places.items() if not place.is_dir()]:
        text = f"{', '.join(absent)}: made when something is written there"
        yield Fact("not yet", "note", text, data={"absent": absent})


def _counted(name: str, place: Path, what: str) -> Fact:
    if not place.is_dir():
        return Fact(name, "note", f"{home(place)}, not there")
    count = sum(not entry.name.startswith(".") for entry in place.iterdir())
    return Fact(
        name=name, status="note", text=f"{home(place)}, {count} {what}", data={"path": str(place), "count": count}
    )


def models() -> Iterator[Fact]:
    """The catalogue: what is here, what is broken, and how to get the others."""
    from wanlab import catalog

    absent: dict[str, list[str]] = {"not here": [], "not yet": []}
    for row in catalog.catalogue():
        if row.error:
            yield Fact(row.id, "failed", row.error, row.remedy)
        elif row.on_disk:
            yield Fact(row.id, "ok", f"{row.title}, {size(row.size or 0)}", data={"size": row.size})
        elif catalog.find(row.id).weights.asset:
            remedy = "Install it again: pip install --force-reinstall wanlab"
            yield Fact(
                name=row.id, status="failed", text="ships with wanlab, and files of it are missing", remedy=remedy
            )
        else:
            absent["not yet" if row.missing else "not here"].append(row.id)
    texts = {
        "not here": ("models whose files are not on this machine", "`wanlab models MODEL` says what goes where"),
        "not yet": ("models that need what wanlab lacks", "`wanlab models MODEL` says what"),
    }
    for name, ids in absent.items():
        if ids:
            text, remedy = texts[name]
            yield Fact(name, "absent", f"{len(ids)} {text}: {', '.join(ids)}", remedy, data={"models": ids})
