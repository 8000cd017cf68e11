"""What one process does for a sweep: claim points that nobody has in hand and run them, until all have ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wanlab import pipeline, runs
from wanlab.errors import WanlabError, shorten
from wanlab.files import PART
from wanlab.models import Model
from wanlab.spec import GenerationSpec
from wanlab.sweeps._batch import batch_key
from wanlab.sweeps._checkpoint import adopt, tidy
from wanlab.sweeps._claimed import Claimed, Task, in_hand
from wanlab.sweeps._group import Group
from wanlab.sweeps._keys import group_key
from wanlab.sweeps._models import Models
from wanlab.sweeps._plan import forecast
from wanlab.sweeps._watching import Watching
from wanlab.watch import Interrupts

_CHECKPOINTS = "checkpoints"
_FAILED = ("failed", "oom")
_POLL_SECONDS = 0.5  # between looks at runs that other processes have in hand
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a sweep runs; plain data, so that it travels to other processes."""

    share: bool = True
    max_attempts: int = runs.MAX_ATTEMPTS
    stale: Literal["keep", "rerun"] = "keep"
    checkpoint_steps: int | None = None
    device: str = "auto"
    batch_seeds: int = 1

    def check(self) -> None:
        """Raise WanlabError for values that no run could follow."""
        if self.stale not in ("keep", "rerun"):
            raise WanlabError(f"stale is {shorten(self.stale)}", choices=("keep", "rerun"))
        numbers = {name: getattr(self, name) for name in ("max_attempts", "checkpoint_steps", "batch_seeds")}
        for name, number in numbers.items():
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise WanlabError(f"{name} is {shorten(number)}", remedy="Give 1 or more")


