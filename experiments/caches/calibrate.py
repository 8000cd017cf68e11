"""Measure the constants of MagCache and TeaCache for wan_tiny: `python experiments/caches/calibrate.py`.

Prompts are captions that the model was not trained on. Writes calibration/wan_tiny_<method>.json beside this file;
what `Calibration.constants()` gives of them is what defaults/wan_tiny.json holds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import wanlab
from wanlab.shapes.captions import captions, sample_scenes
from wanlab.study import calibrate

OUT = Path(__file__).parent / "calibration"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="wan_tiny")
    chosen = parser.parse_args()
    model = wanlab.load(chosen.model, device=chosen.device)
    scenes = sample_scenes(chosen.prompts, torch.Generator().manual_seed(5), "held_out", replace=False)
    for method in ("magcache", "teacache"):
        calibrate(
            model,
            captions(scenes),
            method,
            on_progress=lambda done, total: print(f"{done} of {total}", file=sys.stderr),
            save=OUT / f"{model.id}_{method}.json",
        )


if __name__ == "__main__":
    main()
