"""Networks that are read from disk when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from wanlab.sites import Stack
from wanlab.weights import Component, unload

Load = Callable[[nn.Module | None], nn.Module]
"""Makes the network, or fills the one that it is given, whose weights were given back."""


class ModelPart:
    """One component of a model: text encoder, transformer, VAE. `module` reads it on first use and keeps it."""

    def __init__(self, component: Component, dtype: torch.dtype, load: Load) -> None:
        self.name = component.name
        self.dtype = dtype
        self.component = component
        self._load = load
        self._module: nn.Module | None = None
        self._filled = False
        self._handles: list[Any] = []

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._filled

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights: those in memory if it is loaded, else of the files."""
        if self._module is not None and self._filled:
            return sum(p.numel() * p.element_size() for p in self._module.parameters())
        return self.component.num_bytes

    @property
    def module(self) -> Any:
        """The network, on the model's device, in eval mode."""
        if not self._filled:
            self._module = self._load(self._module)
            self._filled = True
        return self._module

    def unload(self) -> None:
        """Give back the memory of its weights; the next `module` reads the same bits again, into the same object.

        What is attached to the network, and its tables, stay: whoever holds a reference to a part of it keeps it.
        """
        if self._module is not None and self._filled:
            self._filled = False
            unload(self._module)

    def stop_at_blocks(self, check: Callable[[], None]) -> None:
        """Call `check` before each block of the network (the entries of its lists) until `forget_stops`."""
        if self._handles:
            return
        lists = (module for module in self.module.modules() if isinstance(module, nn.ModuleList))
        for block in (block for entries in lists for block in entries):
            self._handles.append(block.register_forward_pre_hook(lambda *_: check()))

    def forget_stops(self) -> None:
        """Undo `stop_at_blocks`."""
        while self._handles:
            self._handles.pop().remove()

    def __repr__(self) -> str:
        state = "loaded" if self.loaded else "on disk"
        return f"ModelPart({self.name!r}, {self.num_bytes / 1e6:.1f} MB, {state})"


class Stacks(Mapping[str, Stack]):
    """Expert name -> stack; looking one up reads its network, again if it was unloaded; iterating does not."""

    def __init__(self, parts: Mapping[str, ModelPart], names: tuple[str, ...], build: Callable[[str], Stack]) -> None:
        self._parts = parts
        self._names = names
        self._build = build
        self._stacks: dict[str, Stack] = {}

    def __getitem__(self, name: str) -> Stack:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._stacks:
            self._stacks[name] = self._build(name)
        _ = self._parts[name].module
        return self._stacks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def built(self) -> list[Stack]:
        """The stacks whose networks were read."""
        return list(self._stacks.values())

    def __len__(self) -> int:
        return len(self._names)
