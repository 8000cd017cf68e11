"""Every cache on every family: a cell works, its counted work equal to what it reports, or refuses saying why.

The README's table is this test's result; `WANLAB_WRITE_TABLE=1 pytest tests/test_cache_families.py` writes it there.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import wanlab
from tests.test_shrink import given
from tests.tiny import tiny_flux
from wanlab import caches, catalog
from wanlab.errors import WanlabError
from wanlab.models import shrink
from wanlab.registry import CACHES
from wanlab.sites import Branch, StepContext

README = Path(__file__).parent.parent / "README.md"
MARKS = "<!-- caches by family: written by tests/test_cache_families.py -->", "<!-- end -->"
STEPS = 10
SPEC = {"num_steps": STEPS, "num_frames": 5, "height": 48, "width": 64, "prompt": "a red circle"}
PHANTOM = catalog.find("phantom_1_3b").with_(family="phantom", missing="")
FAMILIES: dict[str, Any] = {
    "Wan 2.1 text": "wan_t2v_1_3b",
    "Wan 2.1 image": "wan_i2v_480p_14b",
    "Wan 2.2 A14B": "wan22_t2v_a14b",
    "Wan 2.2 5B": "wan22_ti2v_5b",
    "VACE": "vace_14b",
    "Phantom": PHANTOM,
    "SkyReels": "skyreels_i2v_14b",
    "SkyReels DF": "skyreels_df_1_3b",
    "SkyReels DF, `ar_step`": "skyreels_df_1_3b",
    "Animate": "wan_animate_14b",
    "Flux": None,
}
RATIOS = [1.0 + 0.004 * (-1) ** i for i in range(2 * (STEPS - 1))]
POLYNOMIALS = {"transformer": [0.1, 0.0], "transformer_2": [0.1, 0.0]}
ROWS: dict[str, dict[str, Any]] = {
    "fixed": {"mask": [i % 2 == 0 for i in range(STEPS)]},
    "magcache": {"mag_ratios": RATIOS, "threshold": 0.1},
    "teacache": {"coefficients": POLYNOMIALS, "threshold": 0.1},
    "easycache": {"threshold": 0.6, "warmup_steps": 2},
    "first_block": {"threshold": 0.3},
    "dbcache": {"threshold": 0.3, "warmup_steps": 2, "num_first": 1},
    "adacache": {},
    "seacache": {"threshold": 0.9},
    "taylorseer": {"interval": 3},
    "taylorseer, all": {"interval": 3, "modules": "all"},
    "pab": {"self_range": 2, "cross_range": 3, "start": 300},
}
"""Row -> options; the method is the row's first word."""
MODES: dict[str, dict[str, Any]] = {"in sequence": {}, "batched": {"batch_branches": True}}
LOOKS = {("teacache", "Flux"): ("transformer_blocks.0", "norm1.linear")}
"""The linear layer that a method runs once more in every forward, to judge by what it gives."""
Calls = dict[tuple[str, int], Counter[tuple[str, str]]]
"""(branch, step) -> calls of each (block, linear layer)."""


@dataclass(frozen=True)
class Done:
    """A run: its latents, what the result says of its cache, the calls that were counted."""

    latents: Tensor
    cache: dict[str, Any]
    calls: Calls


class Bench:
    """A tiny model of a family, its inputs, and its linear calls by branch and step."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, what = name, FAMILIES[name]
        definition = _flux(folder) if what is None else shrink(what, folder)
        self.model = wanlab.load(definition, device="cpu")
        media = {} if what is None else {k: v[:5] if hasattr(v, "shape") else v for k, v in given(self.model).items()}
        size = {} if what is None else SPEC
        lag = {"ar_step": 4, "image": None, "last_image": None} if "ar_step" in name else {}
        self.settings = {"num_steps": STEPS, "prompt": "a red circle", **size, **media, **lag}
        spec = self.model.spec(**self.settings)
        self.text = wanlab.encode_text(self.model, spec)
        self.conditions = wanlab.encode_conditions(self.model, spec)

    def spec(self, **changes: Any) -> Any:
        return self.model.spec(**self.settings, **changes)

    def run(self, spec: Any) -> Done:
        with self._counting() as calls:
            latents, ran = wanlab.stages.denoise_recorded(self.model, spec, self.text, self.conditions)
        assert self.model.attachments() == []
        return Done(latents, ran.get("cache", {}), calls)

    @contextmanager
    def _counting(self) -> Iterator[Calls]:
        calls: Calls = {}
        now: list[StepContext] = []

        def clock(ctx: StepContext) -> None:
            now[:] = [ctx]
            calls[ctx.branch, ctx.step] = Counter()

        def count(key: tuple[str, str]) -> Any:
            return lambda *_: calls[now[0].branch, now[0].step].update([key])

        entries = [entry for stack in self.model.stacks.values() for entry in stack]
        linears = [(entry.name, name, site.module) for entry in entries for name, site in entry.linears.items()]
        hooks = [module.register_forward_hook(count((block, name))) for block, name, module in linears]
        try:
            with self.model.on_begin(clock):
                yield calls
        finally:
            for hook in hooks:
                hook.remove()


def _flux(folder: Path) -> dict[str, Any]:
    """The tiny Flux with the constants of the real one."""
    definition = tiny_flux(folder)[1]
    return {**definition, "constants": {**catalog.find("flux_dev").constants, **definition["constants"]}}


def share_ran(bench: Bench, spec: Any, expert: str, branch: str, calls: Counter[Any], full: Counter[Any]) -> float:
    """The share of the blocks' operations in those parts whose linear layers ran; a part runs whole or not at all."""
    total, done = 0, 0
    for entry in bench.model.workload(spec, Branch(branch, {}), expert).entries:
        of_block = [name for block, name in full if block == entry.name]
        for part, work in entry.parts.items():
            own = [n for n in of_block if n == part or n.startswith(part + ".")] or of_block
            ran = {calls[entry.name, name] / full[entry.name, name] for name in own}
            assert ran in ({0.0}, {1.0}), (entry.name, part, ran)
            total, done = total + work, done + work * int(ran.pop())
    return done / total


