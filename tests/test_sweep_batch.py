"""Points that differ in the seed alone as one batch: only where asked, and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab.errors import WanlabError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


def a_grid(model: Any, **changes: Any) -> Any:
    spec = model.spec(prompt="a kite", width=32, height=32, num_frames=5, num_steps=3, **changes)
    return wanlab.grid(spec, guidance_scale=[3.0, 5.0], seed=wanlab.seeds(3))


def test_a_batch_is_near_to_single_runs_and_every_record_says_who_was_in_it(model: Any, tmp_path: Path) -> None:
    grid = a_grid(model)
    results = wanlab.run_sweep(grid, tmp_path / "batch", model=model, batch_seeds=2)
    assert results.counts() == {"ok": 6}
    sizes = []
    for row, spec in zip(results, grid, strict=True):
        batch = row.record.resolved["ran"].get("batch")
        sizes.append(batch["size"])
        alone = wanlab.generate(model, spec)
        together = results.open(row)
        assert torch.allclose(together.latents, alone.latents, atol=1e-4), row.id
        same = [r.record for r in results if r.settings["guidance_scale"] == row.settings["guidance_scale"]]
        assert set(batch["with"]) <= {record.id for record in same} - {row.record.id}
    assert sizes == [2, 2, 1, 2, 2, 1]


def test_without_asking_there_is_no_batch(model: Any, tmp_path: Path) -> None:
    results = wanlab.run_sweep(a_grid(model), tmp_path, model=model)
    assert all("batch" not in row.record.resolved["ran"] for row in results)


def test_seeds_that_do_more_than_start_are_refused_before_anything_is_written(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(WanlabError, match="draws noise by the seed"):
        wanlab.run_sweep(a_grid(model, sampler="lcm"), out, model=model, batch_seeds=2)
    with pytest.raises(WanlabError, match="batch_seeds is 0"):
        wanlab.run_sweep(a_grid(model), out, model=model, batch_seeds=0)
    assert not out.exists()
