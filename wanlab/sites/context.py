"""What travels through a forward: the clock, a guidance branch with its conditions, and the token streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepContext:
    """Where a run is, given to every attachment before each forward by `model.begin`."""

    step: int
    """0 .. num_steps - 1."""
    num_steps: int
    sigma: float | Tensor
    """Noise level, 1 (noise) to 0 (data): a scalar, or (B, T) where latent frames differ."""
    sigmas: tuple[float, ...] | Tensor = ()
    """All num_steps + 1 noise levels."""
    timestep: float | Tensor = 0.0
    """What the network is told, usually sigma * 1000; a scalar or (B,)."""
    expert: str = "transformer"
    branch: str = "cond"
    window: int | None = None
    latents: Tensor | None = None
    """Latents (B, C, T, H, W) that enter this step."""


@dataclass(frozen=True)
class Conditions:
    """What steers the network besides text; None where a generation has no such input.

    Tensors of batch 1 are shared by all samples. Latents are normalised, as the network sees them.
    """

    channels: Tensor | None = None
    """(B, C, T, H, W), concatenated to the latents: first-frame images and their masks."""
    tokens: Mapping[str, Tensor] | None = None
    """Named token streams (B, L, D), e.g. CLIP's image embeddings."""
    known: Tensor | None = None
    """Clean latents (B, C, T, H, W) that the result starts from or keeps."""
    free: Tensor | None = None
    """(B, 1, T, H, W): 1 where the network decides, 0 where `known` is kept; None where all of it may change."""
    noise: Tensor | None = None
    """(B, C, T, H, W) by which `known` is brought to a step's noise level; None leaves it clean at every step."""
    kept_steps: int | None = None
    """First steps in which `known` is put back; None is all of them, and after the last."""
    control: tuple[Tensor, ...] = ()
    """Control latents (B, C, T, H, W), one entry for each control video."""
    control_scale: tuple[tuple[float, ...], ...] = ()
    """Strength of each entry of `control`, one number for each control layer."""
    reference_frames: Tensor | None = None
    """Latents (B, C, N, H, W) of reference pictures, which lie beside the video's frames."""
    audio: Tensor | None = None
    riflex: int | None = None
    """Latent frames for which RIFLEx slows the rotary positions in time; None is off."""

    def blank(self, *names: str) -> Conditions:
        """The same conditions with the named tensors zero, shapes kept: what guidance moves away from.

        One that is not there stays so.
        """
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if x is None else torch.zeros_like(x) for name, x in found.items()})


NO_CONDITIONS = Conditions()


@dataclass(frozen=True)
class Branch:
    """One forward that guidance asks for; predictions of all branches are combined into the velocity."""

    name: str
    text: Mapping[str, Tensor]
    conditions: Conditions = NO_CONDITIONS
    skip_blocks: tuple[int, ...] = ()
    """Indices into the stack of blocks that this branch leaves out."""
    guidance: float | None = None
    """Scale for networks that take it as an input (Flux)."""
    nag: tuple[float, float, float] | None = None
    """Normalized attention guidance: scale, tau, alpha; `text` then has "negative_embeds" too."""


@dataclass(frozen=True)
class Streams:
    """Named token tensors (B, L, D) on their way through the stack, and what the blocks read along."""

    tokens: Mapping[str, Tensor]
    modulation: Mapping[str, Tensor] = field(default_factory=dict)
    rope: tuple[Tensor, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    hints: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int, int] = (1, 1, 1)
    """Tokens of the video or image along (T, H, W)."""

    def with_tokens(self, **tokens: Tensor) -> Streams:
        """The same streams with some token tensors replaced."""
        return replace(self, tokens={**self.tokens, **tokens})

    def residual(self, before: Streams) -> dict[str, Tensor]:
        """What was added to each token tensor since `before`; tensors that were passed on untouched are left out."""
        return {
            name: after - before.tokens[name] for name, after in self.tokens.items() if after is not before.tokens[name]
        }

    def plus(self, residual: Mapping[str, Tensor]) -> Streams:
        """Add a residual to the token tensors it names."""
        return self.with_tokens(**{name: self.tokens[name] + value for name, value in residual.items()})
