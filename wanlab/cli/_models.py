"""`wanlab models`: the catalogue, and one model in full."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.cli._console import command, say
from wanlab.cli._progress import ProgressLine
from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab.catalog import Definition, FileSource

_WIDTH = 100  # columns
_TAKES = {
    "text": "text (prompt)",
    "first_frame": "first frame (image)",
    "last_frame": "last frame (last_image)",
    "video": "video to go on from (video)",
    "control": "control video (video)",
    "mask": "mask of it (mask)",
    "references": "reference pictures (references)",
    "keyframes": "pictures at given frames (keyframes)",
    "audio": "sound (audio)",
    "animate": "picture that moves as a video does (image, pose_video, face_video)",
    "replace": "picture that replaces somebody in a video (the same, video, mask)",
}
"""Words of a definition's modes, with the settings that give them."""
_CACHES = {"mag_ratios": "magcache", "teacache": "teacache"}
"""A definition's constants that were measured for a cache, and the cache."""
_ROOTS = {"folder": "checkpoints", "wangp": "WanGP", "comfyui": "ComfyUI", "hub": "hub's cache"}


def run(words: Sequence[str]) -> int:
    """Print all models, or the one that is named; or fetch that one's weights."""
    parser = command("models", "[MODEL] [options]", "List the models and what of them is on this machine.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an id or another name of a model, or a definition")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--download", action="store_true", help="fetch what of MODEL is not on this machine")
    parser.add_argument("--stored-as", default="auto", metavar="KIND", help="float, fp8, int8 or gguf: what to fetch")
    arguments = parser.parse_intermixed_args(words)
    if arguments.stored_as != "auto" and not arguments.download:
        raise WanlabError("--stored-as says what to fetch", remedy="Give --download too, or leave it out")
    if arguments.download:
        _download(arguments.model, arguments.stored_as)
    if arguments.model is None:
        rows = overview()
        say(json.dumps(rows, indent=2) if arguments.json else _table(rows))
    else:
        found = details(arguments.model)
        say(json.dumps(found, indent=2) if arguments.json else _page(found))
    return 0


def _download(what: str | None, stored_as: str) -> None:
    """Fetch a model's files, with a line on stderr that says how far it is."""
    from wanlab import catalog, weights

    if what is None:
        raise WanlabError("--download needs a MODEL", remedy="wanlab models lists them")
    line = ProgressLine()
    try:
        weights.download(catalog.find(what), stored_as=stored_as, progress=line.show)
    finally:
        line.close()


def overview() -> list[dict[str, Any]]:
    """The catalogue's rows, each with `folder`, where most of the files are, and `lacks`, the files it lacks there."""
    from wanlab import catalog

    rows = []
    for row in catalog.catalogue():
        folder, lacks = (None, []) if row.error else catalog.nearest_folder(catalog.find(row.id))
        rows.append({**row.model_dump(), "folder": folder and str(folder), "lacks": [] if row.on_disk else lacks})
    return rows


def details(what: str) -> dict[str, Any]:
    """All of one definition but its architecture: names, sources, settings, and every folder that is looked into."""
    from wanlab import catalog
    from wanlab.workspace import find_workspace

    definition, workspace = catalog.find(what), find_workspace()
    here = catalog.presence(definition)
    places = [
        {"folder": str(place), "exists": place.is_dir(), "missing": catalog.missing_files(definition, place)}
        for place in catalog.candidates(definition)
    ]
    return {
        **definition.model_dump(include={"id", "family", "title", "description", "aliases", "missing"}, mode="json"),
        "takes": _takes(definition),
        "caches": _caches(definition),
        "defined_in": str(catalog.defined_in(what) or ""),
        "weights": definition.weights.model_dump(mode="json", exclude_defaults=True),
        "folder": None if here.folder is None else str(here.folder),
        "components": {name: [str(file) for file in files] for name, files in here.files.items()},
        "lacks": {name: source.path for name, source in here.missing.items()},
        "lacking": {name: _way(source, workspace.checkpoints[0]) for name, source in here.missing.items()},
        "on_disk": here.is_complete,
        "size": here.size,
        "remedy": catalog.remedy(definition, here),
        "target": str(definition.weights.folder or workspace.checkpoints[0] / definition.id),
        "places": places,
        "roots": [{"folder": str(r.path), "kind": r.kind, "exists": r.path.is_dir()} for r in workspace.roots],
        "settings": catalog.default_spec(definition).flat(),
        "constants": sorted(definition.constants),
        "sources": definition.sources,
    }


def _takes(definition: Definition) -> list[str]:
    """The media that a model takes, in words; a prompt always."""
    modes = definition.constants.get("modes", ())
    known = [str(mode) for mode in modes] if isinstance(modes, list | tuple) else []
    return [_TAKES.get(mode, mode) for mode in dict.fromkeys(["text", *known])]


