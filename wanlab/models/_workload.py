"""Floating-point operations of one forward, block by block and part by part, from configurations alone.

A multiply and its addition are 2 operations. Counted are linear layers, convolutions and the two products of attention,
all of them dense; left out are norms, softmax, rotary positions, activations and additions, as PyTorch's
FlopCounterMode leaves them out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wanlab.errors import WanlabError
from wanlab.sites import Branch
from wanlab.sites.stack import BESIDE

if TYPE_CHECKING:
    from wanlab.models.base import Model
    from wanlab.spec import GenerationSpec


@dataclass(frozen=True)
class BlockWork:
    """One entry of the stack, by its name there."""

    name: str
    kind: str
    parts: Mapping[str, int]
    """Operations of each of the block's modules, by diffusers' names: {"attn1": ..., "attn2": ..., "ffn": ...}."""
    attention_parts: Mapping[str, int] = field(default_factory=dict)
    """Those of them inside the attention function, queries by keys and weights by values."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def attention(self) -> int:
        return sum(self.attention_parts.values())

    @property
    def linear(self) -> int:
        return self.total - self.attention


@dataclass(frozen=True)
class Workload:
    """One forward of one guidance branch at batch 1."""

    entries: tuple[BlockWork, ...]
    """The blocks in the order they run."""
    tokens: Mapping[str, tuple[int, int]]
    """(length, width) of every stream that enters the stack, by its name in `Streams.tokens`."""
    changed: tuple[str, ...]
    """Those of the streams that the blocks change, so that a residual of the stack has them."""
    embed: int
    """Operations before the blocks: patches, time, text, pictures."""
    head: int
    """Operations after them."""

    @property
    def attention(self) -> int:
        """Operations inside attention functions."""
        return sum(entry.attention for entry in self.entries)

    @property
    def linear(self) -> int:
        """All others: linear layers and convolutions."""
        return self.total - self.attention

    @property
    def total(self) -> int:
        return self.embed + self.head + sum(entry.total for entry in self.entries)

    @property
    def attention_share(self) -> float:
        """0 to 1."""
        return self.attention / self.total

    def without(self, blocks: Collection[int]) -> Workload:
        """The same forward with blocks left out (indices as in `Stack.main`)."""
        main = [entry.name for entry in self.entries if entry.kind not in BESIDE]
        left_out = {main[i] for i in blocks}
        return replace(self, entries=tuple(entry for entry in self.entries if entry.name not in left_out))

    def __repr__(self) -> str:
        return (
            f"Workload({self.total:.4g} FLOPs, {self.attention_share:.0%} attention, {len(self.entries)} blocks, "
            f"tokens {dict(self.tokens)})"
        )


def assembled(model: Model, spec: GenerationSpec, branch: Branch | None, expert: str | None) -> Workload:
    """`Model.workload`: of the resolved spec, with what the branch adds and leaves out.

    Raises WanlabError for an expert that the model does not have.
    """
    expert = expert or model.experts_present[0]
    if expert not in model.experts_present:
        raise WanlabError(f"{model.id} has no expert {expert!r}", choices=model.experts_present)
    has_negative = branch is not None and branch.nag is not None
    found = model._work(model.resolve(spec), model.config(expert), has_negative)
    return found if branch is None else found.without(branch.skip_blocks)


def dense(tokens: int, *layers: tuple[int, int]) -> int:
    """Operations of linear layers (inputs, outputs) on so many tokens."""
    return 2 * tokens * sum(inputs * outputs for inputs, outputs in layers)


def attend(queries: int, keys: int, width: int) -> int:
    """Operations of attention whose heads are `width` wide together, keys and values of one width."""
    return 4 * queries * keys * width
