"""The tables of the README, from the results.

python experiments/caches/table.py            # prints them
python experiments/caches/table.py --write    # puts them into README.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from rows import PLAIN, Mean, Results

from wanlab.files import atomic_write

HERE = Path(__file__).parent
HEAD = (
    "method", "point", "from step", "ideal", "realised, H100", "realised, CPU", "PSNR frames", "worst", "PSNR clip",
    "SSIM", "VMAF", "PSNR latents", "prompts right", "state, MB",
)  # fmt: skip
SPEEDS = (1.6, 2.0, 2.5, 2.9)
PAIR_SPEEDS = (2.0, 2.5)
UNITS = {"psnr_frames": "dB", "vmaf": "VMAF"}
PAIRS = (
    ("easycache", "teacache", "EasyCache's README"),
    ("easycache", "magcache", "two READMEs together"),
    ("magcache", "teacache", "MagCache's Table 1"),
    ("seacache", "teacache", "SeaCache's abstract"),
    ("seacache", "magcache", "SeaCache's abstract"),
    ("seacache", "taylorseer, all", "SeaCache's abstract"),
    ("teacache", "taylorseer, all", "two READMEs together"),
    ("magcache", "fixed", ""),
    ("fixed", "teacache", ""),
    ("fixed", "dbcache", ""),
    ("fixed", "taylorseer", ""),
    ("fixed", "adacache", ""),
    ("fixed", "first_block", ""),
    ("dbcache", "first_block", ""),
    ("taylorseer, all", "taylorseer", ""),
)
"""Method, what it is held against, who says that the first is better, if anybody was found."""

DECIDES = {
    "fixed": "before the run",
    "magcache": "before the run",
    "teacache": "before the run",
    "easycache": "each step, by the latents",
    "first_block": "each forward, by a block",
    "dbcache": "each forward, by a block",
    "adacache": "at computed steps",
    "seacache": "each step, by filtered latents",
    "taylorseer": "by a count",
    "taylorseer, all": "by a count",
    "pab": "by a count",
}


def points(results: Results) -> str:
    """Every point, a row each."""
    lines = [line(HEAD), line(["---"] * 2 + ["---:"] * (len(HEAD) - 2))]
    for key, row in results.rows.items():
        lines.append(line(point(results, key, row["method"] if key == PLAIN else key.split("/")[0])))
    return "\n".join(lines)


def point(results: Results, key: str, method: str) -> list[str]:
    """One row's cells."""
    mean = {
        name: results.mean(key, name).value for name in ("ideal_speedup", "psnr_clip", "ssim", "vmaf", "latent_psnr")
    }
    count, low, high = results.right(key)
    prompts = f"{count} [{100 * low:.0f}, {100 * high:.0f}]"
    if key == PLAIN:
        return [method, "", "", "1", "1", "1", "", "", "", "", f"{mean['vmaf']:.1f}", "", prompts, ""]
    cpu = results.realised_cpu(key)
    quality = [
        plus_minus(results.mean(key, "psnr_frames")),
        f"{results.column(key, 'psnr_frames').min():.1f}",
        f"{mean['psnr_clip']:.1f}",
        f"{mean['ssim']:.4f}",
        f"{mean['vmaf']:.1f}",
        f"{mean['latent_psnr']:.1f}",
    ]
    name = key.split("/")[1]
    times = [f"{mean['ideal_speedup']:.2f}", f"{results.realised_mean(key):.2f}"]
    times.append(f"{sum(cpu) / len(cpu):.2f}" if cpu else "")
    return [
        method,
        name,
        str(first_reused(results.rows[key])),
        *times,
        *quality,
        prompts,
        f"{results.rows[key]['state_bytes'] / 1e6:.1f}",
    ]


def first_reused(row: dict[str, Any]) -> int:
    """The first step of prompt 0 in which something is reused, counted from 0."""
    return next(step for step, share in enumerate(row["shares"]["cond"]) if share < 1)


