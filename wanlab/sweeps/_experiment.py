"""Notebooks as experiments: `experiments/<question>/{run.ipynb, grid.json, README.md}`, once per point of the grid."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wanlab import runs
from wanlab.errors import WanlabError, shorten
from wanlab.files import atomic_write, read_json
from wanlab.sweeps._notebook import Code, Notebook, read_notebook
from wanlab.sweeps._point import PointOptions, run_point
from wanlab.sweeps._points import expand, same, unique
from wanlab.sweeps._telling import Telling
from wanlab.workspace import MARKER, find_workspace

RUN, GRID = "run.ipynb", "grid.json"
_REFUSED = "refused"
_SLUG = 60  # characters of the settings in a folder's name
_log = logging.getLogger(__name__)

Which = Sequence[str | int | runs.Point]


@dataclass(frozen=True)
class Experiment:
    """A notebook and the points it is to run at, all checked."""

    notebook: Notebook
    points: tuple[runs.Point, ...]
    names: tuple[str, ...]
    """Parameters that the grid sets, in its order."""

    @property
    def title(self) -> str:
        """The name of its folder."""
        return self.notebook.path.parent.name

    def plan(self) -> runs.SweepFile:
        """What sweep.json says."""
        base = {
            name: str(value) if isinstance(value, Code) else value for name, value in self.notebook.parameters.items()
        }
        return runs.SweepFile(
            kind="notebook", title=self.title, base=base, names=self.names, points=self.points, created=runs.now()
        )

    def selected(self, which: Which | None) -> Experiment:
        """With some of its points: their ids, positions, or themselves. Raises WanlabError for one it has not."""
        if which is None:
            return self
        known = {point.id: point for point in self.points}
        found = {}
        for word in which:
            if isinstance(word, int) and -len(self.points) <= word < len(self.points):
                point = self.points[word]
                found[point.id] = point
            elif (name := word.id if isinstance(word, runs.Point) else word) in known:
                found[str(name)] = known[str(name)]
            else:
                remedy = f"Give ids or positions of its {len(known)} points"
                raise WanlabError(f"{self.title} has no point {shorten(word)}", choices=list(known)[:12], remedy=remedy)
        return replace(self, points=tuple(found.values()))


def read_experiment(path: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment's folder, or a notebook with or without a grid.json beside it, and check all of it.

    changes: parameter -> value. One that the grid varies keeps only its points with that value; another one is set for
    all points. Raises WanlabError for a notebook that cannot run as an experiment (see `read_notebook`), a name that is
    no parameter and a value that is not JSON.
    """
    path = Path(path).expanduser()
    file = path if path.suffix == ".ipynb" else path / RUN
    if path.is_dir() and not file.is_file():
        raise WanlabError(f"{path} is no experiment: it has no {RUN}", remedy="Give a folder with a notebook run.ipynb")
    notebook = read_notebook(file)
    grid = file.parent / GRID
    settings = expand(read_json(grid)) if grid.is_file() else [{}]
    for name, value in (pair for point in settings for pair in point.items()):
        notebook.value(name, value)
    settings = _changed(settings, {name: notebook.value(name, value) for name, value in (changes or {}).items()})
    return Experiment(
        notebook, _points(notebook, settings), tuple(dict.fromkeys(n for point in settings for n in point))
    )


