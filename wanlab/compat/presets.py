"""WanGP's presets: `.lset` files of LoRAs and accelerator profiles, merged into settings as WanGP merges them.

An accelerator's LoRAs stand before `|` in the multipliers and are replaced by the next profile; the user's stand after
it and are replaced by the next preset. Source: deepbeepmeep/Wan2GP at commit 8681e9f7.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from wanlab.compat.migrations import PRESET_VERSION, migrate
from wanlab.compat.multipliers import split_tokens
from wanlab.errors import WanlabError, shorten

Side = Literal["accelerator", "user"]
_PARTIAL = ("model_type", "base_model_type", "model_filename", "settings_version")


def apply_lset(settings: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a `.lset`'s LoRAs in place of the user's, and its prompt.

    A whole prompt replaces the present one; otherwise its comment lines replace the prompt's.
    """
    loras, prompt = preset.get("loras", []), preset.get("prompt", "")
    if not isinstance(loras, list) or not all(isinstance(name, str) for name in loras) or not isinstance(prompt, str):
        raise WanlabError("The preset's loras or prompt are of a wrong kind", remedy="loras is a list of names.")
    result = _with_loras(settings, loras, str(preset.get("loras_mult", "")), "user")
    if preset.get("full_prompt"):
        result["prompt"] = prompt
    elif prompt:
        lines = str(settings.get("prompt") or "").replace("\r", "").split("\n")
        result["prompt"] = "\n".join([prompt, *(line for line in lines if line and not line.startswith("#"))])
    return result


def apply_profile(
    settings: Mapping[str, Any], profile: Mapping[str, Any], side: Side = "accelerator"
) -> dict[str, Any]:
    """Settings with those of an accelerator profile, or of a partial preset (side="user"), over them.

    Its LoRAs take the side's place; one that the other side has already only gets its multiplier there.
    """
    model = {key: settings[key] for key in _PARTIAL if key in settings}
    given = {key: value for key, value in profile.items() if key not in (*_PARTIAL, "help", "type")}
    version = max(PRESET_VERSION, profile.get("settings_version", 0))
    changed = migrate({**model, **given, "settings_version": version})
    result = {**copy.deepcopy(dict(settings)), **{key: changed[key] for key in given if key in changed}}
    loras = profile.get("activated_loras")
    if loras is None:
        return result
    result |= {key: settings[key] for key in ("activated_loras", "loras_multipliers") if key in settings}
    return _with_loras(result, loras, str(profile.get("loras_multipliers", "")), side)


def _with_loras(settings: Mapping[str, Any], loras: Sequence[str], multipliers: str, side: Side) -> dict[str, Any]:
    old, text = settings.get("activated_loras") or [], str(settings.get("loras_multipliers") or "")
    names, merged = merge_loras(old, text, loras, multipliers, side)
    return {**copy.deepcopy(dict(settings)), "activated_loras": names, "loras_multipliers": merged}


def merge_loras(
    loras: Sequence[str], multipliers: str, new: Sequence[str], new_multipliers: str, side: Side
) -> tuple[list[str], str]:
    """Names and multipliers after one side's LoRAs were replaced by new ones.

    A new LoRA that the other side has is not repeated: its multiplier is updated there. Comments in the multipliers
    are left out. Raises WanlabError for a second `|`.
    """
    sides = dict(zip(("accelerator", "user"), _split(loras, multipliers), strict=True))
    bar = _sides(new_multipliers)
    coming = _split(new, new_multipliers)[0 if side == "accelerator" else 1] if len(bar) == 2 else None
    if coming is None:
        coming = _paired(new, bar[0])
    elif len(new) > sum(map(len, bar)):  # LoRAs beyond all tokens belong to the side that is wanted
        coming = [*coming, *((name, "1") for name in new[sum(map(len, bar)) :] if name not in dict(coming))]
    other = "user" if side == "accelerator" else "accelerator"
    kept: dict[str, int] = {}
    for i, (name, _) in enumerate(sides[other]):
        kept.setdefault(_path(name), i)
    for name, token in coming:
        if (i := kept.get(_path(name))) is not None:
            sides[other][i] = (sides[other][i][0], token)
    sides[side] = [(name, token) for name, token in coming if _path(name) not in kept]
    before, after = ([token for _, token in sides[s]] for s in ("accelerator", "user"))
    has_bar = bool(before) and (bool(after) or side == "accelerator" or "|" in multipliers)
    text = " ".join(before) + ("|" if has_bar else "") + " ".join(after)
    return [name for s in ("accelerator", "user") for name, _ in sides[s]], text


def _sides(multipliers: str) -> list[list[str]]:
    """Tokens before and after `|`, or all of them where there is none."""
    lines = (line for line in multipliers.replace("\r", "").split("\n") if not line.startswith("#"))
    parts = "\n".join(lines).split("|")
    if len(parts) > 2:
        raise WanlabError(f"LoRA multipliers {shorten(multipliers, 60)} have more than one |", remedy="Put it once.")
    return [split_tokens(part) for part in parts]


def _split(loras: Sequence[str], multipliers: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, token) of the accelerator's LoRAs and of the user's; all are the user's where there is no `|`."""
    parts = _sides(multipliers)
    before = parts[0] if len(parts) == 2 else []
    count = min(len(before), len(loras))
    return _paired(loras[:count], before), _paired(loras[count:], parts[-1])


def _paired(loras: Sequence[str], tokens: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, tokens[i] if i < len(tokens) else "1") for i, name in enumerate(loras)]


def _path(name: str) -> str:
    """What makes two names the same LoRA."""
    text = name.strip().replace("\\", "/")
    while "//" in text:
        text = text.replace("//", "/")
    return text.rstrip("/") if len(text) > 1 else text
