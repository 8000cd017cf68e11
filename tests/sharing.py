"""What the tests of sharing and resuming have in common: cases of every cache, and runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wanlab import stages, sweeps
from wanlab.models import Model
from wanlab.spec import GenerationSpec

STEPS = 8
RATIOS = [1.0 + 0.01 * (-1) ** i for i in range(2 * (STEPS - 1))]
TEA = {"coefficients": {"transformer": [0.1, 0.0], "transformer_2": [0.1, 0.0]}}
CACHES: dict[str, dict[str, Any]] = {
    "fixed": {"method": "fixed", "mask": [True, True, False, True, False, False, True, True]},
    "magcache": {"method": "magcache", "mag_ratios": RATIOS, "retention": 0.3},
    "teacache": {"method": "teacache", **TEA, "threshold": 0.2},
    "easycache": {"method": "easycache", "threshold": 0.6, "warmup_steps": 2},
    "first_block": {"method": "first_block", "threshold": 0.015},
    "dbcache": {"method": "dbcache", "threshold": 0.015, "num_first": 1, "num_last": 1, "warmup_steps": 2},
    "adacache": {"method": "adacache"},
    "seacache": {"method": "seacache", "threshold": 0.6},
    "taylorseer": {"method": "taylorseer", "interval": 3},
    "taylorseer-all": {"method": "taylorseer", "interval": 3, "modules": "all"},
    "pab": {"method": "pab", "self_range": 2, "cross_range": 3, "start": 350, "stop": 1000},
}
"""Of every method, options under which it reuses some of the tiny models' steps."""
GUIDANCES: dict[str, dict[str, Any]] = {
    "cfg": {"method": "cfg"},
    "cfg_interval": {"method": "cfg_interval", "start": 0.0, "stop": 0.5},
    "slg": {"method": "slg", "layers": [1], "start": 0.4, "stop": 0.8},
    "slg-own": {"method": "slg", "layers": [1], "scale": 2.0, "start": 0.4, "stop": 0.8},
    "cfg_zero": {"method": "cfg_zero", "zero_steps": 1},
    "apg": {"method": "apg", "norm_threshold": 3.0},
    "nag": {"method": "nag"},
}


def base_of(model: Model, **changes: Any) -> GenerationSpec:
    """A short run of a tiny model, whose text is short too."""
    size = {"width": 32, "height": 32} | ({} if model.family == "flux" else {"num_frames": 5})
    return model.spec(prompt="a cat", num_steps=STEPS, max_text_tokens=8, **size, **changes)


def inputs(model: Model, spec: GenerationSpec) -> tuple[Any, Any]:
    return stages.encode_text(model, spec), stages.encode_conditions(model, spec)


def alone(model: Model, spec: GenerationSpec) -> tuple[Tensor, dict[str, Any]]:
    return stages.denoise_recorded(model, spec, *inputs(model, spec))


class Forwards:
    """Counts, while inside, the network's forwards whose first block runs: what no report is asked for."""

    def __init__(self, model: Model) -> None:
        self.model, self.count = model, 0

    def __enter__(self) -> Forwards:
        modules = [stack[0].module for stack in self.model.stacks.values()]
        self._hooks = [module.register_forward_hook(self._add) for module in modules]
        return self

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def check_equal(model: Model, specs: Mapping[str, GenerationSpec], **more: Any) -> sweeps.Together:
    """Shared runs equal single ones in every bit of the latents and every word of what ran."""
    text, conditions = inputs(model, base_of(model))
    together = sweeps.denoise_together(model, specs, text, conditions, **more)
    found = {key: (latents, ran) for key, latents, ran in together}
    assert set(found) == set(specs)
    for key, (latents, ran) in found.items():
        expected, told = alone(model, specs[key])
        assert torch.equal(latents, expected), key
        shared = ran.pop("shared")
        assert ran == told, key
        assert set(shared["with"]) <= set(specs) - {key}
        assert bool(shared["with"]) == bool(shared["prefix_steps"])
    assert not model.attachments()
    return together
