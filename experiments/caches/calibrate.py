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
from compact import dumps

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
    """Put the calibration of the model's own number of steps into its definition and leave its other lines alone."""
    text = DEFINITION.read_text()
    for method, key in (("magcache", "mag_ratios"), ("teacache", "teacache")):
        file = path_of(folder, method, SHIPPED)
        found = study.read_calibration(file)
        source = (
            f"experiments/caches/calibrate.py: {found.num_prompts} training prompts, {found.num_seeds} seed, "
            f"{found.num_steps} steps; experiments/caches/calibration/{file.name}"
        )
        text = replaced(text, key, found.constants()[key])
        text = replaced(text, f"constants.{key}", source)
    atomic_write(DEFINITION, text)


def replaced(text: str, key: str, value: Any) -> str:
    """A JSON document with another value for a key that it has once."""
    mark = f"{json.dumps(key)}: "
    assert text.count(mark) == 1, f"{key} is there {text.count(mark)} times"
    begin = text.index(mark) + len(mark)
    _, end = json.JSONDecoder().raw_decode(text, begin)
    line = text[text.rindex("\n", 0, begin) + 1 : begin]
    return text[:begin] + dumps(value, indent=len(line) - len(line.lstrip())) + text[end:]


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
