"""Brings settings that any version of WanGP wrote to the keys and letters of the newest one.

A table of small changes, applied in order: first those of all models, then those of a family. `settings_version` is
never rewritten by them, as in WanGP, so the result must not go through them twice; `stamped` is for what is written.
Facts: deepbeepmeep/Wan2GP at commit 8681e9f7, `fix_settings` of wgp.py, of postprocessing/audio_processors.py and of
the families' handlers. What only WanGP's own interface needs is left out: rules of a family that carry no version and
concern models of text-to-speech, Ideogram, HiDream, DramaBox, JoyAI.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from wanlab.compat._migrate_all import ALL
from wanlab.compat._migrate_families import FAMILIES
from wanlab.compat._migration import DROP, Migration
from wanlab.compat.keys import KEYS, SETTINGS_VERSION
from wanlab.compat.models import wangp_model
from wanlab.errors import WanlabError, shorten

MIGRATIONS: tuple[Migration, ...] = (*ALL, *FAMILIES)
"""Every change, in the order in which it is applied."""

PRESET_VERSION = 2.38
"""The version that presets and accelerator profiles, which carry none, are read as."""


def migrate(settings: Mapping[str, Any], least_version: float = 0.0) -> dict[str, Any]:
    """A new dict of the same settings under the newest keys; `settings_version` stays what it was.

    least_version: of a file that carries an older number or none. Rules that depend on what an architecture can do are
    left out for an architecture that is not known. Raises WanlabError for values of a wrong kind.
    """
    check_kinds(settings)
    version = max(least_version, _version(settings))
    model, result = wangp_model(settings), copy.deepcopy(dict(settings))
    for migration in MIGRATIONS:
        if migration.applies(version, model):
            for key, value in migration.change(result, model).items():
                if value is DROP:
                    result.pop(key, None)
                else:
                    result[key] = value
    return result


def stamped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Migrated settings as a file should hold them: with the newest version, so that no reader migrates them again."""
    return {**settings, "settings_version": max(SETTINGS_VERSION, _version(settings))}


def _version(settings: Mapping[str, Any]) -> float:
    version = settings.get("settings_version", 0)
    if isinstance(version, bool) or not isinstance(version, int | float) or not math.isfinite(version):
        raise WanlabError(f"settings_version = {shorten(version)} is no version", remedy="Versions are numbers: 2.35.")
    return float(version)


_OTHERS_KINDS = {  # keys that accept more than their default shows
    "image_prompt_type": str | int,
    "multi_prompts_gen_type": str | int | float,
    "video_length": int | float | str,
    "force_fps": str | int | float,
    "output_filename": str,
    "perturbation_layers": list,
    "self_refiner_plan": str | list,
    "activated_loras": list,
    "loras_multipliers": str | list,
    "custom_settings": dict,
    "model_mode": object,
    "override_profile": object,
    "prompts": str,
    "tea_cache_setting": int | float,
    "slg_layers": list,
}


def check_kinds(settings: Mapping[str, Any]) -> None:
    """Raise WanlabError for a known key whose value is of a kind that it never has; None is always allowed."""
    for name, value in settings.items():
        kinds = _OTHERS_KINDS.get(name) or _kinds(name)
        if kinds is None or value is None or isinstance(value, kinds):
            continue
        raise WanlabError(
            f"{name} = {shorten(value)} is no value of that WanGP setting", remedy=f"It is {_words(kinds)}."
        )


def _kinds(name: str) -> Any:
    """Kinds of a key by its default; None where anything goes."""
    if name not in KEYS or KEYS[name].default is None:
        return None
    default = KEYS[name].default
    return str if isinstance(default, str) else int | float


def _words(kinds: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
    members = getattr(kinds, "__args__", (kinds,))
    return " or ".join(names[kind] for kind in members if kind in names)
