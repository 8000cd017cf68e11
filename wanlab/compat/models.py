"""What is known of WanGP's models: an id's architecture, and what WanGP's interface lets that architecture do.

`wangp_models.json` holds facts about deepbeepmeep/Wan2GP at the commit it names: the ids of `defaults/*.json` with
their architectures, and what each family's handler says that an architecture can do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanlab.files import read_json

_FACTS = Path(__file__).with_name("wangp_models.json")


@dataclass(frozen=True)
class WanGPModel:
    """One model id of WanGP. Of an architecture that is not known, only its name is."""

    id: str
    architecture: str
    handler: str = ""
    """Family whose rules apply: wan, df, hunyuan, ltxv, flux, qwen, ltx2, ...; empty if not known."""
    has_two_networks: bool = False
    """Whether a second network takes over at low noise."""
    has_three_phase_loras: bool = False
    """Whether its own LoRAs have multipliers for three phases."""
    is_distilled: bool = False
    """Whether it runs LTX-2's distilled pipeline."""
    facts: Mapping[str, Any] | None = None
    """Of the architecture; None if it is not known."""

    @property
    def starts_from(self) -> str | None:
        """Letters that `image_prompt_type` may have; None if not known."""
        return None if self.facts is None else self.facts["image_prompt_types"]

    def can(self, what: str) -> bool:
        """Whether the architecture is known to have a capability (`audio`, `riflex`, `sliding_window`, ...)."""
        return bool(self.facts and self.facts.get(what))

    @property
    def fps(self) -> float:
        """Frames a second of its videos."""
        return float((self.facts or {}).get("fps", 16))

    @property
    def frames(self) -> tuple[int, int, int]:
        """Least number of frames, frames of one latent frame, and the interface's step between numbers of frames."""
        least, latent, step = (self.facts or {}).get("frames", (5, 4, 4))
        return least, latent, step


@functools.cache
def _facts() -> dict[str, Any]:
    data = read_json(_FACTS)
    assert isinstance(data, dict), _FACTS
    return data


def model_ids() -> tuple[str, ...]:
    """WanGP's model ids, those of its `defaults/`."""
    return tuple(_facts()["models"])


def wangp_model(settings: Mapping[str, Any]) -> WanGPModel:
    """The model that settings are for: by `model_type`, else `base_model_type`, else the name of the weights.

    An id that is not known stands for itself, with the architecture of `base_model_type`.
    """
    facts = _facts()
    models, architectures = facts["models"], facts["architectures"]
    given, base = _text(settings.get("model_type")), _text(settings.get("base_model_type"))
    name = given or base or _by_file(_text(settings.get("model_filename")), facts["file_names"])
    architecture = next((known for n in (name, base) if (known := models.get(n) or (n in architectures and n))), name)
    found = architectures.get(architecture)
    return WanGPModel(
        id=name,
        architecture=architecture,
        handler=found["handler"] if found else _handler(architecture),
        has_two_networks=bool({name, architecture} & set(facts["two_networks"])),
        has_three_phase_loras=name in facts["three_phase_loras"],
        is_distilled=name in facts["distilled_ltx2"],
        facts=found,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _by_file(name: str, signatures: Mapping[str, str]) -> str:
    """The id whose file name signature is part of `name`; empty if none is."""
    return next((model for signature, model in signatures.items() if signature in name), "")


def _handler(architecture: str) -> str:
    """The family of an architecture without other facts, by its name."""
    starts = {"minimax_h3": "minimax_h3", "ace_step": "ace_step", "qwen3_tts": "qwen3", "ltx2": "ltx2"}
    return next((handler for start, handler in starts.items() if architecture.startswith(start)), "")
