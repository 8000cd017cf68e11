"""WanGP's definition of a model (`defaults/*.json`, `finetunes/*.json`) as data of one of ours.

Source: deepbeepmeep/Wan2GP f23bbf83 and 8681e9f7, their `defaults/`. A definition is a `model` table beside default
settings. A text where files are expected is the id of another model that has them; a list is one file in several forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wanlab.errors import WanlabError, shorten

Raw = dict[str, Any]

_HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/resolve/([^/]+)/([^?]+)")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_UNREAD_FORMS = ("nvfp4", "svdq", "nf4", "int4", "convrot")
"""Parts of the names of files in number formats that are not read."""
_TWO_EXPERTS = {"t2v": "t2v_2_2", "vace_14B": "vace_14B_2_2", "i2v": "i2v_2_2", "multitalk": "i2v_2_2_multitalk"}
"""Architectures that with URLs2 are another model: 2.2 was first told from 2.1 by that key alone."""
_FILES = {"VAE_URLs": "vae", "text_encoder_URLs": "text_encoder"}
_NUMBERS = {
    "num_inference_steps": ("sampling", "num_steps"),
    "flow_shift": ("sampling", "flow_shift"),
    "denoising_strength": ("sampling", "denoising_strength"),
    "masking_strength": ("sampling", "masking_strength"),
    "guidance_scale": ("guidance", "guidance_scale"),
    "video_length": ("size", "num_frames"),
    "fps": ("size", "fps"),
}
_SOLVERS = {"unipc": "unipc", "euler": "euler", "dpm++": "dpmpp_2m", "causvid": "causvid", "lcm": "lcm"}


def is_wangp(data: Mapping[str, Any]) -> bool:
    """Whether a definition is WanGP's: it has a `model` table."""
    return isinstance(data.get("model"), Mapping)


def convert(data: Mapping[str, Any], name: str, changes: bool = False) -> Raw:
    """Our data for a definition of WanGP; `base`, files and modules may be names of other models, as in the original.

    name: the file's name, the model's id there. changes: the file changes a known model, so it says only what differs.
    What wanlab does not read is kept under `extra`. Raises WanlabError for a value of another kind than WanGP's.
    """
    model = dict(data["model"])
    settings = {k: v for k, v in data.items() if k != "model"}
    architecture = model.pop("architecture", None)
    if not changes and not isinstance(architecture, str):
        raise WanlabError("model.architecture is missing", remedy="Give the architecture that WanGP loads it with")
    two = "URLs2" in model
    found: Raw = {"id": name, "title": _text(model, "name"), "description": _text(model, "description")}
    if architecture is not None:
        found["base"] = _TWO_EXPERTS.get(architecture, architecture) if two else architecture
    if "visible" in model:
        found["visible"] = model.pop("visible")
    if components := _components(model, changes):
        found["weights"] = {"components": components}
    if "loras" in model:
        found["loras"] = _loras(model.pop("loras"), model.pop("loras_multipliers", []))
    if "preload_URLs" in model:
        found["preload"] = _variants("preload_URLs", model.pop("preload_URLs"))
    spec = _spec(settings, two)
    kept = {k: v for k, v in {"model": model, "settings": settings}.items() if v}
    found |= {"spec": spec} if spec else {}
    found |= {"extra": {"wangp": kept}} if kept else {}
    return {k: v for k, v in found.items() if v != ""}


def file_source(text: str) -> Raw:
    """A file by its address or path; the kind of numbers in it is guessed from the name, as WanGP does."""
    name = text.rpartition("/")[2].partition("?")[0].lower()
    stored_as = next((kind for kind in ("gguf", "fp8") if kind in name), "float")
    if "quanto" in name or "int8" in name:
        stored_as = "int8"
    found: Raw = {"path": text.replace("\\", "/"), "stored_as": stored_as}
    if dtype := next((d for word, d in {"fp16": "float16", "bf16": "bfloat16"}.items() if word in name), None):
        found["dtype"] = dtype
    if hub := _HUB.match(text):
        found |= {"repo": hub[1], "path": hub[3]} | ({} if hub[2] == "main" else {"revision": hub[2]})
    elif "://" in text:
        found |= {"url": text, "path": text.rpartition("/")[2].partition("?")[0]}
    return found


