"""`wanlab sweep`: experiments in notebooks and grids of specs, run point by point, watched on stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.cli._console import Parser, command, say
from wanlab.cli._progress import ProgressLine
from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab import runs

_ON_TERMINAL, _ELSEWHERE = 1.0, 10.0  # seconds between looks at a running sweep
_MOST_COLUMNS, _MOST_WIDTH = 12, 28  # of the table
_SOME_FAILED, _INTERRUPTED = 1, 130
_EPILOG = """\
PATH is a folder with run.ipynb and grid.json, a notebook, or a JSON with a grid of specs. What is done already is not
run again; a run that failed, died or was cancelled is. `name=value` keeps the points with that value, or sets a
parameter that the grid does not vary:

  wanlab sweep experiments/caches
  wanlab sweep experiments/caches cache=magcache seed=0 --out runs/try
  wanlab sweep experiments/* --timeout 600
  wanlab sweep experiments/caches --dry-run

It ends with 0 if all runs are ok, 1 if some are not, 130 if it was interrupted."""


def run(words: Sequence[str]) -> int:
    """Run the sweeps one after another; prints a table of each."""
    arguments = _parser().parse_intermixed_args(words)
    paths = [Path(word) for word in arguments.words if not _is_change(word)]
    if not paths:
        raise WanlabError(
            "No experiment is named", remedy="Give a folder with run.ipynb: wanlab sweep experiments/caches"
        )
    from wanlab.cli._settings import read_settings

    changes = read_settings([word for word in arguments.words if _is_change(word)])
    statuses = []
    with _executor(arguments) as executor:
        for path in paths:
            out = _out(path, arguments.out, len(paths) > 1)
            try:
                statuses.append(_one(_task(path, out, changes, arguments, executor), arguments.dry_run))
            except WanlabError as error:
                if len(paths) == 1:
                    raise
                _refused(out, error, arguments.dry_run)
                statuses.append(_SOME_FAILED)
            if statuses[-1] == _INTERRUPTED:
                break
    return max(statuses)


def _parser() -> Parser:
    parser = command(
        "sweep", "PATH ... [name=value ...] [options]", "Run the points of experiments and of grids.", epilog=_EPILOG
    )
    parser.add_argument("words", nargs="*", metavar="PATH name=value", help="what to run, see below")
    parser.add_argument(
        "--out", metavar="DIR", help="where the runs go; default: runs/<name>, several get a folder each"
    )
    parser.add_argument(
        "--timeout", type=float, default=3600.0, metavar="S", help="seconds a cell of a notebook; 0: any"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the points, run nothing")
    parser.add_argument("--rerun-stale", action="store_true", help="run again what other numerics made")
    parser.add_argument("--max-attempts", type=int, default=3, metavar="N", help="crashes after which a run is left")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the work")
    parser.add_argument("--gpus", metavar="0,1", help="a worker for each of these GPUs")
    return parser


def _is_change(word: str) -> bool:
    return "=" in word and word.partition("=")[0].replace(".", "_").isidentifier()


def _out(path: Path, given: str | None, is_one_of_many: bool) -> Path:
    from wanlab.sweeps import default_out

    name = path.stem if path.suffix == ".json" else (path.parent if path.suffix else path).absolute().name
    if given is None:
        return default_out(name)
    return Path(given) / name if is_one_of_many else Path(given)


def _refused(out: Path, error: WanlabError, is_dry: bool) -> None:
    """One of several experiments cannot run: a failed run says so, and the others go on."""
    from wanlab.sweeps import refuse

    say(f"wanlab: {error}", sys.stderr)
    if not is_dry:
        refuse(out, error)


@dataclass(frozen=True)
class _Task:
    """One sweep, checked and ready to run."""

    title: str
    out: Path
    ids: Collection[str]
    overview: str
    work: Callable[[], Any]


def _task(path: Path, out: Path, changes: Mapping[str, Any], arguments: Any, executor: Any) -> _Task:
    stale = "rerun" if arguments.rerun_stale else "keep"
    if path.suffix == ".json":
        return _specs(
            path, out, changes, {"executor": executor, "stale": stale, "max_attempts": arguments.max_attempts}
        )
    from wanlab.sweeps import PointOptions, read_experiment, run_points

    experiment = read_experiment(path, changes)
    options = PointOptions(Path(), arguments.timeout or None, stale, arguments.max_attempts)
    lines = [
        [point.folder, *(_cell(point.settings.get(name)) for name in experiment.names)] for point in experiment.points
    ]
    overview = _table(["folder", *experiment.names], lines)
    ids = [point.id for point in experiment.points]
    return _Task(experiment.title, out, ids, overview, lambda: run_points(experiment, out, options, executor, False))


def _executor(arguments: Any) -> AbstractContextManager[Any]:
    """Who runs the points: this process, or workers that live as long as the context."""
    if arguments.dry_run or (arguments.workers is None and arguments.gpus is None):
        return nullcontext("local")
    from wanlab.sweeps import local_cluster

    words = None if arguments.gpus is None else [word.strip() for word in arguments.gpus.split(",") if word.strip()]
    gpus = None if words is None else [int(word) if word.isdigit() else word for word in words]
    return local_cluster(arguments.workers, gpus)


def _run_specs(grid: Any, out: Path, options: Mapping[str, Any]) -> None:
    from wanlab.sweeps import run_sweep
    from wanlab.watch import Cancelled

    try:
        run_sweep(grid, out, **options, progress=False)
    except Cancelled:
        raise KeyboardInterrupt from None


def _specs(path: Path, out: Path, changes: Mapping[str, Any], options: Mapping[str, Any]) -> _Task:
    """A grid of specs."""
    from wanlab import sweeps
    from wanlab.files import read_json

    document = read_json(path)
    if not isinstance(document, dict) or document.get("kind", "specs") != "specs" or "base" not in document:
        raise WanlabError(f"{path} is no grid of specs", remedy='Give a JSON with "kind": "specs" and a "base"')
    grid = sweeps.Grid.from_dict(document)
    for name, value in changes.items():
        grid = grid.where(lambda spec, name=name, value=value: spec == spec.with_(**{name: value}))
    if not len(grid):
        raise WanlabError(f"No point of {path} has {json.dumps(dict(changes))}", remedy="--dry-run shows them")
    ids = [point.id for point in grid.points()]
    return _Task(path.stem, out, ids, str(grid.preview(out=out)), lambda: _run_specs(grid, out, options))


def _one(task: _Task, is_dry: bool) -> int:
    from wanlab import runs

    if is_dry:
        say(f"{task.title}: {len(task.ids)} points, into {task.out}\n{task.overview}")
        return 0
    interrupted = False
    with _Watched(task.out):
        try:
            task.work()
        except KeyboardInterrupt:
            interrupted = True
    found = runs.results(task.out)
    rows = [row for row in found if row.id in task.ids]
    say(f"{task.title}: {task.out}\n{results_table(rows, found.names)}")
    if interrupted or runs.is_cancelled(task.out):
        say("wanlab: interrupted", sys.stderr)
        return _INTERRUPTED
    return 0 if all(row.status == "ok" for row in rows) else _SOME_FAILED


class _Watched:
    """While the body runs, a thread says on stderr how far the sweep is."""

    def __init__(self, out: Path) -> None:
        self._out, self._line = out, ProgressLine()
        self._is_terminal = sys.stderr.isatty()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wanlab-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._line.close()

    def _work(self) -> None:
        from wanlab.sweeps import SweepProgress

        while not self._ended.wait(_ON_TERMINAL if self._is_terminal else _ELSEWHERE):
            try:
                text = str(SweepProgress.of(self._out))
            except WanlabError:  # not there yet
                continue
            if self._is_terminal:
                self._line.begin(text)
            else:
                say(text, sys.stderr)


def results_table(rows: Sequence[runs.Row], names: Sequence[str]) -> str:
    """Status, seconds, settings, metrics and errors of runs, aligned for a terminal."""
    metrics = dict.fromkeys(n for row in rows for n, v in row.metrics.items() if not isinstance(v, list | dict))
    settings = [name for name in names if any(name in row.settings for row in rows)]
    shown = list(metrics)[: max(0, _MOST_COLUMNS - len(settings))]
    has_errors = any(row.error for row in rows)
    lines = []
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        line = [row.status, seconds, *(_cell(row.settings.get(n)) for n in settings)]
        line += [_cell(row.metrics.get(n)) for n in shown]
        lines.append([*line, " ".join(row.error.split())[:100]] if has_errors else line)
    return _table(["status", "s", *settings, *shown, *(["error"] if has_errors else [])], lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.5g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= _MOST_WIDTH else f"{text[: _MOST_WIDTH - 3]}..."


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rows = [header, *lines]
    return "\n".join("  ".join(f"{text:{w}}" for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)
