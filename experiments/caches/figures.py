"""The README's figures, results/*.png: python experiments/caches/figures.py     # a CPU, seconds

The plans and the ratios need no results: they come from the definitions, the calibrations and wan_tiny's own weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from calibrate import options
from matplotlib.figure import Figure
from plans import magcache_plans, published_ratios, teacache_plans
from rows import PLAIN, Results

from wanlab import study

HERE = Path(__file__).parent
STYLES = {
    "fixed": ("#000000", "s", True),
    "magcache": ("#0072B2", "o", True),
    "teacache": ("#56B4E9", "^", True),
    "easycache": ("#D55E00", "D", True),
    "first_block": ("#B07D00", "v", True),
    "dbcache": ("#B07D00", "v", False),
    "adacache": ("#CC79A7", "P", True),
    "seacache": ("#009E73", "*", True),
    "taylorseer": ("#6A3D9A", "X", True),
    "taylorseer, all": ("#6A3D9A", "X", False),
    "pab": ("#777777", "h", True),
}
"""Method -> colour (Okabe and Ito's, yellow and orange darkened), marker, whether it is filled."""
TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6)


def style(method: str) -> dict[str, Any]:
    """Of a method's line."""
    colour, marker, filled = STYLES[method]
    return {
        "color": colour,
        "marker": marker,
        "markersize": 10 if marker == "*" else 7,
        "markerfacecolor": colour if filled else "white",
        "linestyle": "-" if filled else "--",
        "linewidth": 1.1,
        "label": method,
    }


def speed_axis(axes: Any, low: float, high: float, words: str) -> None:
    """A logarithmic axis of speed-ups with plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    shown = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(words)


def pareto(results: Results) -> Figure:
    """PSNR and VMAF against the ideal speed-up, means over prompts with 95 % intervals."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, name, words in (
        (panels[0], "psnr_frames", "PSNR, mean of frames (dB)"),
        (panels[1], "vmaf", "VMAF (grey frames)"),
    ):
        for method, keys in results.methods.items():
            means = [results.mean(key, name) for key in keys]
            speeds = [results.mean(key, "ideal_speedup").value for key in keys]
            bars = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
            axes.errorbar(speeds, [m.value for m in means], bars, capsize=2, elinewidth=0.8, **style(method))
        axes.set_ylabel(words)
        axes.grid(alpha=0.25)
        front = results.front(name)
        places = [(results.mean(k, "ideal_speedup").value, results.mean(k, name).value) for k in front]
        axes.plot(*zip(*places, strict=True), color="#999999", linewidth=7, alpha=0.25, zorder=0, label="front")
    same = results.mean(PLAIN, "vmaf").value
    panels[1].axhline(same, color="#444444", linewidth=0.8, linestyle=":")
    panels[1].annotate(f"a clip against itself: {same:.1f}", (6.5, same), ha="right", va="bottom", fontsize=9)
    speed_axis(panels[1], 1.25, 6.6, "ideal speed-up (forwards / shares of the blocks that were computed)")
    panels[0].tick_params(labelbottom=False)
    panels[0].legend(ncols=2, frameon=False, fontsize=10)
    num = results.num_prompts
    figure.suptitle(f"wan_tiny, {results.data['num_steps']} steps, {num} prompts; bars: 95 % by resampling prompts")
    return figure


def realised(results: Results) -> Figure:
    """Realised against ideal speed-up, on the GPU and on one processor core."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, keys in results.methods.items():
        spans = [(results.timed_ideal(k), sorted(results.realised(k)), results.realised_mean(k)) for k in keys]
        clocked(left, method, spans)
        cpu = [
            (results.cpu["rows"][k]["ideal_speedup"], sorted(results.realised_cpu(k)))
            for k in keys
            if k in results.cpu["rows"]
        ]
        clocked(right, method, [(ideal, each, sum(each) / len(each)) for ideal, each in cpu])
    for axes, words in (
        (left, f"{results.data['device']}, two clips and each alone"),
        (right, f"CPU ({results.cpu['device']}), middle points"),
    ):
        axes.plot([1, 7], [1, 7], color="#444444", linewidth=0.8, linestyle=":")
        axes.text(4.1, 4.4, "ideal", rotation=40, ha="right", va="bottom", fontsize=9, color="#444444")
        axes.set_yscale("log")
        axes.set_ylim(0.7, 6.6)
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.set_yticks([], minor=True)
        speed_axis(axes, 1.2, 6.6, "ideal speed-up")
        axes.set_title(words, fontsize="medium")
        axes.grid(alpha=0.25)
    left.set_ylabel("realised speed-up of denoising")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=10)
    return figure


def clocked(axes: Any, method: str, spans: list[tuple[float, list[float], float]]) -> None:
    """A method's points with the range of single clips."""
    if not spans:
        return
    ideals, singles, means = zip(*spans, strict=True)
    bars = [
        [m - each[0] for m, each in zip(means, singles, strict=True)],
        [each[-1] - m for m, each in zip(means, singles, strict=True)],
    ]
    kind = style(method) | {"linestyle": "none"}
    axes.errorbar(ideals, means, np.clip(bars, 0, None), elinewidth=0.8, capsize=2, **kind)


