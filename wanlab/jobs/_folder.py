"""The record that a job keeps in its folder from the moment it is submitted to its end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from wanlab import media, runs
from wanlab.errors import WanlabError, shorten
from wanlab.result import Result, publishable
from wanlab.spec import GenerationSpec
from wanlab.watch import ended_as

_AGAIN = ("crashed", "failed", "cancelled", "oom")


class JobFolder:
    """A run folder while its job waits and runs: `pending`, `running`, then what became of it.

    Beaten by a thread of this process, so that neither a long step nor a long queue is taken for a crash. Raises
    WanlabError for a folder that holds a run which ended well or is in hand, for one that cannot be written and for
    media that are not stored. A run that fails keeps its media too, so that it can be made again from its folder.
    """

    def __init__(self, path: str | Path, model: Any, spec: GenerationSpec) -> None:
        self.path = _free(path)
        self._media = media.run_files(spec.media)
        self._lock = threading.Lock()
        self._ended = self._cut_short = False
        record = runs.RunRecord(
            id=runs.run_id(spec.id, model.fingerprint),
            spec=publishable(spec).to_dict(),
            seeds=[spec.sampling.seed],
            fingerprint=model.fingerprint,
            env=runs.environment(),
            attempt=_attempt(self.path),
        )
        self._record = runs.queue_run(self.path, record)
        runs.keep_alive(self)

    def begin(self) -> None:
        """Note that the job runs."""
        with self._lock:
            self._record = runs.begin_run(self.path, self._record)

    def beat(self) -> None:
        """Note that this process is alive; nothing once the run has ended."""
        with self._lock:
            if not self._ended:
                self._record = runs.beat(self.path, self._record)

    def save(self, result: Result) -> None:
        """Write the complete run and tell the result where it is."""
        result.record = result.record.with_(attempt=self._record.attempt)
        with runs.encoded(self.path, result.artifacts()) as artifacts, self._lock:
            written = runs.write_run(self.path, result.published_record(), artifacts)
            self._ended = True
        result.record = result.record.with_(artifacts=written.artifacts)
        result.lies_in(self.path)

    def cut_short(self) -> None:
        """Note that the process ends: nobody cancelled this run."""
        self._cut_short = True

    def fail(self, error: BaseException) -> None:
        """Write why the run did not end well; what the disk refuses is logged, as the job has an error already."""
        status = ended_as(error)
        if self._cut_short and status == "cancelled":
            status, error = "crashed", ProcessEnded("Python ended before this run did.")
        there = {name: file for name, file in self._media.items() if file.is_file()}
        with self._lock:
            self._ended = True
            runs.fail(self.path, self._record, error, status, runs.shared(there))


class ProcessEnded(Exception):
    """Why a run has no end of its own."""


def _free(path: Any) -> Path:
    """The folder, absolute. Raises WanlabError for a path that is no folder's and for a run that must not be lost."""
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
        raise WanlabError(f"{shorten(path)} is no folder", remedy='Give a path such as "runs/kite"')
    folder = Path(path).absolute()
    if folder.suffix or folder.is_file():
        raise WanlabError(
            f"{shorten(str(path))} is the name of a file, and a job keeps a folder",
            remedy=f'Give folder="{folder.stem}", and write a single file with job.result().save(...)',
        )
    if (folder / runs.RUN_JSON).is_file() and (status := runs.read_run(folder).status) not in _AGAIN:
        what = "holds a finished run" if status == "ok" else f"holds a run that is {status}"
        raise WanlabError(f"{folder} {what}", remedy="Give another folder, or delete this one")
    return folder


def _attempt(folder: Path) -> int:
    """The number of this try: one more than the record in the folder says."""
    return runs.read_run(folder).attempt + 1 if (folder / runs.RUN_JSON).is_file() else 1
