"""Plans and ratios that need no run: MagCache's published lists of Wan's checkpoints, TeaCache on wan_tiny."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibrate import options
from points import points

import wanlab
from wanlab import caches, models
from wanlab.caches import magcache, teacache
from wanlab.caches.magcache import Phases
from wanlab.catalog import find
from wanlab.study._plan import plan_strips

CALIBRATION = Path(__file__).parent / "calibration"


@dataclass(frozen=True)
class Setting:
    """A checkpoint with the setting that MagCache's READMEs give for it (EtttKkRrr)."""

    name: str
    model: str
    threshold: float
    max_skip: int
    retention: float
    with_image: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}: {self.threshold:g}, K{self.max_skip}, R{self.retention:g}"


SETTINGS = (
    Setting("2.1 T2V 1.3B", "wan_t2v_1_3b", 0.12, 2, 0.2),
    Setting("2.1 T2V 1.3B", "wan_t2v_1_3b", 0.12, 4, 0.2),
    Setting("2.1 T2V 14B", "wan_t2v_14b", 0.24, 6, 0.2),
    Setting("2.1 I2V 14B 480p", "wan_i2v_480p_14b", 0.12, 4, 0.2),
    Setting("2.1 I2V 14B 480p", "wan_i2v_480p_14b", 0.24, 6, 0.2),
    Setting("2.1 I2V 14B 720p", "wan_i2v_720p_14b", 0.12, 4, 0.2),
    Setting("2.1 I2V 14B 720p", "wan_i2v_720p_14b", 0.24, 6, 0.2),
    Setting("2.1 VACE 1.3B", "vace_1_3b", 0.12, 2, 0.2),
    Setting("2.2 TI2V 5B, text", "wan22_ti2v_5b", 0.06, 2, 0.2),
    Setting("2.2 TI2V 5B, picture", "wan22_ti2v_5b", 0.06, 2, 0.2, with_image=True),
    Setting("2.2 T2V A14B", "wan22_t2v_a14b", 0.06, 2, 0.4),
    Setting("2.2 I2V A14B", "wan22_i2v_a14b", 0.06, 2, 0.1),
)
"""Zehong-Ma/MagCache, MagCache4Wan2.1/README.md and MagCache4Wan2.2/README.md; none is given for VACE."""


def magcache_plans() -> dict[str, list[bool]]:
    """Label -> the plan, branches interleaved."""
    return {setting.label: magcache_plan(setting) for setting in SETTINGS}


def magcache_plan(setting: Setting) -> list[bool]:
    """One checkpoint's plan from its definition's constants; of two experts the split is where its spec has it."""
    entry = find(setting.model).constants["mag_ratios"]
    num_steps = entry["made_for"]["num_steps"]
    model = models.describe(setting.model)
    run = caches.Run.of(model, model.spec(prompt="", num_steps=num_steps).resolve(model))
    phases = Phases(run.split_step, bool(entry.get("keep_first_phase", False)))
    return magcache.plan(
        entry["with_image" if setting.with_image else "ratios"],
        num_steps,
        setting.threshold,
        setting.max_skip,
        setting.retention,
        split_step=phases.split_step,
        keep_first_phase=phases.keep_first,
    )


def teacache_plans(num_steps: int = 50, threshold: float = 0.1) -> dict[str, list[bool]]:
    """wan_tiny's plans by its own time embedding and calibration: the experiment's points, and a plain threshold."""
    model = wanlab.load("wan_tiny")
    constants = options(CALIBRATION, num_steps)
    found: dict[str, list[bool]] = {}
    for name, cache in points(num_steps, constants)["teacache"].items():
        strips = plan_strips(model.spec(prompt="", num_steps=num_steps, cache=cache), model)
        pairs = zip(*strips.shares.values(), strict=True)
        found[f"TeaCache, wan_tiny: {name}"] = [bool(x) for pair in pairs for x in pair]
    run = caches.Run.of(model, model.resolve(model.spec(prompt="", num_steps=num_steps)))
    embeddings = model.time_embeddings(teacache.step_timesteps(run), run.experts[0])
    found[f"TeaCache, wan_tiny: {threshold:g}"] = teacache.plan(
        embeddings, constants["teacache"]["coefficients"], threshold, num_steps
    )
    return found


def published_ratios() -> dict[str, list[float]]:
    """Name of a checkpoint -> its published ratios of the conditional forward."""
    found: dict[str, list[float]] = {}
    for setting in SETTINGS:
        entry = find(setting.model).constants["mag_ratios"]
        found[setting.name] = list(entry["with_image" if setting.with_image else "ratios"])[::2]
    return found
