"""What a sampler carries from one step to the next: it clones, saves and resumes bit-identically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_GUIDANCE = "guidance."


@dataclass(frozen=True)
class SamplerState:
    """A run between two steps.

    `latents` (B, C, T, H, W) are at noise level `sampler.sigmas[index]`; `index` is the step that comes next;
    `history` is what a multistep sampler remembers, `guidance` what the guidance rule does: their own business, and
    empty at the start.
    """

    latents: Tensor
    history: tuple[Tensor, ...] = ()
    index: int = 0
    guidance: Mapping[str, Tensor] = field(default_factory=dict)

    def clone(self) -> SamplerState:
        """A copy that shares no memory, for forks."""
        guidance = {name: tensor.clone() for name, tensor in self.guidance.items()}
        return SamplerState(self.latents.clone(), tuple(h.clone() for h in self.history), self.index, guidance)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: `latents`, `history.0` ..., `guidance.<name>` ..., `index`."""
        named = {f"history.{k}": h for k, h in enumerate(self.history)}
        named |= {_GUIDANCE + name: tensor for name, tensor in self.guidance.items()}
        return {"latents": self.latents, **named, "index": torch.tensor(self.index)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SamplerState:
        """The reverse of `to_tensors`; raises KeyError when a name is missing."""
        num_history = sum(name.startswith("history.") for name in tensors)
        history = tuple(tensors[f"history.{k}"] for k in range(num_history))
        guidance = {n.removeprefix(_GUIDANCE): tensor for n, tensor in tensors.items() if n.startswith(_GUIDANCE)}
        return cls(tensors["latents"], history, int(tensors["index"]), guidance)