def hit_maps(results: Results) -> Figure:
    """Of each method's middle point and the first prompt: the share of the blocks that each forward computed."""
    picked = [keys[len(keys) // 2] for keys in results.methods.values()]
    labels = [f"{key.replace('/', ': ')} ({results.column(key, 'ideal_speedup')[0]:.2f}x)" for key in picked]
    strips = [results.rows[key]["shares"][branch] for key in picked for branch in ("cond", "uncond")]
    figure = Figure(figsize=(10, 6), layout="constrained")
    draw_strips(figure, strips, labels, 2)
    figure.suptitle(
        f'"{results.data["prompts"][0]}": conditional forward above, unconditional below', fontsize="medium"
    )
    return figure


def draw_strips(figure: Figure, strips: list[list[float]], labels: list[str], each: int) -> None:
    """Rows of forwards, `each` of them under one label; dark is computed."""
    axes = figure.subplots()
    longest = max(map(len, strips))
    table = np.full((len(strips), longest), np.nan)
    for number, strip in enumerate(strips):
        table[number, : len(strip)] = strip
    image = axes.pcolormesh(table, cmap="cividis_r", vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    axes.invert_yaxis()
    for place in range(each, len(strips), each):
        axes.axhline(place, color="white", linewidth=4)
    axes.set_yticks([each * i + each / 2 for i in range(len(labels))], labels)
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("step")
    axes.set_xticks(np.arange(0, longest, 10) + 0.5, [str(i) for i in range(0, longest, 10)])
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
    bar.set_ticks([0, 1], labels=["reused", "computed"])


def plans() -> Figure:
    """MagCache's plans of Wan's checkpoints at the published settings and TeaCache's of wan_tiny."""
    found = magcache_plans() | teacache_plans()
    figure = Figure(figsize=(10, 0.34 * len(found) + 1), layout="constrained")
    labels = [f"{name} ({len(mask) / sum(mask):.2f}x)" for name, mask in found.items()]
    draw_strips(figure, [[float(x) for x in mask[::2]] for mask in found.values()], labels, 1)
    figure.suptitle(
        "Plans before any run, conditional forward: MagCache of Wan (threshold, K, retention), TeaCache of wan_tiny",
        fontsize="medium",
    )
    return figure


def ratios() -> Figure:
    """Growth of the residual from step to step: published lists of Wan and wan_tiny's calibration."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    looks = ["-", "--", "-.", ":"]
    colours = ["#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#B07D00"]
    for number, (name, values) in enumerate(published_ratios().items()):
        place = np.arange(1, len(values) + 1) / len(values)
        axes.plot(place, values, looks[number % 4], color=colours[number % 5], linewidth=1.2, label=name)
    for num_steps, look in ((50, "-"), (20, "--")):
        found = study.read_calibration(HERE / "calibration" / f"wan_tiny_magcache_{num_steps}.json")
        own, spread = np.array(found.ratios[0]), np.array(found.spread[0])
        place = np.arange(1, len(own) + 1) / len(own)
        axes.plot(place, own, look, color="black", linewidth=2.4, label=f"wan_tiny, {num_steps} steps")
        axes.fill_between(place, own - spread, own + spread, color="black", alpha=0.12, linewidth=0)
    axes.annotate("2.2 I2V A14B: second expert", (0.385, 0.905), ha="center", va="top", fontsize=9)
    axes.annotate("  2.2 T2V A14B: second expert", (0.67, 0.66), ha="left", va="center", fontsize=9)
    axes.set_xlabel("share of the run")
    axes.set_ylabel("residual's norm / that of the step before")
    axes.set_ylim(0.63, 1.05)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=10, loc="lower left", ncols=2)
    axes.set_title("Conditional forward; grey: one standard deviation between 64 prompts", fontsize="medium")
    return figure


def main() -> None:
    results = Results(HERE / "results" / "h100.json", HERE / "results" / "cpu.json")
    assert options(HERE / "calibration", results.data["num_steps"])
    drawn = {
        "pareto": pareto(results),
        "realised": realised(results),
        "hit_maps": hit_maps(results),
        "plans": plans(),
        "ratios": ratios(),
    }
    for name, figure in drawn.items():
        file = HERE / "results" / f"{name}.png"
        figure.savefig(file, dpi=100)
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
