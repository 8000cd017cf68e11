"""Where several variants are that were the same so far: the sampler's state, what their caches know, who they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from wanlab.caches import Cache
from wanlab.caches._memory import Key, Memory, from_bytes, pack, to_bytes, unpack
from wanlab.caches.fixed import Fixed
from wanlab.sampling import SamplerState
from wanlab.stages import Note
from wanlab.sweeps._variant import Variant

Known = tuple[dict[Key, Memory], int]
"""What a cache knows, and the most bytes it held before."""
_INFO = "together"


@dataclass
class Node:
    """Variants between two steps. Its tensors are shared with nodes that it forked from; nothing changes them."""

    state: SamplerState
    variants: list[Variant]
    note: Note
    known: dict[str, Known] = field(default_factory=dict)
    """By `Variant.memory_class`."""
    shared: tuple[int, tuple[str, ...]] = (0, ())
    """Steps that were taken together with others, and who they all were."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """That all steps so far took, and those of them that were taken together with others."""

    def executors(self) -> dict[str, Cache]:
        """A cache of each memory class, which takes over what is `known`, and asks for all variants of its class."""
        found: dict[str, Cache] = {}
        for name, members in self._classes().items():
            cache = members[0].cache
            assert cache is not None, "variants without a cache have no class"
            cache.restore(*self.known.get(name, ({}, 0)))
            cache.parted.clear()
            cache.siblings.clear()
            if isinstance(cache, Fixed):
                cache.needed = lambda ctx, of=members: _needed(of, (ctx.expert, ctx.branch), ctx.step)  # type: ignore[misc]
            else:
                others = {v.key: v.cache.options for v in members if v.cache is not None}
                cache.siblings |= {key: options for key, options in others.items() if options != cache.options}
            found[name] = cache
        self.known = {}  # else the state of this moment would stay as long as the caches work
        return found

    def fork(self, variants: list[Variant]) -> Node:
        """Some of the variants as a node of their own, with what only they need."""
        node = replace(self.copy(), variants=variants, known={})
        for name, members in node._classes().items():
            memories, peak = self.known.get(name, ({}, 0))
            is_fixed = isinstance(members[0].cache, Fixed)
            node.known[name] = ({k: _pruned(m, k, members) if is_fixed else m for k, m in memories.items()}, peak)
        return node

    def only(self, keys: Collection[str]) -> Node:
        """Some of the variants, by their keys, as a node of their own."""
        return self.fork([variant for variant in self.variants if variant.key in keys])

    def copy(self) -> Node:
        """The same node, to go on with."""
        return replace(self, variants=list(self.variants), note=self.note.copy(), known=dict(self.known))

    def learn(self, caches: Mapping[str, Cache]) -> None:
        """Take what the caches of memory classes know now."""
        self.known |= {name: (cache.snapshot(), cache.peak) for name, cache in caches.items()}

    def leave(self, variants: Collection[Variant]) -> None:
        """Go on without some of the variants."""
        self.variants = [variant for variant in self.variants if variant not in variants]

    def took(self, seconds: float) -> None:
        """Note that the variants took the step before `state` together, and how long that was."""
        is_shared = len(self.variants) > 1
        self.seconds = (self.seconds[0] + seconds, self.seconds[1] + seconds * is_shared)
        if is_shared:
            self.shared = (self.state.index, self.shared[1] or tuple(v.key for v in self.variants))

    def executor(self, variant: Variant) -> Cache | None:
        """The variant's own cache with what it knows."""
        if variant.cache is not None:
            variant.cache.restore(*self.known.get(variant.memory_class, ({}, 0)))
        return variant.cache

    def _classes(self) -> dict[str, list[Variant]]:
        found: dict[str, list[Variant]] = {}
        for variant in self.variants:
            if variant.cache is not None:
                found.setdefault(variant.memory_class, []).append(variant)
        return found

    # As a state that can be saved

    def to_state(self) -> SamplerState:
        """The sampler's state, what all caches know in `cache`."""
        info = {
            "path": self.variants[0].path(self.state.index),
            "classes": list(self.known),
            "peaks": [peak for _, peak in self.known.values()],
            "forwards": dict(self.note.forwards),
            "kernels": sorted(self.note.kernels),
            "shared": list(self.shared),
            "seconds": list(self.seconds),
        }
        cache: dict[str, Tensor] = {_INFO: to_bytes(info)}
        for i, (memories, _) in enumerate(self.known.values()):
            cache |= {f"{i}|{name}": tensor for name, tensor in pack(memories).items()}
        return replace(self.state, cache=cache)

    @classmethod
    def of_state(cls, state: SamplerState, variants: Sequence[Variant], model: Any) -> Node | None:
        """The node of those variants whose steps until there were those of a saved state; None if there are none."""
        info = from_bytes(state.cache[_INFO]) if _INFO in state.cache else {"path": "", "classes": []}
        fits = [
            v
            for v in variants
            if state.index <= v.num_steps
            and v.path(state.index) == info["path"]
            and v.memory_class in ("", *info["classes"])
        ]
        if not fits:
            return None
        note = Note(model)
        note.forwards.update(info["forwards"])
        note.kernels.update(info["kernels"])
        known = {
            name: (unpack(_numbered(state.cache, i)), int(info["peaks"][i])) for i, name in enumerate(info["classes"])
        }
        number, company = info["shared"]
        seconds = info["seconds"]
        return cls(replace(state, cache={}), fits, note, known, (number, tuple(company)), (seconds[0], seconds[1]))

    def to(self, device: Any) -> None:
        """Bring all tensors to a device."""
        self.state = self.state.to(device)
        for name, (memories, peak) in self.known.items():
            self.known[name] = ({key: memory.to(device) for key, memory in memories.items()}, peak)


def _numbered(tensors: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    return {n.removeprefix(f"{i}|"): tensor for n, tensor in tensors.items() if n.startswith(f"{i}|")}


def _needed(variants: Sequence[Variant], forward: tuple[str, str], step: int) -> bool:
    """Whether what a forward left at a step is reused by one of the variants."""
    return any((*forward, step) in variant.reused for variant in variants)


def _pruned(memory: Memory, key: Key, variants: Sequence[Variant]) -> Memory:
    """The memory without tensors that none of the variants reuses."""
    if not memory.tensors or _needed(variants, key[:2], max(memory.shares)):
        return memory
    found = memory.copy()
    found.unkept += sum(tensor.nbytes for tensor in found.tensors.values())
    found.tensors.clear()
    return found
