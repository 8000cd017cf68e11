"""Changes to WanGP's settings that concern all models, in order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from wanlab.compat._migration import DROP, Migration, letters, missing, renamed, replaced
from wanlab.compat.models import WanGPModel
from wanlab.errors import WanlabError, shorten

Settings = Mapping[str, Any]
_SECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*s\s*", re.IGNORECASE)
_MODES = {"0": "G", "1": "W", "2": "FG", "": "FG", "P": "PG"}


def _seconds(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """A length in seconds becomes the nearest legal number of frames at the forced or the model's rate."""
    length = settings.get("video_length")
    if not isinstance(length, str):
        return {}
    match = _SECONDS.fullmatch(length)
    if match is None or not 0 < float(match[1]) < 1e6:
        raise WanlabError(f"video_length = {shorten(length)}", remedy='Give frames, or seconds as "10s".')
    return {"video_length": legal_frames(round(float(match[1]) * frame_rate(settings, model)), model, is_nearest=True)}


def frame_rate(settings: Settings, model: WanGPModel) -> float:
    """The rate that `force_fps` names, or the model's where it names none (`auto`, `control`, `source`)."""
    try:
        rate = float(settings.get("force_fps") or model.fps)
    except ValueError:
        return model.fps
    if not math.isfinite(rate) or not 0 < rate <= 1000:
        raise WanlabError(f"force_fps = {shorten(settings['force_fps'])}", remedy="Give frames a second, 1 to 1000.")
    return rate


def legal_frames(count: int, model: WanGPModel, is_nearest: bool = False) -> int:
    """A number of frames that the model makes: latent frames times k, plus 1, and at least its minimum.

    Lengths are cut down to it, as WanGP cuts 84 to 81; a length in seconds becomes the nearest one of the interface.
    """
    least, latent, step = model.frames
    unit = step if is_nearest else latent
    count = max(count, least)
    floor = (count - 1) // unit * unit + 1
    if is_nearest and floor + unit - count < count - floor:
        floor += unit
    return max(floor, least)


