"""What calibrating gave: a record that is stored, goes into a spec or a definition, and draws itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from wanlab.errors import WanlabError
from wanlab.spec import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
METHODS = ("magcache", "teacache")
_DIGITS = 9  # of a polynomial's coefficients, as published


class Calibration(Part):
    """Constants of one method for one model, and what they were measured with."""

    schema_version: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    method: Literal["magcache", "teacache"]
    model: str
    fingerprint: str
    """Of the weights."""
    sampler: str
    num_steps: int
    flow_shift: float
    guidance: str
    guidance_scale: float
    size: tuple[int, int, int]
    """Width, height, frames."""
    num_prompts: int
    num_seeds: int
    branches: tuple[str, ...]
    """Those measured, the conditional one first."""
    experts: tuple[str, ...]
    """Of each step."""
    ratios: tuple[tuple[float, ...], ...]
    """Of each branch, from the second step on: mean over tokens and clips of ||r_t|| / ||r_(t-1)||."""
    spread: tuple[tuple[float, ...], ...]
    """Standard deviation of the ratios between clips."""
    residual_changes: tuple[float, ...]
    """From the second step on: relative L1 change of the residual, mean over branches and clips."""
    signal_changes: tuple[float, ...] = ()
    """teacache: the same of the signal that its polynomial is of."""
    ret_signal_changes: tuple[float, ...] = ()
    """teacache: the same of the projected embedding."""
    coefficients: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """teacache: by expert, highest power first."""
    ret_coefficients: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @classmethod
    def of(cls, data: Mapping[str, Any], origin: str = "") -> Calibration:
        """Check a dictionary; raises WanlabError that names `origin` and the key."""
        return cls.parse(data, origin)

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"

    @property
    def made_for(self) -> dict[str, Any]:
        """The settings that a run is compared with."""
        return {k: getattr(self, k) for k in ("model", "sampler", "num_steps", "flow_shift")}

    def options(self, **more: Any) -> dict[str, Any]:
        """What goes into a spec: cache={"method": "magcache", **calibration.options(threshold=0.1)}."""
        made: dict[str, Any] = {"made_for": self.made_for, **more}
        if self.method == "magcache":
            return {"mag_ratios": self._interleaved(), "num_branches": len(self.branches), **made}
        return {
            "coefficients": self._polynomial("ret_coefficients" if more.get("ret_steps") else "coefficients"),
            **made,
        }

    def constants(self) -> dict[str, Any]:
        """What goes into a definition's constants."""
        if self.method == "magcache":
            entry = {"ratios": self._interleaved(), "num_branches": len(self.branches), "made_for": self.made_for}
            return {"mag_ratios": entry}
        names = [name for name in ("coefficients", "ret_coefficients") if getattr(self, name)]
        return {"teacache": {**{name: self._polynomial(name) for name in names}, "made_for": self.made_for}}

    def _interleaved(self) -> list[float]:
        return [ratio for step in zip(*self.ratios, strict=True) for ratio in step]

    def _polynomial(self, name: str) -> Any:
        """Of one expert a list, of two one each."""
        found = {expert: [_short(c) for c in values] for expert, values in getattr(self, name).items()}
        if not found:
            raise WanlabError(f"This calibration has no {name}", remedy="Leave ret_steps out")
        return found if len(found) > 1 else next(iter(found.values()))

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"Calibration({self._words()})"

    def _words(self) -> str:
        made = f"{self.sampler}, {self.num_steps} steps, flow_shift {self.flow_shift:g}"
        return f"{self.model}, {self.method}: {self.num_prompts} prompts, {made}"

    def figure(self, published: Mapping[str, Sequence[float]] | None = None) -> Figure:
        """Ratios over the steps; for teacache the residual's change by the signal's, with the polynomial.

        published: {label: list, two branches interleaved} of other models, drawn beside over the run's share.
        """
        from wanlab.figures import Picture

        figure = Picture(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        if self.method == "magcache":
            self._draw_ratios(axes, published or {})
        else:
            self._draw_polynomials(axes)
        axes.set_title(self._words(), fontsize="medium")
        axes.legend(frameon=False, fontsize="small")
        return figure

    def _draw_ratios(self, axes: Any, published: Mapping[str, Sequence[float]]) -> None:
        for name, ratios, spread in zip(self.branches, self.ratios, self.spread, strict=True):
            place = [step / (self.num_steps - 1) for step in range(1, self.num_steps)]
            axes.errorbar(place, ratios, yerr=spread, label=f"{self.model} {name}", capsize=2)
        for label, values in published.items():
            first = list(values)[0::2]
            axes.plot([(i + 1) / len(first) for i in range(len(first))], first, "--", linewidth=1, label=label)
        axes.set_xlabel("share of the steps")
        axes.set_ylabel("norm by that of the step before")

    def _draw_polynomials(self, axes: Any) -> None:
        import numpy as np

        axes.plot(self.signal_changes, self.residual_changes, "o", label="steps, mean of all clips")
        line = np.linspace(min(self.signal_changes), max(self.signal_changes), 200)
        for expert, values in self.coefficients.items():
            axes.plot(line, np.polyval(values, line), label=f"polynomial, {expert}")
        axes.set_xlabel("relative change of the signal")
        axes.set_ylabel("relative change of the residual")


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
