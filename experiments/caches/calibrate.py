"""The constants of MagCache and TeaCache for wan_tiny, from prompts that the other scripts do not use.

python experiments/caches/calibrate.py --out experiments/caches/calibration     # one GPU, 2 minutes
python experiments/caches/calibrate.py --ship experiments/caches/calibration    # into defaults/wan_tiny.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import wanlab
from wanlab import study
from wanlab.files import atomic_write
from wanlab.shapes.captions import captions, sample_scenes

SHIPPED = 20
"""Steps of the calibration that goes into the definition: wan_tiny's own."""
DEFINITION = Path(__file__).parents[2] / "defaults" / "wan_tiny.json"


def path_of(folder: Path, method: str, num_steps: int) -> Path:
    """The file of one calibration."""
    return folder / f"wan_tiny_{method}_{num_steps}.json"


def options(folder: Path, num_steps: int) -> dict[str, dict[str, Any]]:
    """Method -> what goes into a spec's cache, from the files in a folder."""
    return {
        method: study.read_calibration(path_of(folder, method, num_steps)).options()
        for method in ("magcache", "teacache")
    }


def measure(folder: Path, num_prompts: int, steps: list[int]) -> None:
    """Calibrate both methods for each number of steps and write a file each."""
    model = wanlab.load("wan_tiny", dtype="float32")
    prompts = captions(sample_scenes(num_prompts, torch.Generator().manual_seed(11), "train", replace=False))
    folder.mkdir(parents=True, exist_ok=True)
    for num_steps in steps:
        for method in ("magcache", "teacache"):
            spec = model.spec(num_steps=num_steps)
            study.calibrate(model, prompts, method, spec=spec, save=path_of(folder, method, num_steps))
            print(method, num_steps, flush=True)


def ship(folder: Path) -> None:
    """Put the calibration of the model's own number of steps into its definition."""
    definition = json.loads(DEFINITION.read_text())
    for method, key in (("magcache", "mag_ratios"), ("teacache", "teacache")):
        found = study.read_calibration(path_of(folder, method, SHIPPED))
        definition["constants"] |= found.constants()
        definition["sources"][f"constants.{key}"] = (
            f"experiments/caches/calibrate.py: {found.num_prompts} training prompts, {found.num_steps} steps"
        )
    atomic_write(DEFINITION, json.dumps(definition, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    args = parser.parse_args()
    if args.out is not None:
        measure(args.out, args.prompts, args.steps)
    if args.ship is not None:
        ship(args.ship)


if __name__ == "__main__":
    main()