def _prompts(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    return {"prompt": settings["prompts"]} if settings.get("prompts") else {}


def _start_words(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """0 was a first frame, anything else first and last."""
    found = settings.get("image_prompt_type")
    return {} if found is None or isinstance(found, str) else {"image_prompt_type": "S" if found == 0 else "SE"}


def _prompt_mode(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """0, 1, 2 were a task per line, a window per line, one text; what is unknown becomes the default."""
    found = settings.get("multi_prompts_gen_type")
    word = "PG" if found is None else str(int(found) if isinstance(found, float) else found).strip().upper()
    word = _MODES.get(word, word)
    mode = word if word in ("FG", "G", "PG", "W", "PW") else "PG"
    has_no_windows = model.facts is not None and not model.can("sliding_window")
    return {"multi_prompts_gen_type": mode.replace("W", "G") if has_no_windows else mode}


def _enhancer(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    word = {"I": "TI", "IK": "TIK"}.get(settings.get("prompt_enhancer") or "")
    return {"prompt_enhancer": word} if word else {}


def _voice_letters(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """Y and Z asked for another speaker's voice."""
    found = letters(settings, "audio_prompt_type")
    method = settings.get("replace_voice_method") or ""
    if not method:
        method = "seedvc_two_speakers" if "Z" in found else "seedvc_one_speaker" if "Y" in found else ""
    return {"replace_voice_method": method}


def _voice_names(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    method = str(settings.get("replace_voice_method") or "").strip()
    names = {"seedvc": "seedvc_one_speaker", "seedvc2": "seedvc_two_speakers"}
    empty = {key: None for key in ("replace_voice_sample", "replace_voice_sample2") if key not in settings}
    return {"replace_voice_method": names.get(method, method), **empty}


def _soundtrack_of_old(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """Where the sound came from had three places; now it is one word."""
    if settings.get("postprocess_audio"):
        return {}
    if settings.get("MMAudio_setting"):
        return {"postprocess_audio": "mmaudio"}
    if "R" in letters(settings, "audio_prompt_type"):
        return {"postprocess_audio": "control"}
    return {"postprocess_audio": "custom" if _names_a_file(settings.get("audio_source")) else ""}


def _soundtrack(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """Files that lack the word are read as old ones; it has lost its spaces, and the letters that it replaces go."""
    found = {} if "postprocess_audio" in settings else _soundtrack_of_old(settings, model)
    word = str({**settings, **found}.get("postprocess_audio") or "").strip()
    names = {"seedvc": "seedvc_one_speaker", "seedvc2": "seedvc_two_speakers"}
    result: dict[str, Any] = {"postprocess_audio": names.get(word, word), "MMAudio_setting": DROP}
    if settings.get("audio_prompt_type") is not None:
        result["audio_prompt_type"] = re.sub("[RYZ]", "", settings["audio_prompt_type"])
    return result


def _names_a_file(value: Any) -> bool:
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and any(map(_names_a_file, value))))


def _audio_of_old(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    is_asked = model.can("audio") and settings.get("audio_prompt_type") is None
    return {"audio_prompt_type": "A"} if is_asked else {}


def _clean_voice(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    return {"audio_prompt_type": letters(settings, "audio_prompt_type") + "V"} if model.can("audio") else {}


def _flux_references(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    return {"video_prompt_type": letters(settings, "video_prompt_type").replace("K", "").replace("I", "KI")}


def _background(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """2 meant that the first reference is a landscape; that is the letter K now."""
    found, kept = letters(settings, "video_prompt_type"), settings.get("remove_background_images_ref")
    return {
        "video_prompt_type": found.replace("I", "KI") if kept == 2 else found,
        "remove_background_images_ref": 0 if kept == 0 else 1,
    }


def _avatar(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    found = letters(settings, "video_prompt_type")
    return {} if "K" in found else {"video_prompt_type": found.replace("I", "KI")}


def _tea_cache(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    speed, result = settings.get("tea_cache_setting"), {}
    if speed is not None:
        kind = {"skip_steps_multiplier": speed, "skip_steps_cache_type": "tea"}
        none = {"skip_steps_multiplier": 1.75, "skip_steps_cache_type": ""}
        result |= {"tea_cache_setting": DROP} | (kind if speed > 0 else none)
    start = settings.get("tea_cache_start_step_perc")
    if start is not None:
        result |= {"tea_cache_start_step_perc": DROP, "skip_steps_start_step_perc": start}
    return result


def _allowed_starts(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """Only letters that the architecture has, in its order."""
    found, allowed = letters(settings, "image_prompt_type"), model.starts_from
    return {"image_prompt_type": found if allowed is None else "".join(c for c in allowed if c in found)}


def _allowed_references(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """Without a choice of references none may be asked for; a choice without an empty one is always made."""
    found = letters(settings, "video_prompt_type")
    stills = int(settings.get("image_mode") or 0) > 0 and model.can("guide_choices_image")
    if model.facts is None or stills or model.can("guide_choices"):
        return {"video_prompt_type": found}
    choices = model.facts.get("image_refs", ())
    if not choices:
        return {"video_prompt_type": re.sub("[IK]", "", found)}
    forced = "I" if "I" in choices[0] else ""
    forced += "K" if len(choices) == 1 and "K" in choices[0] else ""
    return {"video_prompt_type": found + "".join(c for c in forced if c not in found)}


_SLG = {
    "slg_switch": "perturbation_switch",
    "slg_layers": "perturbation_layers",
    "slg_start_perc": "perturbation_start_perc",
    "slg_end_perc": "perturbation_end_perc",
}

ALL = (
    Migration("a length in seconds becomes frames", _seconds),
    Migration("prompts is prompt", _prompts),
    Migration("image_prompt_type is letters", _start_words),
    Migration(
        "G is no letter of image_prompt_type", replaced("image_prompt_type", "G", ""), below=math.nextafter(2, 3)
    ),
    Migration("alt_prompt is there", missing(alt_prompt="")),
    Migration("lset_name is no setting", lambda s, m: {"lset_name": DROP}),
    Migration("skip-layer guidance is perturbation", renamed(**_SLG), below=2.54),
    Migration("alt_scale is there", missing(alt_scale=0.0), below=2.55),
    Migration("the way of splitting prompts is a word", _prompt_mode),
    Migration("replace_voice_sample is there", missing(replace_voice_sample=None), below=2.60),
    Migration("the enhancer reads the text too", _enhancer, below=2.61),
    Migration("old letters name a voice", _voice_letters, below=2.63),
    Migration("postprocess_audio says where sound comes from", _soundtrack_of_old, below=2.59),
    Migration("postprocess_audio is a method", _soundtrack),
    Migration(
        "MMAudio's prompts are those of any method",
        renamed(MMAudio_prompt="postprocess_audio_prompt", MMAudio_neg_prompt="postprocess_audio_neg_prompt"),
        below=2.62,
    ),
    Migration(
        "voice samples are those of any method",
        renamed(seedvc_voice_sample="replace_voice_sample", seedvc_voice_sample2="replace_voice_sample2"),
        below=2.63,
    ),
    Migration("replace_voice_method is a method", _voice_names),
    Migration("models with sound follow it", _audio_of_old, below=2.2),
    Migration("background music is taken out of speech", _clean_voice, below=2.35),
    Migration("video_prompt_type is there", lambda s, m: {"video_prompt_type": letters(s, "video_prompt_type")}),
    Migration("no references", replaced("video_prompt_type", "I", ""), architectures=("hunyuan",)),
    Migration("the first reference is the subject", _flux_references, below=2.23, architectures=("flux",)),
    Migration("a landscape among the references is a letter", _background, below=2.22),
    Migration(
        "the background stays", lambda s, m: {"remove_background_images_ref": 0}, architectures=("hunyuan_avatar",)
    ),
    Migration("the reference is the subject", _avatar, below=2.26, architectures=("hunyuan_avatar",)),
    Migration("TeaCache is one of the caches", _tea_cache),
    Migration("only letters of the model", _allowed_starts),
    Migration("only references that the model takes", _allowed_references),
)
