"""Distances that need no decoder: between latents, and between the data estimates of two runs, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wanlab.errors import WanlabError, shorten
from wanlab.metrics._frames import Array

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

_BYTES = {"float16": 2, "float32": 4}


def latent_psnr(reference: Any, other: Any) -> float:
    """PSNR of latents in dB; the peak is the reference's range, its largest value less its smallest. inf where equal.

    Tensors or arrays of one shape, compared in float64. It depends on which one is the reference. Raises WanlabError
    for other shapes, for NaN or infinity and for a reference that is constant, which has no range.
    """
    a, b = _numbers(reference), _numbers(other)
    if a.shape != b.shape or not a.size:
        raise WanlabError(
            f"Two latents of one shape are needed, got {a.shape} and {b.shape}",
            remedy="Generate both with the same width, height and num_frames.",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise WanlabError("The latents hold NaN or infinity", remedy="In float16, record a Drift as float32.")
    peak, mse = float(a.max() - a.min()), float(np.mean((a - b) ** 2))
    if mse == 0:
        return float("inf")
    if peak == 0:
        raise WanlabError("The reference latents are constant, so that PSNR has no peak")
    return 10 * float(np.log10(peak**2 / mse))


@dataclass(eq=False, repr=False)
class Drift:
    """Keeps the data estimate x0 of every step: `generate(model, spec, on_step=drift)`, then `drift(first, second)`.

    Estimates are copied to the CPU, one wait for the device a step; `max_bytes` is how much they may take in all.
    float16 halves them and rounds by up to 5e-4 of a value. A run that begins again replaces what was kept.
    Raises WanlabError, which ends the run, at the step whose estimate would not fit.
    """

    dtype: Literal["float16", "float32"] = "float32"
    max_bytes: int = 2 << 30
    sigmas: dict[int, float] = field(default_factory=dict, init=False)
    """Step -> the noise level the network was asked at."""
    estimates: dict[int, Tensor] = field(default_factory=dict, init=False)
    """Step -> (B, C, T, H, W) on the CPU."""

    def __post_init__(self) -> None:
        if self.dtype not in _BYTES:
            raise WanlabError(f"Drift in {shorten(self.dtype)}", choices=_BYTES)

    def __call__(self, step: int, sigma: float, latents: Tensor, denoised: Tensor) -> None:
        """What the sampling loop calls after each step."""
        import torch

        if self.estimates and step <= max(self.estimates):
            self.sigmas.clear()
            self.estimates.clear()
        size = denoised.numel() * _BYTES[self.dtype]
        if self.num_bytes + size > self.max_bytes:
            raise WanlabError(
                f"Drift may keep {self.max_bytes:,} bytes, which {len(self.estimates)} steps of {size:,} bytes fill",
                remedy='Give max_bytes, or dtype="float16".' if self.dtype == "float32" else "Give max_bytes.",
            )
        self.estimates[step] = denoised.detach().to("cpu", getattr(torch, self.dtype), copy=True)
        self.sigmas[step] = sigma

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(x.numel() * x.element_size() for x in self.estimates.values())

    def __repr__(self) -> str:
        return f"Drift({len(self.estimates)} steps, {self.dtype}, {self.num_bytes:,} bytes)"


@dataclass(frozen=True, eq=False, repr=False)
class DriftCurve:
    """How far a run's data estimates are from another's, step by step; each is (steps,)."""

    steps: Array
    sigmas: Array
    relative_l2: Array
    """|other - reference| / |reference|, Euclidean norms over the whole estimate."""
    psnr: Array
    """dB, as `latent_psnr`: the peak is the range of the reference's estimate at that step."""

    def to_frame(self) -> pandas.DataFrame:
        """A row a step: step, sigma, relative_l2, psnr_db."""
        import pandas

        columns = {"step": self.steps, "sigma": self.sigmas, "relative_l2": self.relative_l2, "psnr_db": self.psnr}
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        return (
            f"DriftCurve({len(self.steps)} steps, relative L2 at the end {self.relative_l2[-1]:.3g}, "
            f"at most {self.relative_l2.max():.3g})"
        )


def drift(reference: Drift, other: Drift) -> DriftCurve:
    """Compare what two runs thought the data to be, step by step.

    Raises WanlabError for runs of other steps, noise levels or shapes, and for recorders that saw no step.
    """
    if not reference.sigmas or reference.sigmas != other.sigmas:
        raise WanlabError(
            f"Drift needs two runs of the same noise levels, got {len(reference.sigmas)} and {len(other.sigmas)} steps",
            remedy="Give each run its own Drift() as on_step, and the same sampler, num_steps and flow_shift.",
        )
    pairs = [(reference.estimates[step], other.estimates[step]) for step in reference.estimates]
    psnr = [latent_psnr(a, b) for a, b in pairs]  # first: it checks the shapes
    return DriftCurve(
        np.array(list(reference.sigmas)),
        np.array(list(reference.sigmas.values())),
        np.array([_relative(_numbers(a), _numbers(b)) for a, b in pairs]),
        np.array(psnr),
    )


def _relative(a: Array, b: Array) -> float:
    distance = float(np.linalg.norm((b - a).ravel()))
    return distance / float(np.linalg.norm(a.ravel())) if distance else 0.0


def _numbers(values: Any) -> Array:
    """float64 of a tensor on any device, or of an array."""
    return np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values, np.float64)
