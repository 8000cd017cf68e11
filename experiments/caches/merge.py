"""What run.py's shards and its timed run found, as one file of results that a repository can hold.

    python experiments/caches/merge.py shard_*.json --timed timed.json --out experiments/caches/results/h100.json

Shards may have run side by side on one device, so that their seconds are left out; the timed run stands for them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from compact import dumps
from run import PLAIN

SAME = ("device", "dtype", "torch", "env", "num_steps")
DIGITS = {"psnr_frames": 3, "psnr_clip": 3, "latent_psnr": 3, "ssim": 6, "flicker": 3, "ideal_speedup": 4}
COUNTS = ("computed", "reused")


def read(files: list[Path]) -> list[dict[str, Any]]:
    """Shards, one or a list a file."""
    found: list[dict[str, Any]] = []
    for file in files:
        data = json.loads(file.read_text())
        found += data if isinstance(data, list) else [data]
    for name in (*SAME, "prompts"):
        assert all(shard[name] == found[0][name] for shard in found), f"the shards differ in {name}"
    return found


def columns(clips: dict[int, dict[str, Any]], num_prompts: int) -> dict[str, Any]:
    """Column -> a value for each prompt, in the prompts' order."""
    assert sorted(clips) == list(range(num_prompts)), f"prompts {sorted(clips)} of {num_prompts}"
    ordered = [clips[number] for number in range(num_prompts)]
    found: dict[str, Any] = {"right": [int(clip["right"]) for clip in ordered]}
    for name, digits in DIGITS.items():
        if name in ordered[0]:
            found[name] = [round(clip[name], digits) for clip in ordered]
    for name in COUNTS:
        if name in ordered[0]:
            values = [clip[name] for clip in ordered]
            found[name] = values if len(set(values)) > 1 else values[0]
    return found


def merged(shards: list[dict[str, Any]], timed: dict[str, Any]) -> dict[str, Any]:
    """The whole file. `rows`: "method/point" -> columns over prompts, the hit map of prompt 0, the timed clips."""
    num_prompts = len(shards[0]["prompts"])
    rows: dict[str, Any] = {}
    for key in shards[0]["rows"]:
        parts = [shard["rows"][key] for shard in shards]
        clips = {clip["prompt"]: clip for part in parts for clip in part["clips"]}
        assert len(clips) == sum(len(part["clips"]) for part in parts), f"{key}: a prompt was run twice"
        row = {name: parts[0][name] for name in ("method", "point", "cache")}
        if "state_bytes" in clips[0]:
            (row["state_bytes"],) = {clip["state_bytes"] for clip in clips.values()}
        row["clips"] = columns(clips, num_prompts)
        row["shares"] = next((by_branch(part["shares"]) for part in parts if "shares" in part), {})
        row["timed"] = of_timed(timed["rows"][key])
        rows[key] = row
    assert timed["num_steps"] == shards[0]["num_steps"]
    return {
        **{name: shards[0][name] for name in SAME},
        "prompts": shards[0]["prompts"],
        "timed": {**{name: timed[name] for name in SAME}, "prompts": timed["prompts"]},
        "rows": rows,
    }


def by_branch(shares: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Branch -> for each step the share of the blocks' work that was done; 1 is a computed forward."""
    return {path.split("/")[1]: [round(x, 4) for x in steps.values()] for path, steps in shares.items()}


def of_timed(row: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of denoising and the ideal speed-up of each timed clip."""
    return {
        "seconds": [round(clip["seconds"], 4) for clip in row["clips"]],
        "ideal_speedup": [round(clip.get("ideal_speedup", 1.0), 4) for clip in row["clips"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--timed", type=Path, required=True, help="a run of a few prompts, alone on the device")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = merged(read(args.shards), json.loads(args.timed.read_text()))
    assert f"{PLAIN}/{PLAIN}" in found["rows"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(dumps(found))
    print(f"{args.out}: {len(found['rows'])} points, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
