"""VMAF of every clip against its prompt's clip without a cache, from the films that run.py keeps; into the results.

    python experiments/caches/vmaf.py experiments/caches/results/h100.json --films films     # a CPU

The films are brightness alone, and so is all that VMAF's model reads: frames are given to it as grey RGB.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path

import numpy as np
from compact import dumps
from run import PLAIN

from wanlab import metrics
from wanlab.files import atomic_write

SHAPE = (33, 96, 96)


def unpack(packed: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8, grey, from a film's bytes."""
    grey = np.frombuffer(lzma.decompress(packed.tobytes()), np.uint8).reshape(SHAPE)
    return np.repeat(grey[..., None], 3, axis=-1)


def scores(file: Path) -> dict[tuple[int, str], float]:
    """(prompt's number, "method/point") -> VMAF for every film of a file, the plain ones too."""
    found: dict[tuple[int, str], float] = {}
    with np.load(file) as films:
        for name in films.files:
            number, _, key = name.partition("/")
            plain = unpack(films[f"{number}/{PLAIN}/{PLAIN}"])
            found[int(number), key] = metrics.vmaf(plain, unpack(films[name]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--films", type=Path, nargs="+", required=True, help="folders of run.py's films")
    args = parser.parse_args()
    found: dict[tuple[int, str], float] = {}
    for file in sorted(file for folder in args.films for file in folder.glob("luma_*.npz")):
        found |= scores(file)
        print(file.name, len(found), flush=True)
    results = json.loads(args.results.read_text())
    for key, row in results["rows"].items():
        row["clips"]["vmaf"] = [round(found[number, key], 2) for number in range(len(results["prompts"]))]
    atomic_write(args.results, dumps(results))


if __name__ == "__main__":
    main()
