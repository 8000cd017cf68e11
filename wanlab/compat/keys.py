"""Every key of WanGP's settings: its default, what it becomes in a spec, and what wanlab lacks to follow it.

Names and defaults are those of `models/_settings.json` in deepbeepmeep/Wan2GP at commit 8681e9f7 (settings version
2.74, 113 keys); the records are what it adds to the metadata of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTINGS_VERSION = 2.74
"""The newest version of WanGP's settings whose migrations are known here."""

LORA, WINDOW, AUDIO = "LoRAs", "sliding windows", "sound"
POST, PREPARE = "postprocessing", "preparation of control media"
QUEUE, ENHANCER, FAMILY = "queues of several prompts or samples", "prompt enhancers", "settings of one model family"
REFINER, MEMORY, MEDIA = "the self-refiner and motion amplitude", "memory profiles per task", "media given by path"


@dataclass(frozen=True)
class Key:
    """One key of WanGP's settings."""

    name: str
    default: Any
    converter: str = ""
    """Name of the group of `compat.mapping` that turns it into settings of a spec; empty if none does."""
    leaves: tuple[str, ...] = ()
    """Settings of a spec that it decides."""
    lacks: str = ""
    """What wanlab lacks to follow it; empty where nothing is lacking or the outcome does not depend on it."""
    only_with: str = ""
    """Key that must not be neutral for this one to count."""

    def is_neutral(self, value: Any) -> bool:
        """Whether a value changes nothing: nothing at all, or the default."""
        return value is None or value is False or value in ("", [], {}) or value == self.default


def _spec(converter: str, leaves: str, **defaults: Any) -> tuple[Key, ...]:
    return tuple(Key(name, value, converter, tuple(leaves.split())) for name, value in defaults.items())


def _lacking(lacks: str, only_with: str = "", **defaults: Any) -> tuple[Key, ...]:
    return tuple(Key(n, v, lacks=lacks, only_with="" if n == only_with else only_with) for n, v in defaults.items())


def _idle(**defaults: Any) -> tuple[Key, ...]:
    """Keys that decide no outcome."""
    return tuple(Key(name, value) for name, value in defaults.items())


_PHASES = "guidance_scale guidance_scale_2 expert_boundary phase_scales phase_boundaries"
_CUSTOM: dict[str, Any] = {
    "scail2_inject_ref_frames_in_video": "No",
    "animate2_kv_cache": "Disabled",
    "speech_speed": 1.0,
    "text_normalization": "Yes",
}

