"""Put the transformer that `train_i2v.py` wrote into the folder that ships, and its figures into `results`.

    python experiments/wan_tiny/assemble_i2v.py --from OUT

Refuses weights of another shape, dtype or configuration, and such as follow prompts alone less well than the shipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
SHIPPED = Path(__file__).parents[2] / "wanlab/assets/wan_tiny/transformer"
DESCRIBED = ("config.json", "diffusion_pytorch_model.safetensors.index.json")


def tensors(folder: Path) -> dict[str, Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def refusals(new: Path, shipped: Path, score: Path) -> list[str]:
    """What speaks against shipping `new`."""
    said = json.loads(score.read_text()).get("t2v before and after")
    a, b = tensors(new), tensors(shipped)
    kinds = [{k: (v.shape, v.dtype) for k, v in side.items()} for side in (a, b)]
    plain = [[(folder / name).read_text() for name in DESCRIBED] for folder in (new, shipped)]
    checks = {
        "text to video was not scored with both weights": said is None,
        "prompts alone are followed less well than before": said is not None and not said["not_below_the_interval"],
        "its configuration or its shards are others": plain[0] != plain[1],
        "a tensor has another name, shape or dtype": kinds[0] != kinds[1],
        "a weight is not finite": not all(bool(torch.isfinite(v).all()) for v in a.values()),
        "it is the network that ships": a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a),
    }
    return [reason for reason, holds in checks.items() if holds]


def copy_small(source: Path, target: Path) -> None:
    """Copy a PNG with 256 colours: a sixth of the bytes, 52 dB from the original for `samples_i2v.png`."""
    colours = Image.open(source).quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    colours.save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", type=Path, required=True, dest="out", help="OUT of train_i2v.py and score_i2v.py")
    parser.add_argument("--shipped", type=Path, default=SHIPPED)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if reasons := refusals(args.out / "transformer", args.shipped, args.out / "score_i2v.json"):
        raise SystemExit("Not taken: " + "; ".join(reasons))
    for path in (args.out / "transformer").iterdir():
        shutil.copyfile(path, args.shipped / path.name)
    for name in ("train_i2v.json", "score_i2v.json"):
        shutil.copyfile(args.out / name, args.results / name)
    copy_small(args.out / "samples_i2v.png", args.results / "samples_i2v.png")
    print(sum(f.stat().st_size for f in args.shipped.glob("*.safetensors")), "bytes of weights")


if __name__ == "__main__":
    main()
