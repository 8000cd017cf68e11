"""Sites and their chains: the one way to change what a stack, block, linear or attention call does, and to undo it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from wanlab.errors import WanlabError, unknown
from wanlab.sites.lock import RunLock

Kind = Literal["forward", "stack", "block", "part", "linear", "attention"]
Wrapper = Callable[..., Any]
"""`fn(call, *args, **kw)`: does what it likes around `call(*args, **kw)`, which is everything further inside."""

LAYERS = ("quant", "lora", "attention", "parallel", "compile", "offload", "cache", "edit", "recorder")
"""From inner to outer: a layer sees the calls that the layers outside it let through."""
LEGAL: dict[Kind, tuple[str, ...]] = {
    "linear": ("quant", "lora", "offload", "edit", "recorder"),
    "attention": ("attention", "parallel", "edit", "recorder"),
    "block": ("compile", "offload", "cache", "edit", "recorder"),
    "part": ("cache", "edit", "recorder"),
    "stack": ("cache", "edit", "recorder"),
    "forward": ("cache", "edit", "recorder"),
}
OUTSIDE_GRAPHS = ("cache", "edit", "recorder")
"""Layers that, on a site inside a block, keep that block from running compiled."""
_serial = itertools.count()


@dataclass(frozen=True)
class _Layer:
    """One attachment: `place` sorts the chain from inner to outer, ties by the order of attaching."""

    fn: Wrapper
    name: str
    place: float
    serial: int = field(default_factory=lambda: next(_serial))


class Handle:
    """Detaches what was attached; also a context manager. `remove` may be called twice and in any order with others."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove: Callable[[], None] | None = remove

    def remove(self) -> None:
        """Detach. Waits for a generation that another thread runs on this model, so it never changes one halfway."""
        remove, self._remove = self._remove, None
        if remove is None:
            return
        try:
            remove()
        except BaseException:  # an interrupt while waiting: still attached, so it can still be removed
            self._remove = remove
            raise

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @classmethod
    def join(cls, handles: list[Handle]) -> Handle:
        """One handle for several; the last attached goes first."""

        def remove() -> None:
            while handles:
                handles[-1].remove()
                handles.pop()

        return cls(remove)


