"""The networks of a loaded checkpoint: parts by name, read when they are first used, and where a stage may stop."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from wanlab import weights
from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.models._folder import EXPERTS, check_architecture, read_config, read_index
from wanlab.models._parts import ModelPart
from wanlab.sites import RunLock

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Networks(abc.ABC):
    """The parts of a model, in the dtypes of its spec, on its device."""

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """The diffusers pipelines whose folders this family reads, as model_index.json names them."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    optional_encoders: ClassVar[tuple[str, ...]] = ()
    """Encoders that only some checkpoints of the family have."""

    def __init__(self, definition: Definition, folder: Path, device: torch.device, chosen: Any) -> None:
        self.definition = definition
        self.id = definition.id
        self.constants: Mapping[str, Any] = definition.constants
        self.folder = folder
        self.device = device
        self.dtype = _concrete_dtype(chosen.dtype, device)
        self.vae_dtype = _concrete_dtype(chosen.vae_dtype, device)
        self.lock = RunLock()
        self.index = read_index(type(self), definition, folder)
        self.experts_present = tuple(name for name in EXPERTS if name in self.index)
        encoders = (*self.encoders, *(name for name in self.optional_encoders if name in self.index))
        self.parts = {name: self._part(name) for name in (*encoders, *self.experts_present, "vae")}
        check_architecture(self)
        self._check: Callable[[], None] | None = None

    @classmethod
    @abc.abstractmethod
    def component_class(cls, component: str) -> Any:
        """The diffusers or transformers class of a component."""

    def _part(self, name: str) -> ModelPart:
        dtype = self.vae_dtype if name == "vae" else self.dtype
        cls = self.component_class(name)
        component = weights.component_in(self.folder, name)
        load = functools.partial(weights.load_component, cls, component, dtype, self.device, self.check)
        return ModelPart(component, dtype, load)

    @contextmanager
    def resident(self, name: str) -> Iterator[Any]:
        """The named network, on the model's device while inside; everything that was used stays there."""
        if name not in self.parts:
            raise WanlabError(f"{self.id} has no part {name!r}", choices=self.parts)
        part = self.parts[name]
        if self._watched and name not in self.experts_present:  # experts stop in their stack, outside compiled blocks
            part.stop_at_blocks(self.check)
        yield part.module

    # Stopping

    @contextmanager
    def checking(self, check: Callable[[], None]) -> Iterator[None]:
        """Call `check` wherever a stage can stop while inside; it may raise.

        That is before each tensor that is read from disk, each forward of a step, and each block of the networks. Only
        for the thread that holds the lock: another one that uses a network meanwhile is not asked.
        """
        before, self._check = self._check, check
        try:
            yield
        finally:
            self._check = before
            if before is None:
                for part in self.parts.values():
                    part.forget_stops()

    @property
    def _watched(self) -> bool:
        return self._check is not None and not self.lock.held_elsewhere

    def check(self) -> None:
        """A moment at which the generation may stop: asks the `check` of `checking`, if there is one."""
        if self._check is not None and not self.lock.held_elsewhere:
            self._check()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the weight files, equal on every machine that has the same ones."""
        return weights.fingerprint(self.folder)

    def config(self, component: str) -> dict[str, Any]:
        """A diffusers component's configuration, with its class's defaults for what the file leaves out."""
        signature = inspect.signature(self.component_class(component).__init__)
        defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
        return {**defaults, **read_config(self, component)}


def _concrete_dtype(word: str, device: torch.device) -> torch.dtype:
    """The dtype a word stands for; auto: float32 on the CPU, bfloat16 where the GPU has it, else float16."""
    if word != "auto":
        return _DTYPES[word]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