class Work:
    """The points of a sweep in one process."""

    def __init__(self, out: Path, specs: Sequence[GenerationSpec], options: Options, models: Models) -> None:
        self.out, self.options, self._models = out, options, models
        self.of_points = [self._task(spec) for spec in specs]
        self.tasks = list({task.run: task for task in self.of_points}.values())  # two points may be one, by an alias

    def _task(self, spec: GenerationSpec) -> Task:
        """Where a point runs. Raises WanlabError for one that its model cannot follow."""
        model = self._models.of(spec)
        spec = model.canonical(spec)
        pipeline.checked(model, spec)
        run = runs.run_id(spec.id, model.fingerprint)
        name = runs.folder_name(spec, run)
        return Task(spec, run, self.out / name, self._group_of(model, spec, run))

    def _group_of(self, model: Model, spec: GenerationSpec, run: str) -> str:
        """What points have in common that run together."""
        if self.options.batch_seeds > 1:
            return batch_key(spec)
        return group_key(model, spec) if self.options.share else run

    def model_of(self, task: Task) -> Model:
        """The model that a task runs on."""
        return self._models.of(task.spec)

    # The plan

    def groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Tasks that may share work, one list a group; models, attention and compilation change as rarely as they can.

        Within a model the groups are in the order of their first points.
        """
        found: dict[str, list[Task]] = {}
        for task in tasks:
            found.setdefault(task.group, []).append(task)
        if (most := self.options.batch_seeds) > 1:
            found = {f"{k} {i}": g[i : i + most] for k, g in found.items() for i in range(0, len(g), most)}
        place = {task.run: i for i, task in enumerate(self.tasks)}
        first: dict[str, int] = {}
        for i, task in enumerate(self.tasks):
            first.setdefault(equipment(task.spec), i)
        return sorted(found.values(), key=lambda group: (first[equipment(group[0].spec)], place[group[0].run]))

    def open_tasks(self) -> list[Task]:
        """Tasks that have no result yet."""
        done = self._finished()
        return [task for task in self.tasks if task.run not in done]

    def _finished(self) -> set[str]:
        """Run ids with a result, and of those whose results other numerics made if they are to be kept."""
        records = [row.record for row in runs.results(self.out) if row.record is not None and row.status == "ok"]
        found = {record.id for record in records}
        if self.options.stale == "keep":
            others = {record.numerics for record in records} - {runs.NUMERICS}
            found |= {task.run for task in self.tasks if any(self._run_id(task, other) in found for other in others)}
        return found

    def _run_id(self, task: Task, numerics: int) -> str:
        return runs.run_id(task.spec.id, self._models.of(task.spec).fingerprint, numerics)

    def _failed_since(self, began: str) -> set[str]:
        """Run ids that other processes ended without a result meanwhile, and that nobody cancelled."""
        rows = [row.record for row in runs.results(self.out) if row.record is not None and row.status in _FAILED]
        return {record.id for record in rows if (record.ended or "") > began}

    # Running

    def run(self, watch: Watching) -> None:
        """Run tasks until each has ended, here or elsewhere. Raises what stops all: an interrupt, `Cancelled`."""
        ended, began, helps = set[str](), runs.now(), False
        while True:
            watch.check()
            left = [task for task in self.open_tasks() if task.run not in ended | self._failed_since(began)]
            if not left:
                break
            progressed = False
            for group in self.groups(left):
                ended |= self._failed_since(began)
                progressed |= self._group(group, watch, ended, helps)
            helps = not progressed
            if not progressed:
                time.sleep(_POLL_SECONDS)  # others have what is left; one of them may die
        done = self._finished()
        groups = {task.group for task in self.tasks} - {task.group for task in self.tasks if task.run not in done}
        tidy(self.out / _CHECKPOINTS, groups, done)
        for part in self.out.glob(f"{PART}*"):  # of plans that processes were writing when they died
            part.unlink(missing_ok=True)

    def _group(self, tasks: Sequence[Task], watch: Watching, ended: set[str], helps: bool) -> bool:
        """Run what of a group can be had; whether that was anything. What ended or gave up goes into `ended`."""
        model = self._models.of(tasks[0].spec)
        with Interrupts() as interrupts, in_hand() as left:
            self._claim(left, tasks, ended, helps)
            ended |= set(left)
            if not left:
                return False
            self._models.use(model)
            specs = [member.task.spec for member in left.values()]
            expected = forecast(model, specs)
            working = watch.working
            counts = {"alone": working.alone + expected.alone, "planned": working.planned + expected.shared}
            watch.working = working.with_(**counts)
            watch.begin(_in_words(specs), len(model.experts(specs[0].resolve(model))))
            mine = set(left)
            if self.options.batch_seeds > 1:
                Group(model, self._models, watch, interrupts, self.out, None).run_batch(left)
                return True
            folder = adopt(self.out / _CHECKPOINTS, tasks[0].group, mine, lambda run: run in self._finished())
            Group(model, self._models, watch, interrupts, folder, self.options.checkpoint_steps).run(left)
        return True

    def _claim(self, left: dict[str, Claimed], tasks: Sequence[Task], ended: set[str], helps: bool) -> None:
        """Take tasks in hand: all that can be had, but a run on its last try alone, lest others crash with it.

        Whoever has the first one is about to take the others; who `helps` takes them nevertheless.
        """
        for task in tasks:
            is_last = self._is_last_try(task)
            if task.run in ended or (left and is_last):
                continue
            record = task.record(self._models.of(task.spec).fingerprint)
            try:
                claimed = runs.claim(task.folder, record, self.options.max_attempts, self.options.stale)
            except (WanlabError, OSError) as error:  # it gave up, or its folder can be neither read nor written
                _log.warning("%s", error)
                ended.add(task.run)
                continue
            if claimed is not None:
                left[task.run] = Claimed(task, claimed)
                if is_last:
                    return
            elif not left and not helps and task.run not in self._finished():
                return

    def _is_last_try(self, task: Task) -> bool:
        """Whether a run that crashed as often as it may, but once, is begun again."""
        return runs.num_crashes(task.folder) >= max(1, self.options.max_attempts - 1)


def equipment(spec: GenerationSpec) -> str:
    """What takes time to change between two runs: the network, what is in it, how it is compiled."""
    return f"{spec.model} {spec.weights} {spec.lora} {spec.compile} {spec.attention}"


def _in_words(specs: Sequence[GenerationSpec]) -> str:
    first = specs[0]
    words = f"{shorten(first.text.prompt, 60)}, seed {first.sampling.seed}"
    return words if len(specs) == 1 else f"{words}: {len(specs)} points together"
