"""experiments/caches: the README's tables are those of its results, and what is committed stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "caches"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((FOLDER / "results" / "h100.json").read_text())


def test_readme_holds_the_tables() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "table.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    readme = (FOLDER / "README.md").read_text()
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 4
    for table in tables:
        name, _, rows = table.partition("\n")
        assert f"<!-- {name} -->\n{rows}\n<!-- end of {name} -->" in readme


def test_every_point_has_every_prompt(results: dict[str, Any]) -> None:
    rows, num = results["rows"], len(results["prompts"])
    methods = [row["method"] for row in rows.values() if row["method"] != "none"]
    assert (num, len(rows)) == (32, 34)
    assert {methods.count(method) for method in methods} == {3}
    for row in rows.values():
        for name in ("right", "psnr_frames", "psnr_clip", "ssim", "latent_psnr", "vmaf"):
            assert len(row["clips"][name]) == num
        for steps in row["shares"].values():
            assert len(steps) == results["num_steps"]


def test_speedups_are_those_of_the_hit_maps(results: dict[str, Any]) -> None:
    """Of prompt 0, whose shares are kept: forwards over their sum."""
    for row in results["rows"].values():
        shares = [share for steps in row["shares"].values() for share in steps]
        if shares:
            assert row["clips"]["ideal_speedup"][0] == pytest.approx(len(shares) / sum(shares), abs=2e-4)


def test_sizes() -> None:
    files = list((FOLDER / "results").iterdir())
    assert {file.suffix for file in files} == {".json", ".md", ".png"}
    for file in files:
        assert file.stat().st_size < (400_000 if file.suffix == ".json" else 200_000), file.name