def equal_speed(results: Results) -> str:
    """PSNR of each method at equal ideal speed-ups, and what it lacks to the best, prompt by prompt."""
    lines = [line(["method", *[f"at {s:g}x" for s in SPEEDS]]), line(["---", *["---:"] * len(SPEEDS)])]
    columns = {s: {m: results.at_speed(m, s, "psnr_frames") for m in results.methods} for s in SPEEDS}
    best = {s: max((m for m in c if c[m] is not None), key=lambda m, c=c: c[m].mean()) for s, c in columns.items()}
    for method in results.methods:
        cells = []
        for speed, found in columns.items():
            own, top = found[method], found[best[speed]]
            if own is None:
                cells.append("")
            elif method == best[speed]:
                cells.append(f"**{own.mean():.1f}**")
            else:
                gap = results.mean_of(own - top)
                cells.append(f"{own.mean():.1f} ({gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}])")
        if any(cells):
            lines.append(line([method, *cells]))
    return "\n".join(lines)


def times(results: Results) -> str:
    """The middle points: what is realised of the ideal speed-up, and what reuse itself takes on a CPU."""
    heads = [
        "method",
        "decides",
        "ideal",
        "CPU",
        "of ideal",
        "beyond ideal, % of a plain clip",
        "H100, 2 clips",
        "of ideal",
    ]
    lines = [line(heads), line(["---"] * 2 + ["---:"] * 6)]
    plain = results.cpu["rows"][PLAIN]["cpu_seconds"]
    for method, keys in results.methods.items():
        key = keys[len(keys) // 2]
        ideal, cpu, gpu = results.cpu["rows"][key]["ideal_speedup"], results.realised_cpu(key), results.realised(key)
        beyond = 100 * (sum(results.cpu["rows"][key]["cpu_seconds"]) / sum(plain) - 1 / ideal)
        both = [f"{sum(cpu) / len(cpu):.2f}", f"{sum(cpu) / len(cpu) / ideal:.2f}", f"{beyond:.1f}"]
        both += [", ".join(f"{x:.2f}" for x in gpu), f"{results.realised_mean(key) / results.timed_ideal(key):.2f}"]
        lines.append(line([method, DECIDES[method], f"{ideal:.2f}", *both]))
    return "\n".join(lines)


def orderings(results: Results) -> str:
    """Pairs of methods at speeds that both reach: differences prompt by prompt, and what those of PSNR say."""
    measures = [(name, speed) for name in ("psnr_frames", "vmaf") for speed in PAIR_SPEEDS]
    heads = [f"{UNITS[name]} at {speed:g}x" for name, speed in measures]
    lines = [line(["better", "than", "who says so", *heads, "here, in PSNR"])]
    lines.append(line(["---"] * 3 + ["---:"] * len(measures) + ["---"]))
    for first, second, claim in PAIRS:
        gaps = [difference(results, first, second, name, speed) for name, speed in measures]
        cells = [f"{g.value:+.1f} [{g.low:+.1f}, {g.high:+.1f}]" if g else "" for g in gaps]
        lines.append(line([first, second, claim, *cells, words([g for g in gaps[: len(PAIR_SPEEDS)] if g])]))
    return "\n".join(lines)


def difference(results: Results, first: str, second: str, name: str, speed: float) -> Mean | None:
    """Mean difference of two methods in a column at a speed; None where one has no points around it."""
    one, other = (results.at_speed(method, speed, name) for method in (first, second))
    return None if one is None or other is None else results.mean_of(one - other)


def words(gaps: list[Mean]) -> str:
    """What intervals say of a claimed order."""
    if not gaps:
        return "no common speed"
    told = ["yes" if gap.low > 0 else "no, the other way" if gap.high < 0 else "open" for gap in gaps]
    return told[0] if len(set(told)) == 1 else ", then ".join(told)


def plus_minus(mean: Mean) -> str:
    """A mean and its interval."""
    return f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]"


def line(cells: tuple[str, ...] | list[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def tables() -> dict[str, str]:
    """Name -> table, as the README holds them."""
    results = Results(HERE / "results" / "h100.json", HERE / "results" / "cpu.json")
    return {
        "points": points(results),
        "equal speed": equal_speed(results),
        "orderings": orderings(results),
        "times": times(results),
    }


def filled(text: str) -> str:
    """A README with its tables between their marks."""
    for name, table in tables().items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        assert len(pattern.findall(text)) == 1, f"the README has no single place for the table {name}"
        text = pattern.sub(lambda found, table=table: found[1] + table + "\n" + found[2], text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    readme = HERE / "README.md"
    if parser.parse_args().write:
        atomic_write(readme, filled(readme.read_text()))
        return
    for name, table in tables().items():
        print(f"{name}\n{table}\n")


if __name__ == "__main__":
    main()
