"""`wanlab.log`: what a notebook finds out, put into its run and into the notebook itself."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanlab import notebook, runs
from wanlab.errors import WanlabError, shorten
from wanlab.files import atomic_write, read_json
from wanlab.spec.part import plain

RUN_VARIABLE = "WANLAB_RUN"
"""The variable of a kernel that names its run folder."""
LOGGED = "metrics.json"
"""What a notebook has logged so far; moves into run.json at the end."""
MIME = "application/vnd.wanlab.run+json"
_MOST = 4 << 20  # bytes of one run's metrics
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


def log(**metrics: Any) -> None:
    """Put metrics into the run of this notebook, and show them: wanlab.log(psnr=31.2, forwards=40).

    Numbers, text, true and false, lists and dicts of them; numpy and torch scalars become numbers. A later call adds to
    an earlier one and replaces equal names. A Result is saved into the run folder, and the metric is its file's name:
    `wanlab.log(video=result)` as video.mp4, or `image=` a single frame as image.png, which tables show of the run.
    Outside of an experiment metrics are only shown. Raises WanlabError, naming the metric, for NaN, infinities and what
    JSON cannot say; nothing is stored then.
    """
    if not metrics:
        raise WanlabError("log got no metrics", remedy="Name them: wanlab.log(psnr=31.2)")
    results = {name: value for name, value in metrics.items() if hasattr(value, "save") and hasattr(value, "frames")}
    values = {name: _value(name, value) for name, value in metrics.items() if name not in results}
    folder = os.environ.get(RUN_VARIABLE)
    files = {}
    if folder:
        files = {name: _saved(name, result, Path(folder)) for name, result in results.items()}
        _store(Path(folder) / LOGGED, values | files, list(files.values()))
    _show(values | {name: files.get(name) or _words(result) for name, result in results.items()})


def shared_folder(name: str) -> Path:
    """A folder for what the points of an experiment have in common, such as reference clips: `name` beside the runs.

    The same for all points, so that `run_sweep` makes there what none has made yet. Outside of an experiment it lies in
    runs/ of the current folder. Raises WanlabError for a name that is no plain word.
    """
    if not _FILE.fullmatch(name):
        raise WanlabError(f"{shorten(name)} cannot name a folder", remedy='Give a plain name: shared_folder("clips")')
    run = os.environ.get(RUN_VARIABLE)
    return (Path(run).parent if run else Path.cwd() / "runs") / name


@dataclass(frozen=True)
class Logged:
    """What a notebook has logged into its run folder so far."""

    metrics: dict[str, Any]
    files: list[str]
    env: dict[str, Any]
    """Of the kernel, which knows its device."""


def logged(folder: Path) -> Logged:
    """Read what a notebook has logged. Raises WanlabError for a file that cannot be read."""
    path = folder / LOGGED
    found = read_json(path, 2 * _MOST) if path.is_file() else {}
    return Logged(found.get("metrics", {}), found.get("files", []), found.get("env", {}))


def _value(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(plain(value, name)))  # numpy's own floats become Python's
    except WanlabError as error:
        if getattr(value, "ndim", 0):  # an array's own message is about media
            shape = tuple(value.shape)
            raise WanlabError(f"Metric {name} is an array of shape {shape}", remedy="Log numbers or a list") from None
        raise WanlabError(f"Metric {error.problem}", choices=error.choices, remedy=error.remedy) from None


def _saved(name: str, result: Any, folder: Path) -> str:
    if not _FILE.fullmatch(name):
        raise WanlabError(f"{shorten(name)} cannot name a file", remedy="Give a result a plain name: log(clip=result)")
    file = f"{name}.mp4" if result.is_video else f"{name}.png"
    result.save(folder / file)
    return file


def _words(result: Any) -> str:
    return f"{len(result.frames)} frames, run {result.run_id}"


def _store(path: Path, values: dict[str, Any], files: list[str]) -> None:
    before = logged(path.parent)
    files = list(dict.fromkeys(before.files + files))
    text = json.dumps({"metrics": before.metrics | values, "files": files, "env": runs.environment()}, indent=2)
    if len(text) > _MOST:
        raise WanlabError(f"The metrics of a run take {len(text):,} bytes", remedy="Write large data to a file")
    atomic_write(path, text + "\n")


def _show(values: dict[str, Any]) -> None:
    """One output that says it to people and to programs; plain text outside of a notebook."""
    text = "  ".join(f"{name}={_short(value)}" for name, value in values.items())
    if notebook.shell() is None:
        sys.stdout.write(f"{text}\n")
        return
    from IPython.display import display

    display({MIME: {"schema": 1, "metrics": values}, "text/plain": text}, raw=True)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else shorten(value, 80) if not isinstance(value, str) else value
