"""What a sampler carries from one step to the next: it clones, saves and resumes bit-identically."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_GUIDANCE, _CACHE = "guidance.", "cache."


@dataclass(frozen=True)
class SamplerState:
    """A run between two steps.

    `latents` (B, C, T, H, W) are at noise level `sampler.sigmas[index]`; `index` is the step that comes next;
    `history` is what a multistep sampler remembers, `guidance` what the guidance rule does, `cache` what the cache
    does: their own business, and empty at the start. Nothing changes a state's tensors, so states may share them.
    """

    latents: Tensor
    history: tuple[Tensor, ...] = ()
    index: int = 0
    guidance: Mapping[str, Tensor] = field(default_factory=dict)
    cache: Mapping[str, Tensor] = field(default_factory=dict)

    def clone(self) -> SamplerState:
        """A copy that shares no memory."""
        return self._each(torch.clone)

    def to(self, device: torch.device) -> SamplerState:
        """The state on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, fn: Callable[[Tensor], Tensor]) -> SamplerState:
        guidance, cache = ({name: fn(x) for name, x in part.items()} for part in (self.guidance, self.cache))
        return SamplerState(fn(self.latents), tuple(map(fn, self.history)), self.index, guidance, cache)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: `latents`, `index`, `history.0` ..., `guidance.<name>` ..., `cache.<name>` ..."""
        named = {f"history.{k}": h for k, h in enumerate(self.history)}
        named |= {_GUIDANCE + name: tensor for name, tensor in self.guidance.items()}
        named |= {_CACHE + name: tensor for name, tensor in self.cache.items()}
        return {"latents": self.latents, **named, "index": torch.tensor(self.index)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SamplerState:
        """The reverse of `to_tensors`; raises KeyError when a name is missing."""
        num_history = sum(name.startswith("history.") for name in tensors)
        history = tuple(tensors[f"history.{k}"] for k in range(num_history))
        guidance, cache = (
            {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
            for prefix in (_GUIDANCE, _CACHE)
        )
        return cls(tensors["latents"], history, int(tensors["index"]), guidance, cache)
