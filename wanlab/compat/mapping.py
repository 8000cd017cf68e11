"""WanGP's settings as a GenerationSpec and back.

Each group of keys is read into settings of a spec and written from them. `put` changes only the groups in which a spec
differs from what the settings say already, so settings that were read and not changed come out as they were, to the
last key; `lost` names what a spec says and WanGP's settings cannot.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from wanlab.compat._cache import CACHE_GROUP, unsaid
from wanlab.compat._group import Context, Group, Settings, number, whole
from wanlab.compat._guidance import GUIDANCE_GROUPS
from wanlab.compat._migrate_all import legal_frames
from wanlab.compat.keys import ATTACHMENTS, KEYS, MEDIA, RECORDS, WINDOW
from wanlab.compat.letters import ImagePrompt, VideoPrompt
from wanlab.errors import WanlabError, shorten
from wanlab.registry import SAMPLERS
from wanlab.spec import LEAVES, GenerationSpec

SOLVERS = {"unipc": "unipc", "euler": "euler", "dpm++": "dpmpp_2m", "causvid": "causvid", "lcm": "lcm"}
"""WanGP's solver -> ours."""
RIFLEX = {0: "auto", 1: "on", 2: "off"}
"""`RIFLEx_setting` -> ours."""


def _plain(name: str, key: str, leaf: str, kind: type = float) -> Group:
    """A number that means the same on both sides."""

    def read(settings: Settings, context: Context) -> dict[str, Any]:
        value = number(settings, key)
        return {} if value is None else {leaf: value if kind is float else whole(value)}

    def write(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
        return {key: whole(spec.flat()[leaf])}

    return Group(name, (leaf,), read, write)


def _read_prompt(settings: Settings, context: Context) -> dict[str, Any]:
    prompt = settings.get("prompt")
    return {} if prompt is None else {"prompt": prompt}


def _write_prompt(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    """Under the old key too where it is there, since WanGP reads that one first."""
    keys = ("prompt", "prompts") if settings.get("prompts") else ("prompt",)
    return dict.fromkeys(keys, spec.text.prompt)


def _left_prompt(settings: Settings, context: Context) -> dict[str, str]:
    """Texts that WanGP takes apart before it generates."""
    prompt, mode = str(settings.get("prompt") or "").strip(), settings.get("multi_prompts_gen_type", "PG")
    lines = prompt.split("\n")
    if any(line.startswith(("#", "!", "@")) for line in lines) or "[/" in prompt:
        return {"prompt": "comments, macros and commands stay in the text"}
    if (mode in ("G", "W") and len(lines) > 1) or (mode in ("PG", "PW") and re.search(r"\n\s*\n", prompt)):
        return {"prompt": "it is several prompts, which stay one text"}
    return {}


def _read_negative(settings: Settings, context: Context) -> dict[str, Any]:
    """An empty text is the model's own negative prompt in WanGP, a blank one is none."""
    text = settings.get("negative_prompt") or ""
    return {"negative_prompt": text if text.strip() else ""} if text else {}


def _write_negative(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    text = spec.text.negative_prompt
    return {"negative_prompt": "" if text == context.usual.text.negative_prompt else text or " "}


def _read_resolution(settings: Settings, context: Context) -> dict[str, Any]:
    size = settings.get("resolution")
    if size is None:
        return {}
    match = re.fullmatch(r"\s*(\d{1,5})x(\d{1,5})\s*", size, re.ASCII)
    if match is None:
        raise WanlabError(f"resolution = {shorten(size, 40)}", remedy="Give width x height: 832x480.")
    return {"width": int(match[1]), "height": int(match[2])}


def _write_resolution(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    size = spec.size
    return {} if size.width is None or size.height is None else {"resolution": f"{size.width}x{size.height}"}


def _is_still(settings: Settings) -> bool:
    return (number(settings, "image_mode") or 0) > 0


def _read_frames(settings: Settings, context: Context) -> dict[str, Any]:
    """Frames are cut down to a number that the model makes, as WanGP does."""
    if _is_still(settings):
        return {"num_frames": 1}
    length = settings.get("video_length")
    if length in (None, 0):  # models of sound have 0
        return {}
    if not isinstance(length, int | float) or length < 1:
        raise WanlabError(f"video_length = {shorten(length, 40)}", remedy="Give frames, 1 or more.")
    return {"num_frames": int(length) if context.model.facts is None else legal_frames(int(length), context.model)}


def _write_frames(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    count = spec.size.num_frames
    if count is None:
        return {}
    if count == 1:
        return {} if _is_still(settings) else {"image_mode": 1}
    return {"video_length": count} | ({"image_mode": 0} if _is_still(settings) or not settings else {})


def _read_fps(settings: Settings, context: Context) -> dict[str, Any]:
    try:
        return {"fps": float(settings.get("force_fps") or "")}
    except ValueError:
        return {}


def _write_fps(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    fps = spec.size.fps
    return {"force_fps": "" if fps is None or fps == context.usual.size.fps else str(whole(fps))}


def _left_fps(settings: Settings, context: Context) -> dict[str, str]:
    word = settings.get("force_fps") or ""
    is_left = bool(word) and not _read_fps(settings, context)
    return {"force_fps": f"a rate taken from {word!r} media is not there"} if is_left else {}


def _read_seed(settings: Settings, context: Context) -> dict[str, Any]:
    seed = number(settings, "seed", -1)
    return {} if seed is None or seed < 0 else {"seed": whole(seed)}


def _left_seed(settings: Settings, context: Context) -> dict[str, str]:
    asks = "seed" in settings and not _read_seed(settings, context)
    return {"seed": "it asks for a random seed: choose one, with_(seed=...)"} if asks else {}


def _read_shift(settings: Settings, context: Context) -> dict[str, Any]:
    shift = number(settings, "flow_shift")
    is_used = context.model.facts is None or context.model.can("flow_shift")
    return {"flow_shift": shift} if shift is not None and is_used else {}


def _read_solver(settings: Settings, context: Context) -> dict[str, Any]:
    name = SOLVERS.get(settings.get("sample_solver") or "")
    return {"sampler": name} if name in SAMPLERS.names() else {}


def _write_solver(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    word = next((word for word, name in SOLVERS.items() if name == spec.sampling.sampler), None)
    return {} if word is None else {"sample_solver": word}


def _left_solver(settings: Settings, context: Context) -> dict[str, str]:
    word = settings.get("sample_solver") or "default"
    is_known = word == "default" or _read_solver(settings, context)
    return {} if is_known else {"sample_solver": f"solver {word} is not there"}


def _read_riflex(settings: Settings, context: Context) -> dict[str, Any]:
    value = number(settings, "RIFLEx_setting")
    if value is None or not context.model.can("riflex"):
        return {}
    if value not in RIFLEX:
        raise WanlabError(f"RIFLEx_setting = {value}", choices=["0 (auto)", "1 (on)", "2 (off)"])
    return {"riflex": RIFLEX[int(value)]}


def _write_riflex(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    return {"RIFLEx_setting": next(number for number, word in RIFLEX.items() if word == spec.sampling.riflex)}


def _read_strength(settings: Settings, context: Context) -> dict[str, Any]:
    """Strengths count where the letters ask for denoising, and for a mask."""
    words, changes = VideoPrompt.parse(settings.get("video_prompt_type")), {}
    for key, word in (("denoising_strength", "denoise"), ("masking_strength", "mask")):
        value = number(settings, key)
        if value is not None and "denoise" in words and word in words:
            changes[key] = value
    return changes


def _write_strength(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    words, sampling = VideoPrompt.parse(settings.get("video_prompt_type")), spec.sampling
    result = {key: whole(getattr(sampling, key)) for key in ("denoising_strength", "masking_strength")}
    asked = [] if result["denoising_strength"] == result["masking_strength"] == 1 else ["denoise"]
    asked += [] if result["masking_strength"] == 1 else ["mask"]
    return {**result, "video_prompt_type": words.with_(*asked).code} if asked else result


def _contexts(settings: Settings) -> int:
    """Two ways of preparing one control video make two contexts, of half the strength each."""
    return max(1, len(VideoPrompt.parse(settings.get("video_prompt_type")).processes))


_CONTROL = {"control_net_weight": "control_scale", "control_net_weight2": "control_scale_2"}


def _read_control(settings: Settings, context: Context) -> dict[str, Any]:
    if not context.model.can("control_weights"):
        return {}
    weights = {leaf: number(settings, key) for key, leaf in _CONTROL.items()}
    return {leaf: [weight / _contexts(settings)] for leaf, weight in weights.items() if weight is not None}


def _write_control(spec: GenerationSpec, settings: Settings, context: Context) -> dict[str, Any]:
    if not context.model.can("control_weights"):
        return {}
    scales = {key: getattr(spec.media, leaf) for key, leaf in _CONTROL.items()}
    return {key: whole(scale[0] * _contexts(settings)) for key, scale in scales.items() if len(scale) == 1}


GROUPS: tuple[Group, ...] = (
    Group("prompt", ("prompt",), _read_prompt, _write_prompt, _left_prompt),
    Group("negative_prompt", ("negative_prompt",), _read_negative, _write_negative),
    Group("resolution", ("width", "height"), _read_resolution, _write_resolution),
    Group("frames", ("num_frames",), _read_frames, _write_frames),
    Group("fps", ("fps",), _read_fps, _write_fps, _left_fps),
    _plain("steps", "num_inference_steps", "num_steps", int),
    Group("seed", ("seed",), _read_seed, lambda spec, s, c: {"seed": spec.sampling.seed}, _left_seed),
    Group("shift", ("flow_shift",), _read_shift, lambda spec, s, c: {"flow_shift": whole(spec.sampling.flow_shift)}),
    Group("solver", ("sampler",), _read_solver, _write_solver, _left_solver),
    Group("riflex", ("riflex",), _read_riflex, _write_riflex),
    Group("strength", ("denoising_strength", "masking_strength"), _read_strength, _write_strength),
    Group("control", ("control_scale", "control_scale_2"), _read_control, _write_control),
    *GUIDANCE_GROUPS,
    CACHE_GROUP,
)
"""Every translation; a later one sees what an earlier one wrote."""


def get(settings: Settings, context: Context) -> GenerationSpec:
    """The spec of migrated settings: the model's usual one with what the settings say."""
    changes: dict[str, Any] = {}
    for group in GROUPS:
        changes |= group.read(settings, context)
    return context.usual.with_(**changes)


def put(spec: GenerationSpec, settings: Settings, context: Context, force: Collection[str] = ()) -> dict[str, Any]:
    """The settings with what the spec says otherwise; equal to `settings` if it is the spec that they say.

    force: settings of the spec, flat, that are written even where they say the same, such as a seed in place of -1.
    """
    result, before = copy.deepcopy(dict(settings)), get(settings, context)
    for group in GROUPS:
        if not _same(before, spec, group.leaves) or set(group.leaves) & set(force):
            result |= group.write(spec, result, context)
    return result


def _same(one: GenerationSpec, other: GenerationSpec, leaves: tuple[str, ...]) -> bool:
    return all(_value(one, leaf) == _value(other, leaf) for leaf in leaves)


def _value(spec: GenerationSpec, leaf: str) -> Any:
    if leaf in LEAVES:
        return getattr(getattr(spec, LEAVES[leaf]), leaf)
    part = spec.methods()[leaf]
    return part.method, part.options


_OUTCOMES = ("text", "media", "size", "sampling", "guidance", "cache", "window", "lora", "post")


def lost(spec: GenerationSpec, settings: Settings, context: Context) -> list[str]:
    """Settings of the spec, dotted, that decide a result and that these settings do not say."""
    there = get(settings, context).diff(spec)
    skipped: tuple[str, ...] = ("media.",) if _attached(settings) else ()
    if spec.guidance.phase_scales:
        skipped += ("guidance.guidance_scale",)  # the phases stand in their place
    if unsaid(spec, settings, context):
        skipped += ("cache",)  # as when it was saved, the settings ask WanGP for one
    decide = (name for name, (_, value) in there.items() if value is not None and name.split(".")[0] in _OUTCOMES)
    return [name for name in decide if not name.startswith(skipped)]


def _attached(settings: Settings) -> bool:
    return any(settings.get(key) for key in ATTACHMENTS)


def unknown_keys(settings: Settings) -> dict[str, Any]:
    """Keys that WanGP does not have; they are kept as they are."""
    return {key: value for key, value in settings.items() if key not in KEYS and key not in RECORDS}


def not_yet(settings: Settings, context: Context, spec: GenerationSpec) -> dict[str, str]:
    """Keys that change the result in WanGP and not here, in the spec that goes with them, with what is lacking."""
    found = {
        name: key.lacks
        for name, key in KEYS.items()
        if key.lacks and not key.is_neutral(settings.get(name)) and _counts(name, settings, context)
    }
    for key, words in (("image_prompt_type", _start_words(settings)), ("video_prompt_type", _control_words(settings))):
        if key in found:
            found[key] = f"{MEDIA}: {words}"
    for group in GROUPS:
        found |= group.left(settings, context)
    return found | unsaid(spec, settings, context)


def _counts(name: str, settings: Settings, context: Context) -> bool:
    """Whether the key that makes another one count is there."""
    key = KEYS[name]
    if key.lacks == WINDOW:
        length, size = number(settings, "sliding_window_size", 129), settings.get("video_length")
        is_long = isinstance(size, int | float) and size > (length or 0)
        return is_long and not _is_still(settings) and context.model.can("sliding_window")
    if key.only_with == "image_refs":
        return "references" in VideoPrompt.parse(settings.get("video_prompt_type"))
    gate = KEYS.get(key.only_with)
    return gate is None or not gate.is_neutral(settings.get(gate.name))


def _start_words(settings: Settings) -> str:
    return " ".join(ImagePrompt.parse(settings.get("image_prompt_type")))


def _control_words(settings: Mapping[str, Any]) -> str:
    return " ".join(VideoPrompt.parse(settings.get("video_prompt_type")))
