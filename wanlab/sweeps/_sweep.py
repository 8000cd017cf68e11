"""`run_sweep`: every point of a grid, once, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from wanlab import runs
from wanlab.errors import WanlabError, shorten
from wanlab.models import Model
from wanlab.spec import GenerationSpec
from wanlab.sweeps import _clients
from wanlab.sweeps._grid import Grid
from wanlab.sweeps._models import Models
from wanlab.sweeps._plan import forecast
from wanlab.sweeps._telling import Telling
from wanlab.sweeps._together import check_bare
from wanlab.sweeps._watching import Watching
from wanlab.sweeps._work import Options, Work

LOCAL = "local"


def run_sweep(  # noqa: PLR0913 - each is a choice of its own, and all but two have a default
    grid: Grid,
    out: str | os.PathLike[str],
    *,
    executor: Any = LOCAL,
    share: bool = True,
    model: Model | Sequence[Model] | None = None,
    max_attempts: int = runs.MAX_ATTEMPTS,
    stale: Literal["keep", "rerun"] = "keep",
    checkpoint_steps: int | None = None,
    batch_seeds: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> runs.Results:
    """Run every point of a grid that has no result in the folder `out` yet; returns the results of all.

    Points that agree until some step are denoised once until there, with results equal in every bit to those of single
    runs (share=False: one by one). Text, pictures and loading are shared too. The order is that of the grid, but for
    points that are run together. Whatever dies, run it again: what ended well stays, the rest is run; several
    processes, also on several machines that share the folder, may do so at once and share the points among them.

    executor: "local" runs in this process; a `distributed.Client` on its workers (needs wanlab[cluster]).
    model: loaded models to use where a point asks for theirs, instead of loading them once more.
    max_attempts: a run whose process died so often is not begun again. Failed and cancelled ones are, by every call.
    stale: whether results that an earlier version made (another `NUMERICS`) are kept or made anew.
    checkpoint_steps: states are saved every so many steps, by default once a minute, and the next call goes on there.
    batch_seeds: up to so many points that differ in the seed alone are denoised as one batch, instead of sharing steps.
    Quicker on a GPU; it may change bits, and caches decide by all samples, so every record says who was in the batch.
    device: where models are loaded.
    progress: a sweep that takes long says how far it is, in one line of a live notebook, else on stderr.
    A point that fails has its error in its run; the others go on. Ctrl-C, and `runs.request_cancel(out)`, end it
    within a step. Raises WanlabError, before anything runs or is written, for a point that its model cannot follow, and
    where something is attached to a model by hand.
    """
    specs, out = _checked(grid), _folder(out)
    options = Options(share, max_attempts, stale, checkpoint_steps, device, batch_seeds)
    options.check()
    if executor != LOCAL:
        _clients.checked(executor)
    given = () if model is None else (model,) if isinstance(model, Model | str) else tuple(model)
    models = Models(given, device)
    for there in given:
        check_bare(there)
    work = Work(out, specs, options, models)
    _write_plan(grid, work, models)
    runs.clear_cancel(work.out)
    if executor != LOCAL:
        from wanlab.sweeps._cluster import run_on

        run_on(executor, work, Telling(work.out, is_silent=not progress))
    else:
        run_here(work, Telling(work.out, is_silent=not progress))
    return runs.results(work.out)


def _checked(grid: Grid) -> Sequence[GenerationSpec]:
    if not isinstance(grid, Grid):
        raise WanlabError(f"{shorten(grid)} is no grid", remedy="Make one: wanlab.grid(spec, seed=wanlab.seeds(4))")
    return grid.specs


def _folder(out: str | os.PathLike[str]) -> Path:
    if not isinstance(out, str | os.PathLike) or not str(out).strip() or "\0" in str(out):
        raise WanlabError(f"{shorten(out)} is no folder", remedy='Give a path such as "runs/caches"')
    return Path(out).absolute()


def run_here(work: Work, telling: Telling) -> None:
    """Run the work in this process, telling how far it is."""
    try:
        with telling, Watching(work.out, telling) as watch:
            work.run(watch)
    finally:
        runs.end_working(work.out)


def _write_plan(grid: Grid, work: Work, models: Models) -> None:
    points = [point.with_(folder=task.folder.name) for point, task in zip(grid.points(), work.of_points, strict=True)]
    plan = runs.SweepFile(
        kind="specs",
        title=work.out.name,
        base=grid.base.to_dict(),
        names=grid.names,
        points=[point.model_dump(mode="json") for point in points],
        forwards=_forwards(work, models),
    )
    runs.write_sweep(work.out, plan)


def _forwards(work: Work, models: Models) -> dict[str, int]:
    """Forwards of all points, one by one and shared."""
    by_model: dict[int, list[GenerationSpec]] = {}
    for task in work.tasks:
        by_model.setdefault(id(models.of(task.spec)), []).append(task.spec)
    found = [forecast(models.of(specs[0]), specs) for specs in by_model.values()]
    shares = work.options.share and work.options.batch_seeds == 1
    shared = sum(f.shared if shares else f.alone for f in found)
    return {"alone": sum(f.alone for f in found), "shared": shared}