def _changed(settings: list[dict[str, Any]], changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    varied = {name for point in settings for name in point}
    for name, value in changes.items():
        if name in varied:
            there = list(dict.fromkeys(shorten(point[name], 40) for point in settings if name in point))
            settings = [point for point in settings if name in point and same(point[name], value)]
            if not settings:
                raise WanlabError(f"No point of the grid has {name} = {shorten(value, 80)}", choices=there[:12])
        else:
            settings = [{**point, name: value} for point in settings]
    return unique(settings)


def _points(notebook: Notebook, settings: Sequence[Mapping[str, Any]]) -> tuple[runs.Point, ...]:
    """The points; of those that are equal once the notebook's own values are counted, the first."""
    names = dict.fromkeys(name for point in settings for name in point)
    whole = [notebook.settings(point) for point in settings]
    varying = [name for name in names if any(not same(point[name], whole[0][name]) for point in whole)]
    found: dict[str, runs.Point] = {}
    for point, values in zip(settings, whole, strict=True):
        name = notebook.point_id(point)
        folder = "_".join(filter(None, [_slug({name: values[name] for name in varying if name in point}), name]))
        found.setdefault(name, runs.Point(id=name, settings=dict(point), folder=folder))
    return tuple(found.values())


def _slug(settings: Mapping[str, Any]) -> str:
    """Settings as words that every file system takes: "cache-magcache_seed-3"."""
    words = [f"{name}-{_word(value)}" for name, value in settings.items()]
    while len(words) > 1 and len("_".join(words)) > _SLUG:
        words.pop()  # a name has "_" too: only whole settings go
    return "_".join(words)[:_SLUG].strip("-_.")


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    plain = unicodedata.normalize("NFKD", text[:200]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:24]


def default_out(name: str) -> Path:
    """`runs/<name>` in the workspace that this folder belongs to, else in this folder."""
    workspace = find_workspace()
    return (workspace.runs if (workspace.root / MARKER).is_file() else Path.cwd() / "runs") / name


def run_experiment(  # noqa: PLR0913 - each is a word of the command line too
    path: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    executor: Literal["local"] | Any = "local",
    *,
    timeout: float | None = 3600.0,
    points: Which | None = None,
    stale: Literal["keep", "rerun"] = "keep",
    max_attempts: int = 3,
    progress: bool = True,
) -> runs.Results | list[runs.Results]:
    """Run a notebook once per point of its grid, each in a kernel of its own, and return what `out` then holds.

    path: a folder with run.ipynb and grid.json, a notebook, or several of them: then the result is a list, `out` holds
    a folder for each, and a notebook that cannot run becomes a failed run of that name while the others go on.
    out: by default runs/<name of the folder>. What is there already and ended well is not run again; what crashed, at
    most `max_attempts` times, what failed and what was cancelled is.
    timeout: seconds a cell, after which its run fails; None: no limit. points: some of them, by id or position.
    stale: "rerun" runs again what an earlier version with other numerics made; "keep" keeps it, marked as stale.
    progress: what takes long says how far it is, in one line of a live notebook, else on stderr.

    A run that fails, dies or hangs is a row of the results, with its notebook as failed.ipynb, and the next one starts.
    Ctrl-C and `runs.request_cancel(out)` end the running cell at once. Raises WanlabError before anything runs for a
    notebook, a name or a value that cannot be.
    """
    options = PointOptions(Path(), timeout, stale, max_attempts)
    if isinstance(path, str | Path):
        experiment = read_experiment(path).selected(points)
        place = Path(out) if out else default_out(experiment.title)
        return run_points(experiment, place, options, executor, progress)
    if points is not None:
        raise WanlabError("points belong to one experiment", remedy="Run the experiments one by one")
    place = None if out is None else Path(out)
    return [_one_of_many(Path(each), place, options, executor, progress) for each in path]


def _one_of_many(path: Path, out: Path | None, options: PointOptions, executor: Any, progress: bool) -> runs.Results:
    """Run one experiment below `out`; one that cannot run is written down there as failed."""
    folder = path.parent if path.suffix == ".ipynb" else path
    name = folder.absolute().name
    place = default_out(name) if out is None else out / name
    try:
        return run_points(read_experiment(path), place, options, executor, progress)
    except WanlabError as error:
        refuse(place, error)
        return runs.results(place)


def refuse(out: Path, error: WanlabError) -> None:
    """Write down in `out` that an experiment could not run."""
    record = runs.claim(out / _REFUSED, runs.RunRecord(env=runs.environment()))
    if record is not None:
        runs.fail(out / _REFUSED, record, error)


def run_points(
    experiment: Experiment, out: Path, options: PointOptions, executor: Any = "local", progress: bool = True
) -> runs.Results:
    """Run the experiment's points into `out`, see `run_experiment`."""
    out = out.expanduser().absolute()
    notebook = experiment.notebook
    options = replace(options, cwd=notebook.path.parent)
    runs.clear_cancel(out)
    runs.write_sweep(out, experiment.plan())
    _forget_refusal(out)
    source = out / f"source-{notebook.digest}.ipynb"  # what was planned, whatever is saved meanwhile
    atomic_write(source, notebook.text())
    telling = Telling(out, is_silent=not progress)
    if executor == "local":
        _run_here(out, source, experiment.points, options, telling)
    else:
        from wanlab.sweeps._points_on import run_points_on

        run_points_on(executor, out, source, experiment.points, options, telling)
    return runs.results(out)


def _run_here(out: Path, source: Path, points: Sequence[runs.Point], options: PointOptions, telling: Telling) -> None:
    try:
        with telling:
            for point in points:
                if runs.is_cancelled(out):
                    break
                try:
                    run_point(out, source, point, options, telling)
                except runs.GaveUp as error:
                    _log.warning("%s", error)
    finally:
        runs.end_working(out)


def _forget_refusal(out: Path) -> None:
    folder = out / _REFUSED
    if (folder / runs.RUN_JSON).is_file():
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
