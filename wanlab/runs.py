"""The format of a run folder: `run.json`, the clip, its latents and the media that went in.

    <run>/run.json               written last and atomically: while it is missing, the run does not exist
    <run>/video.mp4|image.png    the clip, with the spec inside
    <run>/latents.safetensors
    <run>/audio.wav              the sound exactly, if there is any; the mp4 has it as AAC
    <run>/media/<sha256>.<ext>   the pictures and videos that the spec names

Files are the truth: any process may die at any moment, and any other one reads what is there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import wanlab
from wanlab.errors import WanlabError
from wanlab.files import PART, atomic_write, read_json, safe_path, sha256_file, sweep, sync_folder, writing
from wanlab.spec import GenerationSpec
from wanlab.spec.part import Part

NUMERICS = 2
"""Raised when the same spec and weights give other results than before; part of every run id."""

SCHEMA = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema n -> pure function that returns the same record in schema n + 1."""

RUN_JSON = "run.json"
STALE_SECONDS = 60.0
_MAX_BYTES = 16 << 20
_SLUG = 40  # characters of a prompt in a folder's name
_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "av", "pydantic")

Status = Literal["pending", "running", "ok", "failed", "cancelled", "oom", "crashed"]


@dataclass(frozen=True)
class Unchanging:
    """A file that nobody writes to again, so that a run folder may share it."""

    path: Path


Source = bytes | Path | Unchanging | Callable[[Path], Any]
"""An artifact's content: bytes, a file to copy or to link to, or a function that writes the file at a path."""


class Artifact(Part):
    """A file of the run folder."""

    path: str
    """Below the run folder, with forward slashes."""
    sha256: str
    bytes: int


class Failure(Part):
    """Why a run did not end well."""

    type: str
    message: str
    traceback_tail: str = ""


class RunRecord(Part):
    """What `run.json` holds. Times are ISO 8601 in UTC, durations seconds, sizes bytes."""

    schema_version: int = Field(SCHEMA, alias="schema")
    id: str = ""
    """`run_id`: what was asked, of which weights, by which numerics."""
    status: Status = "pending"
    attempt: Annotated[int, Field(ge=1)] = 1
    spec: dict[str, Any] = Field(default_factory=dict)
    """The spec as it was asked, with `auto` as the word."""
    resolved: dict[str, Any] = Field(default_factory=dict)
    """What every `auto` became and which kernels and rungs really ran."""
    seeds: tuple[int, ...] = ()
    fingerprint: str = ""
    """Of the weights, see `weights.fingerprint`."""
    numerics: int = NUMERICS
    metrics: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    peak_bytes: int | None = None
    artifacts: tuple[Artifact, ...] = ()
    env: dict[str, Any] = Field(default_factory=dict)
    error: Failure | None = None
    started: str | None = None
    ended: str | None = None
    host: str = ""
    pid: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    heartbeat: str | None = None


def shared(files: Mapping[str, Path]) -> dict[str, Source]:
    """Artifacts that are files which nobody writes to again."""
    return {name: Unchanging(file) for name, file in files.items()}


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_id(spec_id: str, fingerprint: str) -> str:
    """12 hex digits that are equal when spec, weights and numerics are."""
    return hashlib.sha256(f"{spec_id}\n{fingerprint}\n{NUMERICS}".encode()).hexdigest()[:12]


def queue_run(folder: str | Path, record: RunRecord) -> RunRecord:
    """Write `record` as waiting in this process, which is to `beat` it as a running one."""
    record = record.with_(status="pending", host=socket.gethostname(), pid=os.getpid(), heartbeat=now())
    _write_record(Path(folder), record)
    return record


