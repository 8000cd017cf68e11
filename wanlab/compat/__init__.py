"""What WanGP writes, read and written: settings of every version, letters, multipliers, metadata in files.

`wanlab.open_settings(path)` is the way in; the pieces are for notebooks that look closer. Written from facts about
deepbeepmeep/Wan2GP at commit 8681e9f7; nothing of its code is here.
"""

from __future__ import annotations

from wanlab.compat.attachments import Attachment, attachments, media_leaves
from wanlab.compat.grammars import Outpainting, Windows, kept_frames, parse_positions, place, source_frames
from wanlab.compat.keys import KEYS, SETTINGS_VERSION, Key, baseline
from wanlab.compat.letters import AudioPrompt, ImagePrompt, Letters, PromptEnhancer, VideoPrompt
from wanlab.compat.metadata import read_texts, write_text
from wanlab.compat.migrations import MIGRATIONS, migrate, stamped
from wanlab.compat.models import WanGPModel, model_ids, wangp_model
from wanlab.compat.multipliers import Multiplier, evaluate, parse_multipliers, switch_steps
from wanlab.compat.presets import apply_lset, apply_profile, merge_loras

__all__ = [
    "KEYS",
    "MIGRATIONS",
    "SETTINGS_VERSION",
    "Attachment",
    "AudioPrompt",
    "ImagePrompt",
    "Key",
    "Letters",
    "Multiplier",
    "Outpainting",
    "PromptEnhancer",
    "VideoPrompt",
    "WanGPModel",
    "Windows",
    "apply_lset",
    "apply_profile",
    "attachments",
    "baseline",
    "evaluate",
    "kept_frames",
    "media_leaves",
    "merge_loras",
    "migrate",
    "model_ids",
    "parse_multipliers",
    "parse_positions",
    "place",
    "read_texts",
    "source_frames",
    "stamped",
    "switch_steps",
    "wangp_model",
    "write_text",
]
