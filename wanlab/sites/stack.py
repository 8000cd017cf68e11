"""The stack: a network's blocks as one flat list that caches, probes, skips, offload and compilation work on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from wanlab.errors import WanlabError
from wanlab.sites.chain import OUTSIDE_GRAPHS, AttentionSite, Handle, Layout, LinearSite, ModuleSite, Site
from wanlab.sites.context import Streams
from wanlab.sites.lock import RunLock

Apply = Callable[[Callable[..., object], Streams], Streams]
"""`apply(module, streams)`: call a block's module, or its compiled form, on the streams."""
_BESIDE = ("hint", "face")  # kinds of blocks that are in no network's main list
_RECOMPILE_LIMIT = 64  # a session may meet many sizes and backends; torch's 8 makes the ninth an error


@dataclass(frozen=True)
class Entry:
    """One block: its module, its own site and the sites inside it, by their names within the block."""

    name: str
    kind: str
    module: nn.Module
    apply: Apply
    site: Site
    linears: dict[str, LinearSite] = field(default_factory=dict)
    attentions: dict[str, AttentionSite] = field(default_factory=dict)
    parts: dict[str, ModuleSite] = field(default_factory=dict)
    """Modules whose outputs methods may keep, by their names in the block: its attentions and feed-forward."""

    @property
    def observed(self) -> bool:
        """Whether something that compiled code cannot call sits on a site inside the block."""
        inner = (*self.linears.values(), *self.attentions.values(), *self.parts.values())
        return any(layer in OUTSIDE_GRAPHS for site in inner for layer in site.layers)

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.kind}, {len(self.linears)} linears, {list(self.attentions)})"


@dataclass(frozen=True)
class BlockPlan:
    """How a family describes one block."""

    name: str
    kind: str
    module: nn.Module
    apply: Apply
    attentions: dict[str, AttentionSite]
    """Its attention sites by name."""
    parts: tuple[str, ...] = ()
    """Names of the modules in it that get a site: attentions and feed-forwards, none of them a linear layer."""


