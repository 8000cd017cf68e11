"""Writing run folders: whole or not at all, and never over what somebody else has in hand."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError
from wanlab.files import PART, atomic_write, safe_path, sha256_file, sweep, sync_folder, writing
from wanlab.runs._held import check_held, release
from wanlab.runs._record import RUN_JSON, Artifact, RunRecord, now, read_run
from wanlab.spec import GenerationSpec

_SLUG = 40  # characters of a prompt in a folder's name


@dataclass(frozen=True)
class Unchanging:
    """A file that nobody writes to again, so that a run folder may share it."""

    path: Path


Source = bytes | Path | Unchanging | Callable[[Path], Any]
"""An artifact's content: bytes, a file to copy or to link to, or a function that writes the file at a path."""


def shared(files: Mapping[str, Path]) -> dict[str, Source]:
    """Artifacts that are files which nobody writes to again."""
    return {name: Unchanging(file) for name, file in files.items()}


def queue_run(folder: str | Path, record: RunRecord) -> RunRecord:
    """Write `record` as waiting in this process, which is to `beat` it as a running one."""
    record = record.in_hand("pending")
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
    record = record.in_hand("running")
    record = record.with_(started=record.started or record.heartbeat)
    _write_record(Path(folder), record)
    return record


def beat(folder: str | Path, record: RunRecord) -> RunRecord:
    """Tell other processes that a pending or running record is alive; for the process that wrote it."""
    record = record.with_(heartbeat=now())
    _write_record(Path(folder), record)
    return record


@contextmanager
def encoded(
    folder: Path, artifacts: Mapping[str, Source], around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[dict[str, Source]]:
    """The artifacts for `write_run`, those that functions make already made and lying beside their places.

    Encoding may take minutes, in which signs of life and interrupts go on; `around` is entered for each. Raises
    WanlabError for a full disk. What was not written away is deleted at the end.
    """
    found: dict[str, Source] = dict(artifacts)
    parts = {name: folder / f"{PART}encoded-{name}" for name, source in artifacts.items() if callable(source)}
    try:
        for name, part in parts.items():
            make = artifacts[name]
            assert callable(make)
            with writing(folder), around():
                make(part)
            found[name] = functools.partial(os.replace, part)
        yield found
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def write_run(folder: str | Path, record: RunRecord, artifacts: Mapping[str, Source]) -> RunRecord:
    """Write the artifacts, then `run.json`; returns the record with each file's hash and size.

    artifacts: {path below the folder: content}. Everything is written beside its place first, so a process that dies
    leaves the former run untouched, or (within the renames) a folder without run.json, never one that lies. Files
    that only the former run had are deleted at the end.
    Raises `WanlabError` for a path outside the folder, for a full disk and for a run that this process claimed and
    another one took over meanwhile.
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
            check_held(folder)
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
    if record.status not in ("pending", "running"):
        release(folder)
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