def folder_name(spec: GenerationSpec, run: str) -> str:
    """A name that a person can read and every system can hold: words of the prompt, seed, run id.

    "a-red-circle-moves-right_seed7_0123456789ab"; at most 40 characters of the prompt, in ASCII, and none of it if the
    spec strips prompts. `run` may come from a foreign file.
    """
    prompt = "" if spec.output.strip_prompt else spec.text.prompt
    plain = unicodedata.normalize("NFKD", prompt[:400]).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > _SLUG:
        words = words[: _SLUG + 1].rpartition("-")[0] or words[:_SLUG]  # ends with a whole word
    return "_".join(filter(None, [words, f"seed{spec.sampling.seed}", re.sub(r"[^a-z0-9]", "", run.lower())[:12]]))


def new_folder(root: str | Path, name: str, is_same: Callable[[Path], bool] | None = None) -> tuple[Path, bool]:
    """Make `root/name`, or `root/name-2`, `-3` and so on where that is taken; returns the folder and whether it is new.

    is_same: asked of each folder that is there already; the first one that it accepts is returned instead of a new one.
    Two processes never get the same new folder. Raises WanlabError where nothing can be made.
    """
    safe_path(root, name)
    for number in itertools.count(1):
        folder = Path(root).absolute() / (name if number == 1 else f"{name}-{number}")
        with writing(folder):
            try:
                folder.mkdir(parents=True)
                return folder, True
            except FileExistsError:
                if not folder.exists():  # a parent is a file, or the name a link to nothing
                    raise
        if is_same is not None and is_same(folder):
            return folder, False
    raise AssertionError("endless")


def begin_run(folder: str | Path, record: RunRecord) -> RunRecord:
    """Write `record` as running in this process; `beat` it at least once a minute or others see it as crashed.

    For jobs with a folder and for sweeps, whose workers find out from these records what another worker has in hand
    and what died in its hands; `generate` and `Result.save` write only runs that ended.
    """
    time = now()
    record = record.with_(
        status="running", host=socket.gethostname(), pid=os.getpid(), started=record.started or time, heartbeat=time
    )
    _write_record(Path(folder), record)
    return record


def beat(folder: str | Path, record: RunRecord) -> RunRecord:
    """Tell other processes that a pending or running record is alive; for the process that wrote it."""
    record = record.with_(heartbeat=now())
    _write_record(Path(folder), record)
    return record


def write_run(folder: str | Path, record: RunRecord, artifacts: Mapping[str, Source]) -> RunRecord:
    """Write the artifacts, then `run.json`; returns the record with each file's hash and size.

    artifacts: {path below the folder: content}. Everything is written beside its place first, so a process that dies
    leaves the former run untouched, or (within the renames) a folder without run.json, never one that lies. Files
    that only the former run had are deleted at the end.
    Raises `WanlabError` for a path outside the folder and for a full disk.
    """
    folder = Path(folder)
    assert RUN_JSON not in artifacts, "the record is no artifact"
    places = {name: safe_path(folder, name) for name in artifacts}
    parts = {name: place.with_name(f"{PART}{place.name}") for name, place in places.items()}
    last = folder / f"{PART}{RUN_JSON}"
    with writing(folder):
        try:
            for name, source in artifacts.items():
                _produce(parts[name], source)
            entries = [
                Artifact(path=name, sha256=sha256_file(part), bytes=part.stat().st_size) for name, part in parts.items()
            ]
            record = record.with_(artifacts=entries)
            _produce(last, _text(record).encode())
            former = _listed(folder)
            if former:  # while its files are replaced, it would lie; from here on only renames: a full disk allows them
                (folder / RUN_JSON).unlink(missing_ok=True)
            for name, part in parts.items():
                os.replace(part, places[name])
                sync_folder(places[name].parent)
            os.replace(last, folder / RUN_JSON)
            sync_folder(folder)
        finally:
            for part in (*parts.values(), last):
                part.unlink(missing_ok=True)
    for path in former - set(places.values()):
        with contextlib.suppress(OSError):  # the new run is whole; what cannot be deleted is in nobody's way
            path.unlink()
    sweep(folder)
    return record


def _listed(folder: Path) -> set[Path]:
    """Files that the folder's present record names; none where there is no readable one."""
    try:
        return {safe_path(folder, entry.path) for entry in read_run(folder).artifacts} - {safe_path(folder, RUN_JSON)}
    except WanlabError:
        return set()


