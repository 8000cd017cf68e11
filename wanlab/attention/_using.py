"""Choose attention functions for a model's sites and restore them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION
from wanlab.sites import AttentionSite, Handle, StepContext

AttentionFn = Callable[..., Tensor]
"""`fn(q, k, v, site, mask=None)`: tensors and result (B, L, H, D)."""
DEFAULT = "sdpa"


@dataclass
class Used:
    """What `using` put where; `kernel` is the function that runs, by its registered name."""

    kernel: str
    sites: list[str] = field(default_factory=list)
    steps: tuple[int, ...] | None = None
    """Steps at which it runs; None is all."""


def resolve(name: str, device: Any = None) -> str:
    """The concrete name of a backend: `auto` is sdpa, PyTorch's own choice of an exact kernel, on every device."""
    return DEFAULT if name == "auto" else ATTENTION.check(name)


def available() -> dict[str, str]:
    """Backends and why each cannot run here; an empty reason means that it can."""
    found = {}
    for name in ATTENTION.names():
        try:
            ATTENTION.get(name)
            found[name] = ""
        except (WanlabError, ImportError) as error:
            found[name] = str(error)
    return found


@contextmanager
def using(
    model: Any,
    name: str | AttentionFn,
    blocks: Iterable[int] | None = None,
    kinds: Collection[str] | None = None,
    steps: Collection[int] | None = None,
) -> Iterator[Used]:
    """Run a backend (its name, or a function) at the chosen attention sites of all experts while inside.

    `blocks`: indices into the stack, default all; `kinds`: roles such as "self" or "cross"; `steps`: steps of the run
    at which it replaces what runs otherwise. The choice by step swaps the function before a forward, so compiled code
    sees one function at a time. Restores the earlier functions, errors and interrupts included.
    Raises WanlabError for an unknown name, block or kind, and while another thread generates with the model.
    """
    fn = name if callable(name) else ATTENTION.get(resolve(name, model.device))
    blocks = None if blocks is None else tuple(blocks)
    used = Used(name if isinstance(name, str) else getattr(fn, "__name__", "function"))
    used.kernel = resolve(used.kernel) if isinstance(name, str) else used.kernel
    switch = _Switch(fn, None if steps is None else frozenset(steps))
    used.steps = None if switch.steps is None else tuple(sorted(switch.steps))
    for stack in model.stacks.values():
        switch.sites += stack.attentions(kinds, blocks)
    used.sites = [site.name for site in switch.sites]
    try:
        if switch.steps is None:
            switch.turn(on=True)
        else:
            switch.clock = model.on_begin(switch.begin)
        yield used
    finally:
        switch.turn(on=False)
        if switch.clock is not None:
            switch.clock.remove()


@dataclass
class _Switch:
    """Holds one function in place at a set of sites, or takes it away."""

    fn: AttentionFn
    steps: frozenset[int] | None
    sites: list[AttentionSite] = field(default_factory=list)
    clock: Handle | None = None
    handle: Handle | None = None

    def begin(self, ctx: StepContext) -> None:
        self.turn(on=self.steps is None or ctx.step in self.steps)

    def turn(self, on: bool) -> None:
        if on and self.handle is None:
            placed: list[Handle] = []
            self.handle = Handle.join(placed)
            placed.extend(site.use(self.fn) for site in self.sites)
        elif not on and self.handle is not None:
            self.handle.remove()
            self.handle = None