def _caches(definition: Definition) -> dict[str, str]:
    """Caches that have constants for the model, and the model that those were measured on; empty if nobody says."""
    found: dict[str, str] = {}
    for key, cache in _CACHES.items():
        entry = definition.constants.get(key)
        if not isinstance(entry, dict):
            continue
        made_for, also = entry.get("made_for"), entry.get("also")
        model = (made_for.get("model") if isinstance(made_for, dict) else None) or ""
        is_named = isinstance(also, list) and definition.id in also
        found[cache] = definition.id if is_named or model in (definition.id, *definition.aliases) else str(model)
    return found


def _caches_in_words(found: dict[str, Any]) -> str:
    caches = found["caches"].items()
    words = [cache if model in ("", found["id"]) else f"{cache} (measured on {model})" for cache, model in caches]
    return ", ".join(words) or "none"


def _way(source: FileSource, folder: Path) -> str:
    """Where a file belongs, and where it comes from."""
    from wanlab import catalog

    place = source.path if source.is_local else str(catalog.home(source, folder))
    origin = source.url or source.repo
    return f"{place} from {origin}" if origin else place


def _table(rows: list[dict[str, Any]]) -> str:
    heads = ("model", "family", "on disk", "title")
    cells = [(row["id"], row["family"], _size(row), _title(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (heads, *cells)]
    for row in (row for row in rows if row["folder"] and not row["on_disk"]):
        where = f"{len(row['lacks'])} files in {row['folder']}"
        then = f" {row['remedy']}." if row["remedy"] else ""
        lines += ["", *_wrapped(f"{row['id']} lacks {where}.{then}", "")]
    for row in (row for row in rows if row["error"]):
        lines += ["", *_wrapped(f"{row['id']} is broken. {row['error']}", "")]
    hint = "`wanlab models MODEL` says what a model lacks; `wanlab models --download MODEL` fetches it."
    return "\n".join([*lines, "", hint])


def _title(row: dict[str, Any]) -> str:
    marks = [" (yours)" if row["defined_in"] else "", " (cannot run yet)" if row["missing"] else ""]
    return row["title"] + "".join(marks)


def _size(row: dict[str, Any]) -> str:
    if row.get("error"):
        return "broken"
    if row["size"] is not None:
        return f"{row['size'] / 1e6:,.1f} MB"
    return "in part" if row["folder"] else "no"


def _page(found: dict[str, Any]) -> str:
    weights = found["folder"] or ("a file for each network" if found["on_disk"] else "not on this machine")
    lines = [f"{found['id']}: {found['title']}", *_wrapped(found["description"])]
    lines += _facts(
        {
            "family": found["family"],
            "takes": ", ".join(found["takes"]),
            "cache constants": _caches_in_words(found),
            "other names": ", ".join(found["aliases"]),
            "defined in": found["defined_in"],
            "cannot run yet": found["missing"],
            "weights": f"{weights} ({_size(found)})" if found["on_disk"] else weights,
            "remedy": found["remedy"],
        }
    )
    lines += _needed(found)
    lines += ["", "Looked for in"]
    lines += [line for place in found["places"] for line in _wrapped(f"{place['folder']}: {_state(place)}")]
    for root in found["roots"]:
        state = "searched" if root["exists"] else "not there"
        lines += _wrapped(f"{root['folder']} ({_ROOTS[root['kind']]}): {state}")
    lines += ["", "Settings and their defaults"]
    lines += _facts({name: _cut(json.dumps(value, ensure_ascii=False)) for name, value in found["settings"].items()})
    if found["sources"]:
        lines += ["", "Where the values come from", *_facts(found["sources"])]
    return "\n".join(lines)


def _needed(found: dict[str, Any]) -> list[str]:
    """The two ways to have a model's weights, each under its own head: a whole folder, files of single networks."""
    source, lines = found["weights"], []
    if any(source.get(name) for name in ("asset", "folder", "repo")):
        repo = f"https://huggingface.co/{source['repo']}" if source.get("repo") else ""
        place = "" if found["on_disk"] else found["target"]
        folder = {"source": repo, "put into": place, "files": ", ".join(source.get("files", []))}
        lines += ["", "As a folder", *_facts(folder)]
    lacks = {} if found["on_disk"] else {f"lacks {name}": path for name, path in found["lacking"].items()}
    files = {**{name: ", ".join(paths) for name, paths in found["components"].items()}, **lacks}
    if files:
        lines += ["", "Or as single files" if lines else "As single files", *_facts(files)]
    return lines


def _cut(text: str) -> str:
    """Text short enough for one line; characters of the far East are two columns wide. --json prints all."""
    limit = 72 if text.isascii() else 36
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _state(place: dict[str, Any]) -> str:
    if not place["exists"]:
        return "not there"
    return f"lacks {', '.join(place['missing'])}" if place["missing"] else "complete"


def _facts(facts: dict[str, str]) -> list[str]:
    """Aligned lines `  name  value`; empty values are left out."""
    width = max(map(len, facts))
    return [
        line for name, value in facts.items() if value for line in _wrapped(f"{name:{width}}  {value}", hang=width + 4)
    ]


def _wrapped(text: str, indent: str = "  ", hang: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if hang is None else " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
