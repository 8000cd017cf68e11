"""States of runs on their way, as files: who is stopped goes on from the newest one, to the same bits."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from wanlab.errors import WanlabError
from wanlab.files import atomic_write, read_json, sha256_file
from wanlab.runs import NUMERICS
from wanlab.sampling import SamplerState, load_state, save_state

SCHEMA = 1
_SECONDS = 60.0  # between checkpoints where no number of steps is given
_log = logging.getLogger(__name__)
_KEPT = 2  # newest files of every key: the last one may be damaged


class Checkpoint(Protocol):
    """What `denoise_together` needs of a place for states."""

    def due(self, step: int) -> bool:
        """Whether to save the state before `step`."""

    def save(self, step: int, state: SamplerState, keys: list[str]) -> None:
        """Keep the state that these variants have before `step`."""

    def load(self, key: str) -> SamplerState | None:
        """The newest state of a variant; the same object for all that it is of."""

    def drop(self, keys: list[str]) -> None:
        """Forget variants that are done."""


@dataclass
class _File:
    step: int
    number: int
    keys: set[str]
    """Those that are not done."""


class Checkpoints:
    """Checkpoints in a folder, which one process at a time uses: "<number>.safetensors" and, written last, its JSON.

    A state is due every `num_steps` steps, or, with None, 60 s after the last one. Of every key the two newest files
    are kept, so also those of forks that wait. Files of other weights (`fingerprint`), of another NUMERICS and damaged
    ones are not read.
    """

    def __init__(self, folder: str | Path, fingerprint: str, num_steps: int | None = None) -> None:
        if num_steps is not None and num_steps < 1:
            raise WanlabError(f"checkpoints every {num_steps} steps", remedy="Give 1 or more, or None for 60 s")
        self.folder = Path(folder)
        self._fingerprint, self._num_steps = fingerprint, num_steps
        self._last = time.monotonic()
        self._files = {number: _File(r["step"], number, set(r["keys"])) for number, r in self._records()}
        self._next = 1 + max((int(p.name.split(".")[0]) for p in self.folder.glob("[0-9]*.*")), default=0)
        self._loaded: WeakValueDictionary[int, SamplerState] = WeakValueDictionary()
        self._known: set[str] = set()

    def due(self, step: int) -> bool:
        """Whether to save the state before `step`."""
        if self._num_steps is not None:
            return step % self._num_steps == 0
        return time.monotonic() - self._last >= _SECONDS

    def save(self, step: int, state: SamplerState, keys: list[str]) -> None:
        """Write the state that these variants have before `step`; a disk that refuses is logged: it stops no run."""
        number, self._next, self._last = self._next, self._next + 1, time.monotonic()
        try:
            save_state(state, self._path(number))
            record = {"schema": SCHEMA, "step": step, "keys": keys, "sha256": sha256_file(self._path(number))}
            record |= {"fingerprint": self._fingerprint, "numerics": NUMERICS}
            atomic_write(self._path(number, "json"), json.dumps(record))
        except (WanlabError, OSError) as error:
            _log.warning("The state before step %d was not saved: %s", step, error)
            with contextlib.suppress(OSError):
                self._path(number).unlink(missing_ok=True)
            return
        self._files[number] = _File(step, number, set(keys))
        self._known |= set(keys)
        self._clean()
        self._last = time.monotonic()

    def load(self, key: str) -> SamplerState | None:
        """The newest state of a variant; None where there is none that can be read."""
        self._known.add(key)
        for file in sorted(self._files.values(), key=lambda f: (-f.step, -f.number)):
            if key in file.keys and (state := self._read(file.number)) is not None:
                return state
        return None

    def drop(self, keys: Iterable[str]) -> None:
        """Forget variants that are done, and the files that are of nobody else that was asked for."""
        self._known -= set(keys)
        for file in self._files.values():
            file.keys -= set(keys)
        self._clean()

    def _records(self) -> list[tuple[int, Any]]:
        """(number, record) of the files that this run may go on from."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*.json")):
            with contextlib.suppress(WanlabError, ValueError, KeyError, TypeError):
                record = read_json(path)
                mine = (record["schema"], record["fingerprint"], record["numerics"])
                if mine == (SCHEMA, self._fingerprint, NUMERICS) and {"step", "keys", "sha256"} <= set(record):
                    found.append((int(path.stem), record))
        return found

    def _read(self, number: int) -> SamplerState | None:
        state, path = self._loaded.get(number), self._path(number)
        if state is None:
            try:
                if sha256_file(path) != read_json(self._path(number, "json"))["sha256"]:
                    return None
                self._loaded[number] = state = load_state(path)
            except (WanlabError, OSError):
                return None
        return state

    def _clean(self) -> None:
        """Delete what is not among the newest of any key that was asked for."""
        kept: set[int] = set()
        for key in self._known:
            of_key = sorted((f for f in self._files.values() if key in f.keys), key=lambda f: (f.step, f.number))
            kept |= {file.number for file in of_key[-_KEPT:]}
        for number in set(self._files) - kept:
            for path in (self._path(number, "json"), self._path(number)):
                path.unlink(missing_ok=True)
            del self._files[number]

    def _path(self, number: int, suffix: str = "safetensors") -> Path:
        return self.folder / f"{number:06d}.{suffix}"


def adopt(root: Path, group: str, mine: Collection[str], is_settled: Callable[[str], bool]) -> Path:
    """A folder below `root` for the checkpoints of a group, that no other process uses.

    What a process left which died is taken over: the folder with the latest state of one of `mine`, which only one
    process holds at a time. If it has states of others too that are not settled, its files get a second name, in the
    new folder, and the old one is left to those.
    """
    new = root / f"{group}-{uuid.uuid4().hex[:8]}"
    found = {folder: _steps(folder) for folder in sorted(root.glob(f"{group}-*"))}
    latest = {folder: max((steps[key] for key in steps if key in mine), default=-1) for folder, steps in found.items()}
    for folder in sorted(found, key=lambda folder: -latest[folder]):
        if latest[folder] < 0:
            break
        with contextlib.suppress(OSError):  # another process was quicker
            if all(key in mine or is_settled(key) for key in found[folder]):
                folder.rename(new)
            else:
                _link(folder, new)
            break
    return new


def _link(folder: Path, new: Path) -> None:
    """Give the states of a folder, whose files are deleted but never changed, a second name in another one."""
    new.mkdir(parents=True)
    for record in sorted(folder.glob("[0-9]*.json")):
        with contextlib.suppress(FileNotFoundError):  # whoever has the folder goes on
            for path in (record.with_suffix(".safetensors"), record):  # the record last, as they are written
                try:
                    os.link(path, new / path.name)
                except FileNotFoundError:
                    raise
                except OSError:  # no hard links here
                    shutil.copyfile(path, new / path.name)


def tidy(root: Path, groups: Collection[str], settled: Collection[str]) -> None:
    """Delete what processes left that died: the folders of groups that are done, and those with settled runs only.

    Whoever still writes into one loses nothing but the chance to go on from there.
    """
    for folder in root.glob("*-*"):
        keys = set(_steps(folder))
        if folder.name.rpartition("-")[0] in groups or (keys and keys <= set(settled)):
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        root.rmdir()


def _steps(folder: Path) -> dict[str, int]:
    """All runs that a folder has states of, and the step of the latest one."""
    found: dict[str, int] = {}
    for path in folder.glob("[0-9]*.json"):
        with contextlib.suppress(WanlabError, KeyError, TypeError):
            record = read_json(path)
            found |= {key: max(record["step"], found.get(key, 0)) for key in record["keys"]}
    return found