def check_work(bench: Bench, spec: Any, found: Done, plain: Done) -> None:
    """Something was reused, and every forward's share is that of the calls that were counted in it."""
    told = found.cache
    assert told["reused"] > 0
    looked = LOOKS.get((spec.cache.method, bench.name))
    assert sum(map(len, told["shares"].values())) == len(plain.calls) == len(found.calls)
    for path, steps in told["shares"].items():
        expert, branch, _ = path.split("/")
        for step, share in steps.items():
            calls, full = found.calls[branch, int(step)].copy(), plain.calls[branch, int(step)]
            if looked is not None:
                calls[looked] -= 1
            assert share_ran(bench, spec, expert, branch, calls, full) == pytest.approx(share, abs=1e-12)
            assert told["hit_map"][path][step] == (share == 1) == (+calls == full)
            assert share > 0 or not +calls


def check_latents(found: Tensor, plain: Tensor) -> None:
    """Finite, others than without the cache, and nearer to them than nothing at all is."""
    assert torch.isfinite(found).all()
    assert 1e-4 < float((found - plain).norm() / plain.norm()) < 0.75


def cell(bench: Bench, row: str, plain: dict[str, Done]) -> str:
    """What the table says: "works", with what it takes; or why not, as the check before the run says it."""
    method, notes = row.split(",")[0], []
    for mode, changes in MODES.items():
        spec = bench.spec(**changes, cache={"method": method, **ROWS[row]})
        try:
            caches.check(bench.model, spec)
        except WanlabError as error:
            return str(error)
        found = bench.run(spec)
        check_work(bench, spec, found, plain[mode])
        check_latents(found.latents, plain[mode].latents)
    if method in ("magcache", "teacache"):
        notes = _lacking(bench, method)
    return "; ".join(["works", *notes])


def _lacking(bench: Bench, method: str) -> list[str]:
    """What the definition lacks for a method's defaults."""
    try:
        caches.check(bench.model, bench.spec(cache=method))
    except WanlabError as error:
        if not re.search("needs constants .* none are known for|Give coefficients", str(error)):
            raise
        return ["with constants of your own: none are published; `wanlab.study.calibrate` measures them"]
    return []


_table: dict[str, dict[str, str]] = {row: {} for row in ROWS}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cache(family: str, tmp_path: Path) -> None:
    """With the guidance branches in sequence and as one batch; afterwards the model is what it was."""
    bench = Bench(family, tmp_path)
    plain = {mode: bench.run(bench.spec(**changes)) for mode, changes in MODES.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", caches.ConstantsWarning)
        for row in ROWS:
            _table[row][family] = cell(bench, row, plain)
    after = bench.run(bench.spec())
    assert torch.equal(after.latents, plain["in sequence"].latents)
    assert after.calls == plain["in sequence"].calls


def test_the_readme_has_the_table() -> None:
    """Of every method of the package; most cells work, and the others say why."""
    if any(len(row) < len(FAMILIES) for row in _table.values()):
        pytest.skip("Some families did not run")
    methods = {name for name in CACHES.names() if CACHES.get(name).__module__.startswith("wanlab.")}
    assert methods == {row.split(",")[0] for row in ROWS}
    cells = [text for row in _table.values() for text in row.values()]
    assert sum(text.startswith("works") for text in cells) >= 0.6 * len(cells)
    text = README.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    wanted = f"{before}{MARKS[0]}\n{table(_table)}\n{MARKS[1]}{after}"
    if os.environ.get("WANLAB_WRITE_TABLE"):
        README.write_text(wanted)
    assert README.read_text() == wanted, "WANLAB_WRITE_TABLE=1 writes it"


def table(cells: dict[str, dict[str, str]]) -> str:
    """Markdown: a row a method, a column a family, below them what the numbers stand for."""
    notes: list[str] = []

    def short(text: str) -> str:
        word, _, note = text.partition("; ") if text.startswith("works") else ("", "", text)
        if note and note not in notes:
            notes.append(note)
        return " ".join(filter(None, (word, f"({notes.index(note) + 1})" if note else "")))

    lines = ["| cache | " + " | ".join(FAMILIES) + " |", "|---" * (len(FAMILIES) + 1) + "|"]
    for row, found in cells.items():
        lines.append(f"| `{row}` | " + " | ".join(short(found[name]) for name in FAMILIES) + " |")
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))])