_ROWS = (
    *_spec("prompt", "prompt", prompt=""),
    *_spec("negative_prompt", "negative_prompt", negative_prompt=""),
    *_spec("resolution", "width height", resolution="832x480"),
    *_spec("frames", "num_frames", video_length=81, image_mode=0),
    *_spec("fps", "fps", force_fps=""),
    *_spec("steps", "num_steps", num_inference_steps=30),
    *_spec("seed", "seed", seed=-1),
    *_spec("shift", "flow_shift", flow_shift=3),
    *_spec("solver", "sampler", sample_solver=""),
    *_spec("riflex", "riflex", RIFLEx_setting=0),
    *_spec("phases", _PHASES, guidance_phases=1, model_switch_phase=1, switch_threshold=0, switch_threshold2=0),
    *_spec("phases", _PHASES, guidance_scale=5, guidance2_scale=5, guidance3_scale=5, embedded_guidance_scale=6.0),
    *_spec("rule", "guidance", NAG_scale=1, NAG_tau=3.5, NAG_alpha=0.5),
    *_spec("rule", "guidance", apg_switch=0, cfg_star_switch=0, cfg_zero_step=-1),
    *_spec("rule", "guidance", perturbation_switch=0, perturbation_layers=[9]),
    *_spec("rule", "guidance", perturbation_start_perc=10, perturbation_end_perc=90),
    *_spec("strength", "denoising_strength masking_strength", denoising_strength=1.0, masking_strength=1),
    *_spec("control", "control_scale control_scale_2", control_net_weight=1, control_net_weight2=1),
    *_spec("cache", "cache", skip_steps_cache_type="", skip_steps_multiplier=1.75, skip_steps_start_step_perc=0),
    # Letters, and what they need
    *_lacking(MEDIA, image_prompt_type="", video_prompt_type=""),
    *_lacking(AUDIO, audio_prompt_type="", audio_guidance_scale=1, audio_scale=1),
    *_lacking(AUDIO, "audio_prompt_type", speakers_locations="0:45 55:100"),
    *_lacking(PREPARE, "image_prompt_type", keep_frames_video_source="", input_video_strength=1.0),
    *_lacking(PREPARE, "video_prompt_type", keep_frames_video_guide="", video_guide_outpainting="#"),
    *_lacking(PREPARE, "video_prompt_type", video_guide_outpainting_ratio="", mask_expand=0, frames_positions=""),
    *_lacking(PREPARE, "image_refs", image_refs_relative_size=50, remove_background_images_ref=1),
    *_lacking(PREPARE, "image_refs", min_frames_if_references=1),
    *_lacking(FAMILY, control_net_weight_alt=1, alt_prompt="", alt_guidance_scale=1.0, alt_scale=0.0),
    *_lacking(FAMILY, model_mode=None, custom_settings=_CUSTOM, config="", attention_sparsity=1.0),
    *_lacking(FAMILY, duration_seconds=0, pause_seconds=0, temperature=0.8, top_p=0.9, top_k=50),
    *_lacking(ENHANCER, prompt_enhancer=""),
    *_lacking(QUEUE, batch_size=1, repeat_generation=1, multi_images_gen_type=0, multi_prompts_gen_type="PG"),
    *_lacking(POST, temporal_upsampling="", spatial_upsampling=""),
    *_lacking(POST, "film_grain_intensity", film_grain_intensity=0, film_grain_saturation=0.5),
    *_lacking(POST, "postprocess_audio", postprocess_audio="", postprocess_audio_prompt=""),
    *_lacking(POST, "postprocess_audio", postprocess_audio_neg_prompt=""),
    *_lacking(POST, replace_voice_method=""),
    *_lacking(REFINER, "self_refiner_setting", self_refiner_setting=0, self_refiner_plan=""),
    *_lacking(REFINER, "self_refiner_setting", self_refiner_f_uncertainty=0.0, self_refiner_certain_percentage=0.999),
    *_lacking(REFINER, motion_amplitude=1.0),
    *_lacking(WINDOW, "video_length", sliding_window_size=129, sliding_window_overlap=5),
    *_lacking(WINDOW, "video_length", sub_parallel_window_size=0, sub_parallel_window_overlap=17),
    *_lacking(WINDOW, "video_length", sliding_window_color_correction_strength=0, sliding_window_overlap_noise=0),
    *_lacking(WINDOW, "video_length", sliding_window_discard_last_frames=0, sliding_window_trim_first_frames=0),
    *_lacking(LORA, "activated_loras", activated_loras=[], loras_multipliers=""),
    *_lacking(MEMORY, override_profile=-1, override_attention=""),
    *_idle(client_id="", keep_intermediate_sliding_windows=1, output_filename=""),
    # Attachments
    *_lacking(MEDIA, image_start=None, image_end=None, image_refs=None, image_guide=None, image_mask=None),
    *_lacking(MEDIA, video_guide=None, video_guide2=None, video_mask=None, video_source=None, custom_guide=None),
    *_lacking(AUDIO, audio_guide=None, audio_guide2=None, audio_source=None),
    *_lacking(AUDIO, replace_voice_sample=None, replace_voice_sample2=None),
)

KEYS: Mapping[str, Key] = {key.name: key for key in _ROWS}
"""The 113 keys by name."""

ATTACHMENTS = tuple(key.name for key in _ROWS[-15:])
"""Keys that name files."""

RECORDS = frozenset(
    """
    type settings_version model_type base_model_type model_filename mode state video_quality image_quality hdr
    hdr_video_crf modules transformer_loras_filenames transformer_loras_multipliers window_no generation_time
    creation_date creation_timestamp prompts
    """.split()
)
"""What WanGP writes beside the settings: who made the file, when, and of which model; `prompts` is an old `prompt`."""


def baseline() -> dict[str, Any]:
    """Fresh defaults of every key that names no file."""
    return {
        key.name: key.default.copy() if isinstance(key.default, list | dict) else key.default
        for key in _ROWS
        if key.name not in ATTACHMENTS
    }
