"""Changes to WanGP's settings that concern models of one family, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wanlab.compat._migration import DROP, Change, Migration, added, letters, missing, replaced, values
from wanlab.compat.models import WanGPModel

Settings = Mapping[str, Any]
_ONE_FRAME = (  # architectures whose windows overlap by one frame
    "i2v i2v_2_2 fun_inp_1.3B fun_inp flf2v_720p fantasy animate2 chrono_edit steadydancer wanmove "
    "ti2v_2_2 lucy_edit kiwi_edit"
).split()
_REF2VA = ("minimax_h3_ref2va", "minimax_h3_ref2va_pruned")
_KREA2_EDIT = ("krea2_raw_edit", "krea2_turbo_edit")
_ACE_15 = ("ace_step_v1_5", "ace_step_v1_5_xl")
_H3_THRESHOLDS = {1.5: 0.06, 1.75: 0.08, 2.0: 0.10, 2.25: 0.12, 2.5: 0.14}


def _if_empty(**defaults: Any) -> Change:
    return lambda settings, model: {
        key: value for key, value in defaults.items() if settings.get(key, "") in ("", None)
    }


def _solver(word: str) -> Change:
    return lambda settings, model: {} if settings.get("sample_solver", "") != "" else {"sample_solver": word}


def _two_phases(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    is_two = model.has_two_networks or (settings.get("switch_threshold") or 0) > 0
    return {"guidance_phases": 2} if is_two and (settings.get("guidance_phases") or 0) < 2 else {}


def _three_phases(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    is_three = settings.get("guidance_phases") == 2 and model.has_three_phase_loras
    return {"guidance_phases": 3} if is_three else {}


def _audio_unguided(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    return {"audio_guidance_scale": 1} if settings.get("guidance_scale") == 1 else {}


def _camera(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    found = letters(settings, "video_prompt_type")
    return {} if "V" in found else {"video_prompt_type": f"{found}UV", "image_prompt_type": ""}


def _first_frame(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    is_lacking = model.can("i2v") and not letters(settings, "image_prompt_type") and "S" in (model.starts_from or "")
    return {"image_prompt_type": "S"} if is_lacking else {}


def _if_refiner(**fixed: Any) -> Change:
    return lambda settings, model: dict(fixed) if model.can("self_refiner") else {}


def _plan(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """A list of {start, end, steps} is text: `2-5:3,6:1`."""
    plan = settings.get("self_refiner_plan")
    if not isinstance(plan, list):
        return {}
    spans = [(r.get("start"), r.get("end"), r.get("steps")) for r in plan if isinstance(r, dict)]
    words = (f"{a}:{steps}" if a == b else f"{a}-{b}:{steps}" for a, b, steps in spans)
    return {"self_refiner_plan": ",".join(words)}


def _poses_alone(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    found = letters(settings, "video_prompt_type")
    return {"video_prompt_type": found.replace("M", "")} if {"P", "M"} <= set(found) else {}


def _ltx2_layers(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    is_22b = model.architecture.startswith(("ltx2_22B", "ltx2_25_22B"))
    return {"alt_guidance_scale": 1.0, "perturbation_layers": [28 if is_22b else 29]}


def _unless_distilled(**fixed: Any) -> Change:
    return lambda settings, model: {} if model.is_distilled else dict(fixed)


def _ltx2_solver(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    return {} if model.is_distilled else _if_empty(sample_solver="euler")(settings, model)


def _ltx2_phases(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    return {"guidance_phases": 2} if model.is_distilled else {}


def _krea2_inpaint(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    word = "VAG" if model.architecture in _KREA2_EDIT else "VA"
    return {"video_prompt_type": word} if settings.get("image_mode", 1) == 2 else {}


def _h3_overlap(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """The nearest 17 k + 1."""
    if "sliding_window_overlap" not in settings:
        return {}
    overlap = max(1, int(settings["sliding_window_overlap"] or 18))
    return {"sliding_window_overlap": max(1, (overlap - 1 + 8) // 17 * 17 + 1)}


def _h3_threshold(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    speed = float(settings.get("skip_steps_multiplier", 0.08))
    return {"skip_steps_multiplier": _H3_THRESHOLDS.get(speed, speed)}


def _h3_slots(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """The second and third of four places of `config` changed their meaning."""
    slots = [*str(settings.get("config", "")).split(","), "", "", "", ""][:4]
    return {"config": ",".join((slots[0], "", slots[1], slots[3])).rstrip(",")}


def _h3_reference(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    found = letters(settings, "video_prompt_type")
    return {"video_prompt_type": f"{found}-"} if "V" in found and "-" not in found else {}


def _speech_style(settings: Settings, model: WanGPModel) -> dict[str, Any]:
    """Two keys of their own became custom settings."""
    style = dict(settings.get("custom_settings") or {})
    for key in ("exaggeration", "pace"):
        old = settings.get(key)
        style.setdefault(key, 0.5 if old is None else old)
    return {"exaggeration": DROP, "pace": DROP, "custom_settings": style}


def _wan(what: str, change: Change, *architectures: str, **versions: float) -> Migration:
    return Migration(what, change, handler="wan", architectures=architectures, **versions)


_VIDEO, _AUDIO = "video_prompt_type", "audio_prompt_type"
FAMILIES = (
    _wan("UniPC is the solver", _solver("unipc")),
    _wan("two networks have two phases", _two_phases, below=2.24),
    _wan("LoRAs of three phases need three", _three_phases, exactly=2.24),
    _wan("no guidance by the text, none by the sound", _audio_unguided, "infinitetalk", below=2.27),
    _wan("a sharp cut between pictures is 0", replaced(_VIDEO, "KI", "0KI"), "infinitetalk", below=2.27),
    _wan("one frame a window is R", replaced(_VIDEO, "U", "RU"), "infinitetalk", below=2.28),
    _wan("the video to move through is a control video", _camera, "recam_1.3B", below=2.31),
    _wan("windows overlap by one frame", values(sliding_window_overlap=1), *_ONE_FRAME, below=2.31),
    _wan("it starts from a picture", _first_frame, below=2.32),
    _wan("1 has a mark before it", replaced(_VIDEO, "1", "#1"), "animate", below=2.37),
    _wan("a sharp cut is 0", replaced(_VIDEO, "Q", "0"), "infinitetalk", below=2.38),
    _wan("it follows sound", added(_AUDIO, "A"), "fantasy", below=2.39),
    _wan("the background stays", values(remove_background_images_ref=0), "animate", below=2.40),
    _wan("its windows", values(sliding_window_size=81, sliding_window_overlap=4), "i2v_2_2_svi2pro", below=2.42),
    _wan("the self-refiner is off", _if_refiner(self_refiner_setting=0, self_refiner_plan=""), below=2.47),
    _wan(
        "the self-refiner's thresholds",
        _if_refiner(self_refiner_f_uncertainty=0.1, self_refiner_certain_percentage=0.999),
        below=2.48,
    ),
    _wan("the self-refiner's plan is text", _plan, below=2.52),
    Migration("poses alone", _poses_alone, below=2.33, architectures=("hunyuan_custom_edit",)),
    Migration(
        "it follows sound",
        added(_AUDIO, "A"),
        below=2.36,
        architectures=("hunyuan_avatar", "hunyuan_custom_audio"),
    ),
    Migration(
        "windows overlap by one frame", values(sliding_window_overlap=1), below=2.41, architectures=("hunyuan_i2v",)
    ),
    Migration("the first is the subject", replaced(_VIDEO, "I", "KI"), below=2.29, architectures=("flux_dev_uso",)),
    Migration("all of the denoising", values(denoising_strength=1.0), below=2.34, handler="flux"),
    Migration(
        "embedded guidance is there",
        missing(embedded_guidance_scale=4.0),
        architectures=("flux2_dev", "flux2_klein_4b", "flux2_klein_9b"),
    ),
    Migration("the solver has a name", _solver("default"), handler="qwen"),
    Migration("all of the denoising", values(denoising_strength=1.0), below=2.32, handler="qwen"),
    Migration("the solver is Euler's", _ltx2_solver, handler="ltx2"),
    Migration("strengths", values(denoising_strength=1.0, masking_strength=0), below=2.43, handler="ltx2"),
    Migration("layers that are perturbed", _ltx2_layers, below=2.45, handler="ltx2"),
    Migration("the self-refiner's plan", values(self_refiner_plan="2-8:3"), below=2.49, handler="ltx2"),
    Migration(
        "guidance by sound",
        _unless_distilled(audio_guidance_scale=1.0, alt_guidance_scale=1.0, alt_scale=0.0),
        below=2.55,
        handler="ltx2",
    ),
    Migration("the self-refiner's plan is text", _plan, below=2.52, handler="ltx2"),
    Migration("two phases", _ltx2_phases, below=2.58, handler="ltx2"),
    Migration("L is no letter of sound", replaced(_AUDIO, "L", ""), below=2.65, handler="ltx2"),
    Migration("a still", missing(image_mode=1), handler="krea2"),
    Migration("strengths", values(denoising_strength=1.0, masking_strength=1.0), below=2.66, handler="krea2"),
    Migration("what inpainting needs", _krea2_inpaint, below=2.66, handler="krea2"),
    Migration("sparsity of attention", values(attention_sparsity=1.3), below=2.74, handler="minimax_h3"),
    Migration("overlaps are 17 k + 1", _h3_overlap, below=2.73, handler="minimax_h3"),
    Migration("the window's size", values(sliding_window_size=362), below=2.73, architectures=_REF2VA),
    Migration("all of the denoising", values(denoising_strength=1.0), below=2.71, handler="minimax_h3"),
    Migration("a threshold instead of a speed", _h3_threshold, below=2.70, handler="minimax_h3"),
    Migration("places of config", _h3_slots, below=2.69, handler="minimax_h3"),
    Migration("size of references", values(image_refs_relative_size=100), below=2.67, architectures=_REF2VA),
    Migration("G is no letter", replaced(_VIDEO, "G", ""), below=2.67, architectures=_REF2VA),
    Migration("the video is a reference", _h3_reference, below=2.68, architectures=_REF2VA),
    Migration("it reads a voice", missing(audio_prompt_type="A", model_mode="en"), handler="chatterbox"),
    Migration("no guidance", values(guidance_scale=1.0), below=2.44, handler="chatterbox"),
    Migration("the style of speech is a custom setting", _speech_style, handler="chatterbox"),
    Migration("sound's letters are there", missing(audio_prompt_type=""), handler="heartmula"),
    Migration("guidance and choice", values(guidance_scale=1.5, top_k=50), below=2.44, handler="heartmula"),
    Migration("choice", values(top_k=50), below=2.44, handler="qwen3"),
    Migration("choice", values(top_p=0.9, top_k=0), below=2.51, architectures=_ACE_15),
    Migration("choice is there", missing(top_p=0.9, top_k=0), architectures=_ACE_15),
    Migration("guidance", values(alt_guidance_scale=2.5), below=2.53, architectures=_ACE_15),
)