class Stack:
    """All blocks of one network in the order they run, with the sites around them.

    `linears` holds every linear layer of the network by its parameter name, those outside the blocks too.
    `run(streams, start, stop)` runs entries [start, stop) and goes through the stack's own site, whose wrappers are
    called as `fn(call, streams, **span)`; inside one, `call(streams, start=0, stop=1)` runs a part.
    """

    def __init__(
        self, name: str, network: nn.Module, plans: Iterable[BlockPlan], layout: Layout, lock: RunLock | None = None
    ) -> None:
        self.name = name
        self.outputs: tuple[str, ...] = ("video",)
        """Names of the token streams that are read after the last block."""
        self.network = network
        self.layout = layout
        self.lock = lock or RunLock()
        self.linears = {
            path: LinearSite(path, module, self.lock)
            for path, module in network.named_modules()
            if isinstance(module, nn.Linear)
        }
        self.entries = [self._entry(plan) for plan in plans]
        self.site = Site(name, "stack", self._run, self.lock)
        self.forward: Site | None = None
        """Around a whole forward, `fn(call, latents, ctx, branch) -> velocity`; `enclose` makes it."""
        self.before_block: Callable[[], None] | None = None
        """Called before each block, outside compiled code; may raise to stop."""
        self.uncompiled: set[str] = set()
        """Blocks that ran uncompiled although compilation was asked for, because something observes their inside."""

    def _entry(self, plan: BlockPlan) -> Entry:
        prefix = plan.name + "."
        linears = {n.removeprefix(prefix): site for n, site in self.linears.items() if n.startswith(prefix)}
        site = Site(plan.name, "block", functools.partial(plan.apply, plan.module), self.lock)
        parts = {
            part: ModuleSite(f"{plan.name}.{part}", "part", getattr(plan.module, part), self.lock)
            for part in plan.parts
        }
        return Entry(plan.name, plan.kind, plan.module, plan.apply, site, linears, plan.attentions, parts)

    def enclose(self, forward: Callable[..., torch.Tensor]) -> None:
        """Put a site around `forward(latents, ctx, branch)`, which embeds, runs this stack and reads it out."""
        self.forward = Site("forward", "forward", forward, self.lock)

    def run(self, streams: Streams, start: int = 0, stop: int | None = None) -> Streams:
        """Run entries [start, stop) through the stack's site."""
        return self.site(streams, start=start, stop=stop)

    def _run(self, streams: Streams, start: int = 0, stop: int | None = None) -> Streams:
        for entry in self.entries[start:stop]:
            if self.before_block is not None:
                self.before_block()
            streams = entry.site(streams)
        return streams

    def attentions(
        self, kinds: Iterable[str] | None = None, blocks: Iterable[int] | None = None
    ) -> list[AttentionSite]:
        """Attention sites of the given blocks (indices; default all) whose role is among `kinds` (default all).

        Raises WanlabError for a block that is not there or a kind that no block has.
        """
        chosen = self.entries if blocks is None else [self[i] for i in blocks]
        sites = [site for entry in chosen for site in entry.attentions.values()]
        if kinds is None:
            return sites
        wanted, present = set(kinds), {site.role for entry in self.entries for site in entry.attentions.values()}
        if not wanted <= present:
            raise WanlabError(f"No attention of kind {sorted(wanted - present)}", choices=sorted(present))
        return [site for site in sites if site.role in wanted]

    def main(self, index: int) -> Entry:
        """Block `index` of the network's own list, blocks beside it (hints, faces) not counted.

        Raises WanlabError for a block that is not there.
        """
        blocks = [entry for entry in self.entries if entry.kind not in _BESIDE]
        if not 0 <= index < len(blocks):
            raise WanlabError(f"There is no block {index}; {self.name} has {len(blocks)}, counted from 0")
        return blocks[index]

    @property
    def num_main(self) -> int:
        """Blocks of the network's own list."""
        return sum(entry.kind not in _BESIDE for entry in self.entries)

    def cut(self, num_main: int) -> int:
        """Where the stack may be cut after its first `num_main` blocks, those beside it (hints, faces) not counted.

        An index for `run`: a hint stays with the block that reads it, a face with the block before it.
        """
        places = [i for i, entry in enumerate(self.entries) if entry.kind not in _BESIDE]
        if num_main >= len(places):
            return len(self.entries)
        place = places[num_main]
        while place > 0 and self.entries[place - 1].kind == "hint":
            place -= 1
        return place

    def sites(self) -> Iterator[Site]:
        """The sites of the forward and the stack, those of blocks and their parts, all attention and linear sites."""
        yield from (self.site,) if self.forward is None else (self.forward, self.site)
        for entry in self.entries:
            yield from (entry.site, *entry.parts.values(), *entry.attentions.values())
        yield from self.linears.values()

    def attachments(self) -> list[str]:
        """What is attached now, as "transformer.blocks.3.attn1: edit"."""
        named = ((self.name if site is self.site else f"{self.name}.{site.name}", site) for site in self.sites())
        return [f"{name}: {layer}" for name, site in named for layer in site.layers]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __getitem__(self, index: int) -> Entry:
        if not -len(self.entries) <= index < len(self.entries):
            raise WanlabError(f"There is no block {index}; {self.name} has {len(self.entries)}, counted from 0")
        return self.entries[index]

    def __repr__(self) -> str:
        return f"Stack({self.name!r}, {len(self)} blocks)"


@contextmanager
def skipping(stack: Stack, blocks: Iterable[int]) -> Iterator[None]:
    """Leave out blocks (indices as in `Stack.main`) while inside; recorders outside the cache still see the call."""
    handle = Handle.join([stack.main(i).site.wrap(_pass_on, "cache") for i in blocks])
    try:
        yield
    finally:
        handle.remove()


def _pass_on(call: Callable[..., Streams], streams: Streams) -> Streams:
    return streams


@contextmanager
def compiling(stack: Stack, backend: str = "inductor") -> Iterator[None]:
    """Run every block through torch.compile while inside, as one graph a block class: no breaks, sizes fixed.

    A block with an edit or recorder on an inner site runs uncompiled; `stack.uncompiled` names it afterwards.
    """
    stack.uncompiled.clear()
    handles: list[Handle] = []
    for entry in stack:
        compiled = torch.compile(entry.module.forward, backend=backend, fullgraph=True, dynamic=False)
        handles.append(entry.site.wrap(functools.partial(_run_compiled, stack, entry, compiled), "compile"))
    handle = Handle.join(handles)
    try:
        with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
            yield
    finally:
        handle.remove()


def _run_compiled(
    stack: Stack,
    entry: Entry,
    compiled: Callable[..., object],
    call: Callable[..., Streams],
    streams: Streams,
) -> Streams:
    if entry.observed:
        stack.uncompiled.add(entry.name)
        return call(streams)
    return entry.apply(compiled, streams)
