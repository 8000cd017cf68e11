"""The step-skipping cache of WanGP's settings and of a spec: a method and the speed-up that it is to reach.

The other options are the methods' own: WanGP's mag reuses at most two steps in a row, and so does magcache.
Source: deepbeepmeep/Wan2GP 02422beb, models/wan/wan_handler.py, set_cache_parameters.
"""

from __future__ import annotations

from typing import Any

from wanlab.compat._group import Context, Group, Settings, number, whole
from wanlab.compat.keys import KEYS
from wanlab.spec import GenerationSpec

METHODS = {"tea": "teacache", "mag": "magcache"}
"""`skip_steps_cache_type` -> ours."""
SPEEDUPS = (1.5, 2.5)
"""The least and the greatest speed-up that WanGP offers."""

_TYPE, _SPEEDUP, _START = "skip_steps_cache_type", "skip_steps_multiplier", "skip_steps_start_step_perc"


def _asked(settings: Settings) -> tuple[str, float, float]:
    """Type, speed-up and the percent of the steps that all compute; what is missing is WanGP's default."""
    speedup, start = (number(settings, key, KEYS[key].default) for key in (_SPEEDUP, _START))
    return settings.get(_TYPE) or "", float(speedup or 0), float(start or 0)


def _problem(settings: Settings) -> dict[str, str]:
    """The keys that ask for a cache which is not there, with the reason."""
    word, speedup, start = _asked(settings)
    if not word:
        return {}
    if word not in METHODS:
        others = (key for key in (_SPEEDUP, _START) if not KEYS[key].is_neutral(settings.get(key)))
        return dict.fromkeys((_TYPE, *others), f"cache {word} is not there")
    least, most = SPEEDUPS
    if not least <= speedup <= most:
        why = f"a speed-up of {speedup:g} is not there, {least:g} to {most:g} are"
        return {_TYPE: f"no cache runs: {why}", _SPEEDUP: why}
    if not 0 <= start <= 100:
        return {_TYPE: f"no cache runs: {start:g} is no percentage", _START: f"{start:g} is no percentage"}
    return {}


def _read_cache(settings: Settings, context: Context) -> dict[str, Any]:
    """Whether the model has constants for the method is asked when it runs."""
    word, speedup, start = _asked(settings)
    if not word or _problem(settings):
        return {}
    return {"cache": {"method": METHODS[word], "options": {"speedup": speedup, "start_percent": start}}}


def _write_cache(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    """No cache where WanGP cannot say the spec's: another method, or a threshold in place of a speed-up."""
    word = next((word for word, method in METHODS.items() if method == spec.cache.method), None)
    speedup = spec.cache.options.get("speedup")
    if word is None or speedup is None:
        return {_TYPE: ""} if settings.get(_TYPE) or not settings else {}
    start = spec.cache.options.get("start_percent", 0)
    return {_TYPE: word, _SPEEDUP: whole(speedup), _START: whole(start)}


def unsaid(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, str]:
    """Keys that ask for a cache, where a spec beside them was saved when no spec could say it: it stays without one."""
    if spec.cache.method != "none" or not (asked := _read_cache(settings, context)):
        return {}
    return {_TYPE: f"the spec was saved without a cache, cache={asked['cache']['method']!r} is there now"}


CACHE_GROUP = Group("cache", ("cache",), _read_cache, _write_cache, lambda settings, context: _problem(settings))
