"""What run.ipynb measures: a method's clips beside the plain ones of the same noise, all made by one shared sweep."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate import options
from points import points
from run import JUDGED, PLAIN, prompts

import wanlab
from wanlab import metrics, sweeps
from wanlab.shapes.judge import judge

CALIBRATION = Path(__file__).parent / "calibration"


def settings(method: str, num_steps: int) -> dict[str, Any]:
    """Name of the point -> the spec's cache, from careful to bold; "none" has one."""
    if method == PLAIN:
        return {PLAIN: PLAIN}
    return points(num_steps, options(CALIBRATION, num_steps))[method]


def noises(num: int) -> Any:
    """Prompts that wan_tiny was not trained on, each with its own noise."""
    return wanlab.zip_(prompt=prompts(num), seed=list(range(num)))


@dataclass(frozen=True)
class Pair:
    """A clip and the plain one of the same noise, as their mp4s and latents hold them."""

    plain: wanlab.Result
    clip: wanlab.Result

    @property
    def psnr(self) -> float:
        """dB, the mean over frames; between the mp4s, whose colour has half the resolution."""
        return float(statistics.mean(metrics.psnr_per_frame(self.plain.frames, self.clip.frames)))

    @property
    def ssim(self) -> float:
        return metrics.ssim(self.plain.frames, self.clip.frames)

    @property
    def latent_psnr(self) -> float:
        """dB, peak to peak of the plain latents."""
        return min(metrics.latent_psnr(self.plain.latents, self.clip.latents), metrics.EQUAL_FRAME)

    @property
    def ideal(self) -> float:
        """Forwards over the sum of the blocks' shares that were computed."""
        return float((self.clip.ran.get("cache") or {}).get("ideal_speedup", 1.0))

    @property
    def is_right(self) -> bool:
        """Whether colour, shape and motion are the prompt's."""
        matches = judge(self.clip.frames).matches(self.clip.spec.text.prompt)
        return all(matches[word] for word in JUDGED)


def pairs(found: wanlab.runs.Results, plain: wanlab.Grid, cached: wanlab.Grid) -> list[Pair]:
    """The finished clips of a sweep, prompt by prompt."""
    return [Pair(found.open(a), found.open(b)) for a, b in zip(plain.ids, cached.ids, strict=True)]


def distances(made: list[Pair]) -> dict[str, float]:
    """Means over the prompts and the worst clip; nothing for plain clips, which have no distance."""
    if all(pair.clip.spec == pair.plain.spec for pair in made):
        return {}
    psnr = [pair.psnr for pair in made]
    found = {"psnr": psnr, "ssim": [p.ssim for p in made], "latent_psnr": [p.latent_psnr for p in made]}
    return {name: statistics.mean(values) for name, values in found.items()} | {"psnr_worst": min(psnr)}


def speeds(made: list[Pair]) -> dict[str, float]:
    """Ideal: by what the cache computed. Realised: seconds of denoising, on whatever else the machine did then."""
    plain = sum(pair.plain.seconds["denoise"] for pair in made)
    cached = sum(pair.clip.seconds["denoise"] for pair in made)
    return {"ideal_speedup": statistics.mean(p.ideal for p in made), "realised_speedup_noisy": plain / cached}


def forwards(model: Any, grid: wanlab.Grid) -> dict[str, int]:
    """Of all clips that this method's points make together: one by one, and shared as far as it is known before."""
    found = sweeps.forecast(model, grid.specs)
    return {"forwards_alone": found.alone, "forwards_shared_at_most": found.shared}