def _components(model: Raw, changes: bool) -> Raw:
    """Files by component, taken out of `model`."""
    modules = model.pop("modules", [] if not changes and "URLs" in model else None)
    found: Raw = {}
    for expert, (key, component) in enumerate({"URLs": "transformer", "URLs2": "transformer_2"}.items()):
        part: Raw = {}
        if key in model:
            part["variants"] = _variants(key, model.pop(key))
        if modules is not None and (part or (expert == 0 and changes)):
            part["modules"] = _modules(modules, key)
        if part:
            found[component] = part
    for key, component in _FILES.items():
        if key in model:
            found[component] = {"variants": _variants(key, model.pop(key))}
    return found


def _variants(key: str, value: Any) -> str | list[Raw]:
    """A list of files, or the id of the model that has them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise WanlabError(f"model.{key} = {shorten(value, 80)}", remedy="Give a list of files, or the id of a model")
    readable = [v for v in value if not any(form in v.lower() for form in _UNREAD_FORMS)]
    if not readable:
        raise WanlabError(
            f"model.{key} has no file in a format that wanlab reads: {', '.join(value)}", remedy="Add a 16-bit file"
        )
    return [file_source(v) for v in readable]


def _modules(value: Any, key: str) -> str | list[Any]:
    """Modules of one expert: ids of models that have them, or lists of files; a table has a list for each expert."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise WanlabError(f"model.modules = {shorten(value, 80)}", remedy="Give a list")
    items = (item.get(key, item.get("URLs")) if isinstance(item, Mapping) else item for item in value)
    return [_variants("modules", item) for item in items]


def _loras(value: Any, multipliers: Any) -> str | list[Raw]:
    files = _variants("loras", value) if value else []
    if isinstance(files, str):
        return files
    strengths = [*(multipliers if isinstance(multipliers, list) else []), *[1.0] * len(files)]
    return [{**file, "multiplier": strength} for file, strength in zip(files, strengths, strict=False)]


def _text(model: Raw, key: str) -> str:
    value = model.pop(key, "")
    return value if isinstance(value, str) else shorten(value)


def _spec(settings: Raw, two_experts: bool) -> Raw:
    """The settings that wanlab has, taken out of `settings`, nested by part."""
    found: Raw = {}
    for key, (part, leaf) in _NUMBERS.items():
        if isinstance(settings.get(key), int | float):
            found.setdefault(part, {})[leaf] = settings.pop(key)
    if size := _SIZE.fullmatch(str(settings.get("resolution", ""))):
        settings.pop("resolution")
        found.setdefault("size", {}).update(width=int(size[1]), height=int(size[2]))
    if settings.get("sample_solver") in _SOLVERS:
        found.setdefault("sampling", {})["sampler"] = _SOLVERS[settings.pop("sample_solver")]
    for leaf in ("prompt", "negative_prompt"):  # an empty one means the model's default
        if isinstance(settings.get(leaf), str) and settings[leaf]:
            found.setdefault("text", {})[leaf] = settings.pop(leaf)
    _phases(settings, found, two_experts)
    return found


def _phases(settings: Raw, found: Raw, two_experts: bool) -> None:
    """Guidance in phases: thresholds are timesteps of 1000, ours are noise levels."""
    count = settings.get("guidance_phases", 2 if two_experts and "switch_threshold" in settings else 1)
    keys = ("switch_threshold", "switch_threshold2")[: count - 1 if isinstance(count, int) else 0]
    if not keys or not all(isinstance(settings.get(k), int | float) for k in keys):
        return
    bounds = [settings.pop(key) / 1000 for key in keys]
    first = found.get("guidance", {}).get("guidance_scale", 5.0)
    scales = [first, *(settings.pop(f"guidance{n}_scale", first) for n in range(2, count + 1))]
    settings.pop("guidance_phases", None)
    guidance, sampling = found.setdefault("guidance", {}), found.setdefault("sampling", {})
    if two_experts:
        phase = settings.pop("model_switch_phase", 1)
        sampling["expert_boundary"] = bounds[min(max(int(phase), 1), len(bounds)) - 1]
    if two_experts and count == 2:
        guidance["guidance_scale_2"] = scales[1]
    else:
        guidance |= {"phase_boundaries": bounds, "phase_scales": scales}
