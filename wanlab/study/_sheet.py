"""One row a result: what differs, how far the pictures and latents are apart, what it took and what a cache saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wanlab import metrics
from wanlab.errors import WanlabError

if TYPE_CHECKING:
    import pandas

    from wanlab.result import Result

_DB, _SECONDS, _BYTES, _SHARE, _TIMES = "dB", "s", "bytes", "of 1", "times"
_DISTANCES = {  # column -> unit and meaning; all to the first result's frames or latents
    "psnr_clip_db": (_DB, "one mean squared error over the clip; inf where equal"),
    "psnr_frames_db": (_DB, "mean over frames; an equal frame counts 100"),
    "ssim": (_SHARE, "11 x 11 Gaussian window, per channel, where it fits"),
    "ms_ssim": (_SHARE, "SSIM at five scales; from 161 x 161 pixels"),
    "vmaf": ("0 to 100", "vmaf_v0.6.1 at the frames' own size, mean over frames"),
    "xpsnr_y_db": (_DB, "perceptually weighted PSNR of the luma; inf where equal"),
    "latent_psnr_db": (_DB, "of the final latents; the peak is the range of the first result's"),
    "max_abs_diff_levels": ("of 255", "largest difference of any pixel"),
}
_OWN = {
    "flicker_levels": ("of 255", "mean change from frame to frame, motion included"),
    "skipped_forwards": ("forwards", "in which a cache reused something, wholly or in part"),
    "hit_rate": (_SHARE, "skipped forwards of all forwards"),
    "ideal_speedup": (_TIMES, "forwards over the sum of the shares that were computed; what free reuse would give"),
    "realised_speedup": (_TIMES, "the first result's seconds of denoising over this one's; loading counts, if any"),
    "efficiency": (_SHARE, "realised over ideal speed-up"),
    "state_bytes": (_BYTES, "what the cache held at the most"),
    "peak_bytes": (_BYTES, "peak memory of the GPU, on the CPU of the process"),
}
_WHOLE = ("max_abs_diff_levels", "skipped_forwards", "state_bytes", "peak_bytes")


def sheet(
    results: Sequence[Result],
    labels: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> pandas.DataFrame:
    """The data frame: label, a column a setting that differs, distances to the first result, costs; NaN where none.

    `attrs` has "units" and "meaning" by column, the "reference"'s label, and "notes": why a column has no number.
    """
    from wanlab.study._sheet_frame import Sheet

    notes: dict[str, str] = {}
    stages = [*dict.fromkeys(name for r in results for name in r.seconds if name != "total"), "total"]
    table = []
    for i, result in enumerate(results):
        distances = _distances(results[0], result, rows[i], notes) if i else dict.fromkeys(_DISTANCES)
        seconds = {f"{stage}_seconds": result.seconds.get(stage) for stage in stages}
        costs = {"flicker_levels": rows[i]["flicker"]} | _savings(results[0], result)
        table.append({"label": labels[i], **settings[i], **distances, **seconds, **costs})
    words = {"label", *(name for values in settings for name in values)}
    frame = Sheet.of(table, words=words, whole=_WHOLE)
    explained = _DISTANCES | {f"{s}_seconds": (_SECONDS, f"stage {s}; loading counts, if any") for s in stages} | _OWN
    frame.attrs = {
        "reference": labels[0],
        "units": {name: unit for name, (unit, _) in explained.items()},
        "meaning": {name: meaning for name, (_, meaning) in explained.items()},
        "notes": notes,
    }
    return frame


def _distances(first: Result, result: Result, row: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any]:
    a, b = first.frames, result.frames

    def ask(column: str, measure: Callable[[], float]) -> float | None:
        try:
            return measure()
        except WanlabError as error:
            notes.setdefault(column, str(error))
            return None

    is_comparable = a.shape == b.shape
    if not is_comparable:
        notes.setdefault("psnr_clip_db", f"{a.shape} and {b.shape} (frames, height, width, channels) do not compare")
    found: dict[str, Any] = {
        "psnr_clip_db": row["psnr"],
        "psnr_frames_db": row["psnr_frames"],
        "ssim": row["ssim"],
        "max_abs_diff_levels": row["max_abs_diff"],
        "ms_ssim": ask("ms_ssim", lambda: metrics.ms_ssim(a, b)) if is_comparable else None,
        "vmaf": ask("vmaf", lambda: metrics.vmaf(a, b)) if is_comparable else None,
        "xpsnr_y_db": ask("xpsnr_y_db", lambda: metrics.xpsnr(a, b, fps=first.fps).y) if is_comparable else None,
        "latent_psnr_db": None,
    }
    if first.latents is not None and result.latents is not None:
        found["latent_psnr_db"] = ask("latent_psnr_db", lambda: metrics.latent_psnr(first.latents, result.latents))
    return {column: found[column] for column in _DISTANCES}


def _savings(first: Result, result: Result) -> dict[str, Any]:
    """What a cache left out and what that gave; what a record does not say is None."""
    cache = result.ran.get("cache") or {}
    reused, computed = cache.get("reused"), cache.get("computed")
    is_counted = reused is not None and computed is not None and reused + computed > 0
    ideal, before, now = cache.get("ideal_speedup"), first.seconds.get("denoise"), result.seconds.get("denoise")
    realised = before / now if before and now else None
    return {
        "skipped_forwards": reused,
        "hit_rate": reused / (reused + computed) if is_counted else None,
        "ideal_speedup": ideal,
        "realised_speedup": realised,
        "efficiency": realised / ideal if realised and ideal else None,
        "state_bytes": cache.get("state_bytes"),
        "peak_bytes": result.peak_bytes or None,
    }
