"""WanGP's LoRA multipliers: a text with a token per LoRA becomes a strength per step.

    token   phase ; phase ; phase     one phase for all steps, or one per guidance phase
    phase   value , value ...         the steps of the phase are shared out among the values
    value   a number, or `cond:uncond` where a model has branches

Tokens stand on lines and have exactly one space between them; lines that start with `#` are comments; `|`, at most one,
stands between an accelerator's LoRAs and the user's. Source: deepbeepmeep/Wan2GP at commit 8681e9f7,
shared/utils/loras_mutipliers.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wanlab.errors import WanlabError, shorten

Values = tuple[float, ...]
Sharing = Literal["wangp", "even"]


@dataclass(frozen=True)
class Multiplier:
    """Strength of one LoRA: `phases[branch][phase]` are values that share out the phase's steps."""

    phases: tuple[tuple[Values, ...], ...] = (((1.0,),),)

    @property
    def is_shared(self) -> bool:
        """Whether one phase spans all steps."""
        return len(self.phases[0]) == 1


def parse_multipliers(
    text: str | Sequence[str | float],
    num_loras: int,
    *,
    num_phases: int = 2,
    model_switch_phase: int = 1,
    branches: int = 1,
) -> tuple[Multiplier, ...]:
    """One multiplier per LoRA; LoRAs without a token have 1, tokens without a LoRA are not looked at.

    text: WanGP's text, or the list of a model definition. A token of fewer phases than there are repeats its first one
    where the second network takes over in phase 2, else its last one. Raises WanlabError with the LoRA's number.
    """
    tokens = (split_tokens(text) if isinstance(text, str) else [str(token).strip() for token in text])[:num_loras]
    found = [_parse_token(i, token, num_phases, model_switch_phase, branches) for i, token in enumerate(tokens)]
    return (*found, *[Multiplier((((1.0,),),) * branches)] * (num_loras - len(found)))


def split_tokens(text: str) -> list[str]:
    """The tokens of a text; two spaces in a row make an empty one, which is refused later. A second `|` is refused."""
    if text.count("|") > 1:
        raise WanlabError("LoRA multipliers have more than one |", remedy="Put it once, before the user's LoRAs.")
    lines = text.strip(" \r\n").replace("\r", "").split("\n")
    words = " ".join(line.strip() for line in lines if line and not line.startswith("#")).replace("|", " ").strip()
    return words.split(" ") if words else []


def _parse_token(i: int, token: str, num_phases: int, model_switch_phase: int, branches: int) -> Multiplier:
    phases = token.split(";")
    if len(phases) > max(1, num_phases):
        problem = f"LoRA multiplier {i + 1} ({shorten(token, 40)}) has {len(phases)} phases, guidance has {num_phases}"
        raise WanlabError(problem, remedy="Give at most one value per phase, or raise guidance_phases.")
    if 1 < len(phases) < num_phases:
        phases = [phases[0], *phases] if model_switch_phase == 2 else [*phases, phases[-1]]
    table: list[list[Values]] = [[] for _ in range(branches)]
    for phase in phases:
        parts = phase.split(":") if branches > 1 and ":" in phase else [phase] * branches
        if len(parts) != branches:
            raise WanlabError(
                f"LoRA multiplier {i + 1} ({shorten(phase, 40)}) has {len(parts)} branches", remedy=f"Give {branches}."
            )
        for branch, part in zip(table, parts, strict=True):
            branch.append(tuple(_number(i, value) for value in part.split(",")))
    return Multiplier(tuple(map(tuple, table)))


def _number(i: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        found = "empty" if not text.strip() else f"{shorten(text, 40)}, no number"
        remedy = "Give numbers such as 0.8, 1;0 or 1,0.5, with single spaces between LoRAs."
        raise WanlabError(f"LoRA multiplier {i + 1} is {found}", remedy=remedy)
    return value


def evaluate(
    multiplier: Multiplier, num_steps: int, switches: Sequence[int] = (), *, branch: int = 0, sharing: Sharing = "wangp"
) -> list[float]:
    """The strength at each step.

    switches: the first step of the second and of the third guidance phase, see `switch_steps`; a missing one is never.
    sharing: how a phase's steps are shared out among its values. WanGP adds up len(values) / steps in floating point
    and cuts off, so 3 values last 11, 9 and 10 of 30 steps ("wangp"); "even" gives 10, 10 and 10.

    >>> evaluate(parse_multipliers("0.9,0.8;1.2,1.1,1", 1)[0], 8, [3])
    [0.9, 0.9, 0.8, 1.2, 1.2, 1.1, 1.1, 1.0]
    """
    phases = multiplier.phases[branch]
    if multiplier.is_shared:
        return _share(phases[0], num_steps, sharing)
    first, second, *_ = (*(min(s, num_steps) for s in switches), num_steps, num_steps)
    lengths = (first, max(0, second - first), num_steps - max(first, second))
    phases = (*phases, phases[-1])
    return [x for values, count in zip(phases, lengths, strict=False) for x in _share(values, count, sharing)]


def _share(values: Values, num_steps: int, sharing: Sharing) -> list[float]:
    if sharing == "even":
        return [values[i * len(values) // num_steps] for i in range(num_steps)]
    found, position = [], 0.0
    for _ in range(num_steps):
        found.append(values[int(position)])
        position += len(values) / num_steps
    return found


def switch_steps(timesteps: Sequence[float], thresholds: Sequence[float]) -> list[int]:
    """The first step of each later phase: where the timestep (1000 to 0) is at or under its threshold, else never."""
    never = len(timesteps)
    return [next((i for i, t in enumerate(timesteps) if t <= limit), never) for limit in thresholds]
