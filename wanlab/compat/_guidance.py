"""Guidance of WanGP's settings and of a spec: scales in phases, and the rule that combines predictions.

WanGP's thresholds are timesteps of 1000 to 0, a spec's boundaries noise levels of 1 to 0. At a tie, a timestep equal to
its threshold, WanGP is in the later phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wanlab.compat._group import Context, Group, Settings, number, whole
from wanlab.compat.keys import KEYS
from wanlab.errors import WanlabError
from wanlab.registry import GUIDANCE
from wanlab.spec import GenerationSpec

_SCALES = ("guidance_scale", "guidance2_scale", "guidance3_scale")
_THRESHOLDS = ("switch_threshold", "switch_threshold2")
_MOST = len(_SCALES)
_NETWORK_WORD = "model_switch_phase"


def _embeds(context: Context) -> bool:
    """Whether the scale is an input of the network: Flux, Hunyuan Video."""
    return context.usual.guidance.method == "embedded"


def _read_phases(settings: Settings, context: Context) -> dict[str, Any]:
    if _embeds(context):
        scale = number(settings, "embedded_guidance_scale")
        return {} if scale is None else {"guidance_scale": scale}
    count = min(int(number(settings, "guidance_phases", 2 if context.model.has_two_networks else 1) or 1), _MOST)
    scales = [number(settings, key) for key in _SCALES[:count]]
    first = {} if scales[0] is None else {"guidance_scale": scales[0]}
    if count == 1:
        return first
    boundaries = [_boundary(settings, key) for key in _THRESHOLDS[: count - 1]]
    if not context.model.has_two_networks:
        return first | _phases(scales, boundaries)
    switch = int(number(settings, _NETWORK_WORD, 1) or 1)
    at = boundaries[switch - 1] if switch < count else 0.0  # a switch after the last phase never comes
    network = {} if at is None else {"expert_boundary": at}
    if count == 2 and switch == 1:
        second = {} if scales[1] is None else {"guidance_scale_2": scales[1]}
        return first | second | network
    return first | network | _phases(scales, boundaries)


def _boundary(settings: Settings, key: str) -> float | None:
    value = number(settings, key)
    if value is not None and not 0 <= value <= 1000:
        raise WanlabError(f"{key} = {value} is no timestep", remedy="Give a number from 0 to 1000.")
    return None if value is None else round(value / 1000, 12)


def _phases(scales: list[float | None], boundaries: list[float | None]) -> dict[str, Any]:
    known = [s if s is not None else float(KEYS[k].default) for s, k in zip(scales, _SCALES, strict=False)]
    return {"phase_scales": known, "phase_boundaries": [b or 0.0 for b in boundaries]}


def _write_phases(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    guidance, network = spec.guidance, spec.sampling.expert_boundary
    if _embeds(context):
        return {"embedded_guidance_scale": whole(guidance.guidance_scale)}
    if guidance.phase_scales:
        return _write_many(guidance.phase_scales, guidance.phase_boundaries, network, context)
    if not context.model.has_two_networks:
        return {"guidance_phases": 1, "guidance_scale": whole(guidance.guidance_scale)}
    second = guidance.guidance_scale if guidance.guidance_scale_2 is None else guidance.guidance_scale_2
    threshold = {} if network is None else {"switch_threshold": _timestep(network)}
    scales = {"guidance_scale": whole(guidance.guidance_scale), "guidance2_scale": whole(second)}
    return {"guidance_phases": 2, _NETWORK_WORD: 1, **scales, **threshold}


def _write_many(
    scales: tuple[float, ...], boundaries: tuple[float, ...], network: float | None, context: Context
) -> dict[str, Any]:
    if len(scales) > _MOST:
        raise WanlabError(f"WanGP has at most {_MOST} phases, the spec has {len(scales)}", remedy="Give fewer phases.")
    result = {"guidance_phases": len(scales)}
    result |= {key: whole(scale) for key, scale in zip(_SCALES, scales, strict=False)}
    result |= {key: _timestep(sigma) for key, sigma in zip(_THRESHOLDS, boundaries, strict=False)}
    if not context.model.has_two_networks or network is None:
        return result
    if network == 0:
        return {**result, _NETWORK_WORD: len(scales)}
    if network not in boundaries:
        raise WanlabError(
            f"WanGP changes networks where a guidance phase begins, the spec at {network:g}",
            remedy=f"Give one of phase_boundaries as expert_boundary: {', '.join(map(str, boundaries))}.",
        )
    return {**result, _NETWORK_WORD: boundaries.index(network) + 1}


def _timestep(sigma: float) -> float:
    return whole(round(sigma * 1000, 9))


def _rules(settings: Settings, context: Context) -> list[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """(method, options, keys that ask for it) of every rule that the settings switch on."""
    found: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
    if settings.get("apg_switch"):
        found.append(("apg", {"momentum": -0.75, "norm_threshold": 55.0, "eta": 0.0}, ("apg_switch",)))
    if settings.get("cfg_star_switch"):
        steps = int(number(settings, "cfg_zero_step", -1) or 0) + 1
        found.append(("cfg_zero", {"zero_steps": max(0, steps)}, ("cfg_star_switch", "cfg_zero_step")))
    if settings.get("perturbation_switch") and context.model.handler in ("wan", "df", ""):
        layers = settings.get("perturbation_layers") or [9]
        spans = (number(settings, f"perturbation_{side}_perc", usual) for side, usual in (("start", 10), ("end", 90)))
        start, stop = (round((percent or 0) / 100, 12) for percent in spans)
        keys = ("perturbation_switch", "perturbation_layers", "perturbation_start_perc", "perturbation_end_perc")
        found.append(("slg", {"layers": layers, "start": start, "stop": stop}, keys))
    if (scale := number(settings, "NAG_scale", 1) or 1) > 1:
        tau, alpha = (number(settings, f"NAG_{name}", usual) for name, usual in (("tau", 3.5), ("alpha", 0.5)))
        found.append(("nag", {"scale": scale, "tau": tau, "alpha": alpha}, ("NAG_scale", "NAG_tau", "NAG_alpha")))
    return found


def _read_rule(settings: Settings, context: Context) -> dict[str, Any]:
    """The first rule that is here; a spec has one."""
    for method, options, _ in _rules(settings, context):
        if method in GUIDANCE.names() and not _embeds(context):
            return {"guidance": {"method": method, "options": options}}
    return {}


def _left_rule(settings: Settings, context: Context) -> dict[str, str]:
    chosen = _read_rule(settings, context).get("guidance", {}).get("method")
    left = {}
    for method, options, keys in _rules(settings, context):
        reason = f"a spec has one guidance rule, here {chosen}" if chosen else f"guidance {method} is not there"
        if method != chosen:
            left |= dict.fromkeys(keys, reason)
        elif options.get("zero_steps"):
            left["cfg_zero_step"] = "WanGP runs plain guidance in these steps, wanlab predicts zero, as the paper does"
    if settings.get("perturbation_switch") and "perturbation_switch" not in left and chosen != "slg":
        left["perturbation_switch"] = f"perturbation of {context.model.handler} is not there"
    return left


_OFF = {"apg_switch": 0, "cfg_star_switch": 0, "perturbation_switch": 0, "NAG_scale": 1}


def _write_rule(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    method, options = spec.guidance.method, spec.guidance.options
    off = {key: value for key, value in _OFF.items() if key in settings or not settings}
    writer = _WRITERS.get(method)
    return off if writer is None else off | writer({**spec.guidance.bind().model_dump(), **options})


_WRITERS: Mapping[str, Any] = {
    "apg": lambda o: {"apg_switch": 1},
    "cfg_zero": lambda o: {"cfg_star_switch": 1, "cfg_zero_step": o["zero_steps"] - 1},
    "slg": lambda o: {
        "perturbation_switch": 1,
        "perturbation_layers": list(o["layers"]),
        "perturbation_start_perc": whole(round(o["start"] * 100, 9)),
        "perturbation_end_perc": whole(round(o["stop"] * 100, 9)),
    },
    "nag": lambda o: {f"NAG_{name}": whole(o[name]) for name in ("scale", "tau", "alpha")},
}

GUIDANCE_GROUPS = (
    Group(
        "phases",
        ("guidance_scale", "guidance_scale_2", "phase_scales", "phase_boundaries", "expert_boundary"),
        _read_phases,
        _write_phases,
    ),
    Group("rule", ("guidance",), _read_rule, _write_rule, _left_rule),
)