class Site:
    """A place in the network whose call can be wrapped.

    `wrap(fn, layer)` puts `fn(call, *args, **kw)` around the call at its layer's place and returns a Handle. What
    `args` are depends on `kind`: forward `(latents, ctx, branch)`, stack and block `(streams)`, part what the block's
    module takes, linear `(x,)` of (..., in_features), attention `(q, k, v, site, mask)` with (B, L, H, D).
    """

    kind: Kind

    def __init__(self, name: str, kind: Kind, base: Callable[..., Any], lock: RunLock | None = None) -> None:
        self.name = name
        self.kind = kind
        self._base = base
        self._lock = lock or RunLock()
        self._layers: tuple[_Layer, ...] = ()
        self._call = base

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def wrap(self, fn: Wrapper, layer: str, inside: str | None = None) -> Handle:
        """Attach `fn` at `layer`; within a layer the later one is outer.

        On an attention site the layer "attention" replaces the function: `fn(q, k, v, site, mask)`, without `call`.
        inside="cache" puts a recorder just inside the cache, where it sees only the calls that were really computed.
        Raises WanlabError for a layer that this kind of site does not have, or while another thread uses the model.
        """
        place = self._place(layer, inside)
        self._lock.check(f"attach to {self.name!r}")
        attached = _Layer(fn, layer, place)
        self._set((*self._layers, attached))
        return Handle(functools.partial(self._detach, attached))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers attached now, from inner to outer."""
        return tuple(layer.name for layer in self._layers)

    def _place(self, layer: str, inside: str | None) -> float:
        if layer not in LEGAL[self.kind]:
            raise unknown(f"layer of a {self.kind} site", layer, LEGAL[self.kind])
        if inside is None:
            return float(LAYERS.index(layer))
        if layer != "recorder" or inside not in LEGAL[self.kind]:
            raise WanlabError(f"A {layer} cannot go inside {inside!r} of a {self.kind} site", choices=LEGAL[self.kind])
        return LAYERS.index(inside) - 0.5

    def _detach(self, attached: _Layer) -> None:
        self._lock.settle()
        self._set(tuple(layer for layer in self._layers if layer is not attached))

    def _set(self, layers: tuple[_Layer, ...]) -> None:
        self._layers = tuple(sorted(layers, key=lambda layer: (layer.place, layer.serial)))
        self._call = compose(self._base, tuple(layer.fn for layer in self._layers))

    def __repr__(self) -> str:
        return f"Site({self.name!r}, {self.kind}, layers={list(self.layers)})"


def compose(base: Callable[..., Any], layers: tuple[Wrapper, ...]) -> Callable[..., Any]:
    """`base` inside all `layers`, the first innermost."""
    call = base
    for fn in layers:
        call = functools.partial(fn, call)
    return call


class ModuleSite(Site):
    """A module inside a block. While something is attached its class is a subclass whose forward walks the chain.

    The parameters stay where they are, so state dicts and compiled graphs are shared by all blocks. Detached, class and
    attributes are the original ones. A module has one such site.
    """

    def __init__(self, name: str, kind: Kind, module: nn.Module, lock: RunLock | None = None) -> None:
        super().__init__(name, kind, module.__class__.forward, lock)
        self.module = module
        self._plain: type[nn.Module] = module.__class__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def _set(self, layers: tuple[_Layer, ...]) -> None:
        self._layers = tuple(sorted(layers, key=lambda layer: (layer.place, layer.serial)))
        if self._layers:
            object.__setattr__(self.module, _CHAIN, tuple(layer.fn for layer in self._layers))
            self.module.__class__ = _site_class(self._plain)
        else:
            self.module.__class__ = self._plain
            self.module.__dict__.pop(_CHAIN, None)


class LinearSite(ModuleSite):
    """A linear layer."""

    def __init__(self, name: str, module: nn.Module, lock: RunLock | None = None) -> None:
        super().__init__(name, "linear", module, lock)


_CHAIN = "_wanlab_chain"


@functools.cache
def _site_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a module's class whose forward runs the chain around the original; torch.compile can read it."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(plain.forward, self)
        for fn in self._wanlab_chain:
            call = functools.partial(fn, call)
        return call(*args, **kwargs)

    return type(f"Site{plain.__name__}", (plain,), {"forward": forward, "__module__": __name__})


@dataclass
class Layout:
    """What all attention calls of a stack share in one forward; equal for all blocks, so compiled code may read it."""

    grid: tuple[int, int, int] = (1, 1, 1)
    """Video or image tokens along (T, H, W)."""
    text: tuple[int, int] = (0, 0)
    """Where text sits among the keys of joint attention: first and past-the-last position; empty elsewhere."""
    image: int = 0
    """Image tokens before the text among what cross attention reads."""
    negative: int = 0
    """Tokens of the negative prompt after the text, for normalized attention guidance; 0 without it."""
    nag: Tensor | None = None
    """Its scale, tau and alpha: a tensor (3,), so that other numbers need no other graph."""


class AttentionSite(Site):
    """An attention call `fn(q, k, v, site, mask=None)`: tensors and result (B, L, H, D).

    `role`, `head_dim`, `grid` and `text` are equal for all blocks of a class and may be read by `fn`, in compiled code
    too. `fn` is the function now in use; `use(fn)` replaces it until the handle is removed.
    """

    def __init__(
        self,
        name: str,
        role: str,
        fn: Callable[..., Tensor],
        layout: Layout,
        head_dim: int,
        lock: RunLock | None = None,
    ) -> None:
        super().__init__(name, "attention", fn, lock)
        self.role = role
        """self | cross | image_cross | joint | audio | face."""
        self.layout = layout
        self.head_dim = head_dim
        self.fn = fn
        self.chain: tuple[Wrapper, ...] = ()

    @property
    def grid(self) -> tuple[int, int, int]:
        """Video or image tokens along (T, H, W)."""
        return self.layout.grid

    @property
    def text(self) -> tuple[int, int]:
        """Positions of text among the keys."""
        return self.layout.text

    def use(self, fn: Callable[..., Tensor]) -> Handle:
        """Replace the attention function; the latest replacement that is still attached is the one that runs."""
        return self.wrap(fn, "attention")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        call = self.fn
        for fn in self.chain:
            call = functools.partial(fn, call)
        return call(q, k, v, self, mask)

    def _set(self, layers: tuple[_Layer, ...]) -> None:
        self._layers = tuple(sorted(layers, key=lambda layer: (layer.place, layer.serial)))
        functions = [layer.fn for layer in self._layers if layer.name == "attention"]
        self.fn = functions[-1] if functions else self._base
        self.chain = tuple(layer.fn for layer in self._layers if layer.name != "attention")