def _produce(part: Path, source: Source) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        part.write_bytes(source)
    elif isinstance(source, Path):
        shutil.copyfile(source, part)
    elif isinstance(source, Unchanging):
        if _linked(source.path, part):
            return
        shutil.copyfile(source.path, part)
    else:
        source(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def _linked(file: Path, part: Path) -> bool:
    """Make `part` another name of a file; False where the disk or its rules do not allow that."""
    part.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), part)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _write_record(folder: Path, record: RunRecord) -> None:
    atomic_write(folder / RUN_JSON, _text(record))


def _text(record: RunRecord) -> str:
    return record.model_dump_json(by_alias=True, indent=2) + "\n"


def read_run(folder: str | Path) -> RunRecord:
    """The record of a run folder; one that claims to wait or to run but is stale reads as crashed.

    Raises `WanlabError` for a folder without run.json, an unreadable one and one of a newer schema.
    """
    path = Path(folder) / RUN_JSON
    if not path.is_file():
        remedy = "Give the folder that holds run.json; without it the run did not end, run it again"
        raise WanlabError(f"{folder} is no run folder: it has no {RUN_JSON}", remedy=remedy)
    record = RunRecord.parse(_migrated(read_json(path, _MAX_BYTES), path), prefix=path.name)
    return record.with_(status="crashed") if _is_stale(record) else record


def _migrated(data: Any, path: Path) -> dict[str, Any]:
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise WanlabError(f"{path} is no run record: it has no schema number", remedy="Run it again")
    if schema > SCHEMA:
        remedy = "A newer wanlab wrote it: update wanlab"
        raise WanlabError(f"{path} has schema {schema}, this version reads up to {SCHEMA}", remedy=remedy)
    for version in range(schema, SCHEMA):
        data = {**MIGRATIONS[version](data), "schema": version + 1}
    return data


def _is_stale(record: RunRecord) -> bool:
    planned = record.status == "pending" and record.pid is None  # nobody has it in hand yet
    if record.status not in ("pending", "running") or planned:
        return False
    if record.host == socket.gethostname() and record.pid is not None and not _is_alive(record.pid):
        return True
    return record.heartbeat is None or _age(record.heartbeat) > STALE_SECONDS


def _age(time: str) -> float:
    """Seconds since a time of `now`; infinite for anything else, such as a time without its zone."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return math.inf


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, another user's
        return True
    return True


def artifact(folder: str | Path, record: RunRecord, name: str) -> Path:
    """The path of one of the run's files, checked to be there with the recorded size and hash (about 1 s a GB).

    Raises `WanlabError` for a name the record does not list and for a file that is missing or has changed.
    """
    entry = next((a for a in record.artifacts if a.path == name), None)
    if entry is None:
        listed = [a.path for a in record.artifacts]
        raise WanlabError(f"The run has no file {name!r}", choices=listed, remedy="Give one of its files")
    path = safe_path(Path(folder), name)
    if not path.is_file():
        raise WanlabError(f"{path} is missing from the run folder", remedy="Restore it, or run the spec again")
    if path.stat().st_size != entry.bytes:
        found = f"{path.stat().st_size} bytes, not {entry.bytes}"
        raise WanlabError(f"{path} has changed since it was written: {found}", remedy="Run the spec again")
    if sha256_file(path) != entry.sha256:
        raise WanlabError(f"{path} has changed since it was written: other content", remedy="Run the spec again")
    return path


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for `run.json`. Imports nothing; asks torch for the device if it is loaded."""
    versions = {"wanlab": wanlab.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "platform": platform.platform(), **versions, **_device(), **_commit()}


def _device() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        found |= {"gpu": torch.cuda.get_device_name(index), "capability": list(torch.cuda.get_device_capability(index))}
    return found


@functools.cache
def _commit() -> dict[str, Any]:
    """The commit of this checkout; nothing for an installed package, even inside somebody's repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, or a repository it does not trust
        return {}
    return {"commit": head, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
