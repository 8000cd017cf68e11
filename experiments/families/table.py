"""The figures of results files as markdown: python experiments/families/table.py experiments/families/results/*.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STAGES = ("text", "conditions", "denoise", "decode")


def number(side: dict[str, Any], stage: str, key: str, digits: int) -> str:
    """A figure of a stage; the word that stands in its place; or a dash."""
    found = side.get(stage)
    if isinstance(found, str):
        return found
    value = None if found is None else found.get(key)
    return "-" if value is None else f"{value:.{digits}f}"


def speeds(rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line a row: seconds of a step and of the other stages, ours / diffusers."""
    lines = [
        "| row | size | tokens | s a step: ours | diffusers | ratio | latents differ by | text | conditions | decode |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        if "ours" not in row:
            lines.append(f"| {name} | {row.get('error') or row.get('skipped')} | | | | | | | | |")
            continue
        ours, theirs = row["ours"], row["diffusers"]
        steps = [number(side, "denoise", "step_seconds", 3) for side in (ours, theirs)]
        try:
            ratio = f"{float(steps[1]) / float(steps[0]):.3f}"
        except ValueError:
            ratio = "-"
        pairs = [
            f"{number(ours, stage, 'seconds', 2)} / {number(theirs, stage, 'seconds', 2)}"
            for stage in ("text", "conditions", "decode")
        ]
        differ = (
            " / ".join(f"{f(r[0] for r in row['latents_rel']):.0e}" for f in (max,))
            if row.get("latents_rel")
            else row.get("error", "-")
        )
        cells = [name, f"{row['size']}", f"{row['tokens']:,}", *steps, ratio, differ, *pairs]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory(rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line a row: resident weights and peaks by stage in GB (1e9 bytes), ours / diffusers."""
    lines = ["| row | weights, GB | of them text encoder | " + " | ".join(f"peak {s}" for s in STAGES) + " |"]
    lines.append("|---|---:|---:|" + "---:|" * len(STAGES))
    for name, row in rows.items():
        if "weights_gb" not in row:
            continue
        weights = row["weights_gb"]
        text = f"{weights['text_encoder']:.1f} ({row.get('text_encoder', '-')})"
        pairs = [
            f"{number(row['ours'], stage, 'peak_gb', 1)} / {number(row['diffusers'], stage, 'peak_gb', 1)}"
            for stage in STAGES
        ]
        lines.append(f"| {name} | {sum(weights.values()):.1f} | {text} | {' | '.join(pairs)} |")
    return lines


def main() -> None:
    rows: dict[str, dict[str, Any]] = {}
    for file in sys.argv[1:]:
        results = json.loads(Path(file).read_text())
        print(f"{Path(file).name}: {', '.join(f'{key} {value}' for key, value in results['machine'].items())}")
        for name, row in results["rows"].items():
            if name not in rows or "ours" in row:  # a row that was skipped in one file may be in another
                rows[name] = row
    print("", *speeds(rows), "", *memory(rows), sep="\n")


if __name__ == "__main__":
    main()
