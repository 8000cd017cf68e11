"""The only sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.sampling._base import Sampler
from wanlab.sampling._state import SamplerState

Velocity = Callable[[Tensor, int], Tensor]
"""`velocity(latents, step) -> Tensor` shaped like the latents: the guided prediction of the network."""


class Memory(Protocol):
    """What a velocity remembers between steps, such as momentum of the guidance."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Remembering:
    """A velocity with a memory, which the loop takes from the state before the first step and keeps in it."""

    velocity: Velocity
    memory: Memory

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        return self.velocity(latents, step)


OnStep = Callable[[int, float, Tensor, Tensor], None]
"""`on_step(step, sigma, latents, denoised)`, see `sample`."""


def sample(
    sampler: Sampler,
    velocity: Velocity,
    state: SamplerState,
    *,
    stop: int | None = None,
    on_step: OnStep | None = None,
) -> SamplerState:
    """Run the steps from `state.index` up to `stop` (all by default) and return the state after them.

    `on_step` is called after each step with its number, the sigma the network was asked at, the latents after the step
    and the data estimate that the network's answer implies; what it raises ends the loop. The caller's `state` is left
    as it was. What a `Remembering` velocity knows of earlier steps comes from the state too. Nothing here changes the
    gradient mode. Raises WanlabError naming the step when the velocity has NaN or infinity (that check is the one wait
    for the device in a step), and for a state that is not this sampler's.
    """
    stop = sampler.num_steps if stop is None else stop
    _check_state(state, stop, sampler)
    memory = _recall(velocity, state)
    for i in range(state.index, stop):
        slope = velocity(state.latents, i)
        _check_finite(slope, i, sampler)
        before, state = state, sampler.step(state, slope, i)
        if memory is not None:
            state = replace(state, guidance=memory.state())
        if on_step is not None:
            on_step(i, float(sampler.sigmas[i]), state.latents, sampler.denoised(before, slope, i))
    return state


def _recall(velocity: Velocity, state: SamplerState) -> Memory | None:
    """The velocity's memory, as it was when the state was left."""
    if isinstance(velocity, Remembering):
        velocity.memory.load_state(state.guidance)
        return velocity.memory
    if state.guidance:
        raise WanlabError(
            f"This state holds what guidance remembers ({', '.join(state.guidance)}), which this velocity cannot use",
            remedy="Resume with wanlab.stages.velocity_of(...), or clear it: replace(state, guidance={}).",
        )
    return None


def _check_state(state: SamplerState, stop: int, sampler: Sampler) -> None:
    if not state.index <= stop <= sampler.num_steps:
        raise WanlabError(
            f"A state before step {state.index} cannot run up to step {stop} of {sampler.num_steps}",
            remedy="Resume with the num_steps it was made with.",
        )
    if len(state.history) not in sampler.history_lengths:
        raise WanlabError(
            f"This state remembers {len(state.history)} tensors and is not of sampler {type(sampler).__name__}",
            remedy="Resume with the sampler it was made with, or start from sampler.init(state.latents, state.index).",
        )


def _check_finite(velocity: Tensor, i: int, sampler: Sampler) -> None:
    if bool(torch.isfinite(velocity).all()):
        return
    bad = int((~torch.isfinite(velocity)).sum())
    raise WanlabError(
        f"The network returned {bad} NaN or infinite numbers of {velocity.numel()} at step {i} of {sampler.num_steps} "
        f"(sigma {float(sampler.sigmas[i]):.4g}, {velocity.dtype})",
        remedy="Try weights.dtype float32 or bfloat16, and check the weights and what is attached to the model.",
    )
