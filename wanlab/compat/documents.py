"""What a file of settings holds, whoever wrote it: one JSON object with settings, and whose they are."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wanlab.compat.keys import KEYS
from wanlab.compat.metadata import MAX_TEXT, form_of, read_texts
from wanlab.compat.migrations import PRESET_VERSION
from wanlab.errors import WanlabError, shorten
from wanlab.files import read_json
from wanlab.runs import RUN_JSON, read_run

KIND = "wanlab settings"
"""What a file that `Settings.save` wrote says about itself."""
_QUEUE = "queue.json"
_NOT_OURS = "Give a spec, a run folder, or a file that wanlab or WanGP wrote."
Whose = Literal["spec", "settings", "wangp"]


@dataclass(frozen=True)
class Document:
    """Settings as they were found."""

    whose: Whose
    """`spec`: a GenerationSpec; `settings`: what Settings.save wrote; `wangp`: WanGP's."""
    content: Mapping[str, Any]
    least_version: float = 0.0
    """Version of WanGP's settings that they have at least."""


def read_document(path: Path, task: int | None = None) -> Document:
    """The settings in a run folder, JSON, video, picture or queue. Raises WanlabError that names the file.

    A video or picture without settings is looked up in the JSON of the same name beside it, as WanGP writes it on wish.
    task: which one, from 1, of a queue of several.
    """
    if path.is_dir() or path.name == RUN_JSON:
        return Document("spec", read_run(path if path.is_dir() else path.parent).spec)
    form = form_of(path)
    if form == "zip":
        return _of_json(_chosen(_queue(path), path, task), path)
    if form == "text":
        return _of_json(_chosen(_named(path, lambda: read_json(path, MAX_TEXT)), path, task), path)
    return _of_media(path, task)


def _named(path: Path, read: Any) -> Any:
    """What `read` returns; an error of a text inside names the file too."""
    try:
        return read()
    except WanlabError as error:
        if str(path) in error.problem:
            raise
        raise WanlabError(f"{path}: {error.problem}", choices=error.choices, remedy=error.remedy) from None


def _of_media(path: Path, task: int | None) -> Document:
    texts = read_texts(path)
    text = texts.get("wanlab") or texts.get("comment", "")
    text = text.replace("\ufeff", "").rstrip("\0 \r\n\t")
    found = _named(path, lambda: read_json(text, MAX_TEXT)) if text.lstrip().startswith(("{", "[")) else None
    if isinstance(found, dict) and not found.get("_wangp_metadata_reserved"):
        if isinstance(found.get("wanlab"), dict) and isinstance(found["wanlab"].get("spec"), dict):
            return Document("spec", found["wanlab"]["spec"])
        if "WanGP" not in str(found.get("type", "")):
            what = f"is by {shorten(found['type'], 60)}" if "type" in found else "does not say who wrote it"
            raise WanlabError(f"{path} has a text that {what}, not WanGP", remedy=_NOT_OURS)
        return Document("wangp", found)
    beside = path.with_suffix(".json")
    if beside.is_file():
        return read_document(beside, task)
    raise WanlabError(
        f"{path} carries no settings, and {beside.name} is not beside it",
        remedy="Sites that re-encode videos and pictures remove them: give the original file.",
    )


def _queue(path: Path) -> Any:
    """The tasks of a queue's zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename == _QUEUE]
            if len(names) != 1:
                raise WanlabError(f"{path} is no queue of WanGP: it has no {_QUEUE}", remedy=_NOT_OURS)
            if names[0].file_size > MAX_TEXT:
                raise WanlabError(f"{path}: {_QUEUE} has more than {MAX_TEXT:,} bytes", remedy=_NOT_OURS)
            with archive.open(names[0]) as file:
                text = file.read(MAX_TEXT + 1).decode("utf-8-sig")
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, WanlabError):
            raise
        raise WanlabError(f"{path} is a damaged zip: {error}", remedy="Save the queue again.") from None
    if not text.lstrip().startswith(("{", "[")):
        raise WanlabError(f"{path}: {_QUEUE} is no JSON", remedy="Save the queue again.")
    return _named(path, lambda: read_json(text, MAX_TEXT))


def _chosen(found: Any, path: Path, task: int | None) -> Any:
    """One task of a list, or the object that is no list."""
    if not isinstance(found, list):
        if task not in (None, 1):
            raise WanlabError(f"{path} holds one task, not {task}", remedy="Leave task out.")
        return found
    numbers = range(1, len(found) + 1)
    if not found:
        raise WanlabError(f"{path} is a queue without tasks", remedy=_NOT_OURS)
    if task is None and len(found) > 1:
        raise WanlabError(f"{path} holds {len(found)} tasks", choices=[f"task=1 to task={len(found)}"])
    if task is not None and task not in numbers:
        raise WanlabError(f"{path} has no task {task}", choices=[f"1 to {len(found)}"])
    item = found[(task or 1) - 1]
    return item["params"] if isinstance(item, dict) and isinstance(item.get("params"), dict) else item


def _of_json(found: Any, path: Path) -> Document:
    if not isinstance(found, dict):
        raise WanlabError(f"{path} holds no settings but {shorten(found, 40)}", remedy=_NOT_OURS)
    if found.get("kind") == KIND:
        return Document("settings", found)
    if isinstance(found.get("model"), str):
        return Document("spec", found)
    if isinstance(found.get("spec"), dict) and "artifacts" in found:
        return Document("spec", found["spec"])
    if isinstance(found.get("wanlab"), dict):
        raise WanlabError(f"{path} is metadata of wanlab taken out of its file", remedy=_NOT_OURS)
    if isinstance(found.get("model"), dict):
        raise WanlabError(f"{path} defines a model, it is no settings of a generation", remedy=_NOT_OURS)
    if "loras" in found and "loras_mult" in found:
        raise WanlabError(
            f"{path} is a preset of LoRAs", remedy="Apply it: wanlab.compat.apply_lset(settings, json.loads(...))."
        )
    maker = found.get("type")
    if maker is not None and "WanGP" not in str(maker):
        raise WanlabError(f"{path} is by {shorten(maker, 60)}, not WanGP", remedy=_NOT_OURS)
    if maker is None and not (KEYS.keys() | {"settings_version", "model_type"}) & found.keys():
        raise WanlabError(f"{path} has no setting of wanlab or WanGP", remedy=_NOT_OURS)
    is_preset = maker is None and "settings_version" not in found
    return Document("wangp", found, PRESET_VERSION if is_preset else 0.0)
