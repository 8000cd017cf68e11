"""The networks of a loaded checkpoint: parts by name, read when they are first used, and where a stage may stop."""

from __future__ import annotations

import abc
import functools
import html
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from wanlab import weights
from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.models._folder import EXPERTS, check_architecture, read_index
from wanlab.models._parts import ModelPart
from wanlab.registry import late
from wanlab.sites import RunLock, Streams
from wanlab.weights import Checkpoint, Component

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_site_names = late("wanlab.probe", "names")  # which knows what of a site can be measured
Unload = Literal["keep", "switch", "after_use"]


class Networks(abc.ABC):
    """The parts of a model, in the dtypes of its spec, on its device."""

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """The diffusers pipelines whose folders this family reads, as model_index.json names them."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    outputs: ClassVar[tuple[str, ...]] = ("video",)
    """Token streams that are read after the last block."""
    optional_encoders: ClassVar[tuple[str, ...]] = ()
    """Encoders that only some checkpoints of the family have."""
    cache_signal: ClassVar[Literal["", "time", "content"]] = ""
    """What tells how far the blocks' output moves (TeaCache): the time embedding alone, so that `time_embeddings` knows
    it before a run; the tokens too, which `modulated_input` gives at each forward; or nothing that is known."""

    def __init__(self, definition: Definition, checkpoint: Checkpoint, device: torch.device, chosen: Any) -> None:
        self.definition = definition
        self.id = definition.id
        self.constants: Mapping[str, Any] = definition.constants
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = _concrete_dtype(chosen.dtype, device)
        self.vae_dtype = _concrete_dtype(chosen.vae_dtype, device)
        self.lock = RunLock()
        self.index = read_index(type(self), definition, checkpoint)
        self.experts_present = tuple(name for name in EXPERTS if name in self.index)
        encoders = (*self.encoders, *(name for name in self.optional_encoders if name in self.index))
        self.parts = {name: self._part(name) for name in (*encoders, *self.experts_present, "vae")}
        check_architecture(self)
        self._check: Callable[[], None] | None = None
        self._unload: Unload = "keep"

    @classmethod
    @abc.abstractmethod
    def component_class(cls, component: str) -> Any:
        """The diffusers or transformers class of a component."""

    @abc.abstractmethod
    def pieces(self, prompt: str) -> list[str]:
        """The prompt's tokens as text, in the order in which attention reads them, before they are cut."""

    def _part(self, name: str) -> ModelPart:
        dtype = self.vae_dtype if name == "vae" else self.dtype
        cls = self.component_class(name)
        component = self._component(name)
        if self.is_described:
            return ModelPart(component, dtype, functools.partial(_refuse, self.id, name))
        load = functools.partial(weights.load_component, cls, component, dtype, self.device, self.check)
        return ModelPart(component, dtype, load)

    @property
    def is_described(self) -> bool:
        """Whether it was made by `describe`, without weights: whatever needs a network raises WanlabError."""
        return self.checkpoint.folder is None and not any(c.files for c in self.checkpoint.components.values())

    def _component(self, name: str) -> Component:
        """Files and configuration of a part. Raises WanlabError for a configuration that is no object."""
        folder = self.checkpoint.folder
        found = self.checkpoint.components[name] if folder is None else weights.component_in(folder, name)
        if not isinstance(found.config, Mapping):
            raise WanlabError(f"{found.place} holds no JSON object", remedy="Download this file again")
        return found

    def side_folder(self, name: str) -> Path | None:
        """The folder of what is no network (tokenizer, image_processor); None where the checkpoint has none."""
        if self.is_described:
            _refuse(self.id, name)
        folder = self.checkpoint.tokenizers.get(name)
        if folder is None and self.checkpoint.folder is not None:
            folder = self.checkpoint.folder / name
        return folder if folder is not None and folder.is_dir() else None

    @contextmanager
    def resident(self, name: str) -> Iterator[Any]:
        """The named network, on the model's device while inside; before, others leave if `unloading` says so."""
        if name not in self.parts:
            raise WanlabError(f"{self.id} has no part {name!r}", choices=self.parts)
        if self._unload == "switch":
            self.unload(*(other for other in self.parts if other != name))
        part = self.parts[name]
        if self._watched and name not in self.experts_present:  # experts stop in their stack, outside compiled blocks
            part.stop_at_blocks(self.check)
        yield part.module

    @contextmanager
    def unloading(self, policy: Unload) -> Iterator[None]:
        """Inside, networks leave the device by a policy, and come back with the same bits when they are needed.

        keep: they stay. switch: when another one is needed. after_use: at the end. What is attached to them stays.
        """
        before, self._unload = self._unload, policy
        try:
            yield
        finally:
            self._unload = before
            if policy == "after_use":
                self.unload()

    def unload(self, *names: str) -> None:
        """Give back the memory of the named parts' weights, of all without names."""
        for name in names or self.parts:
            self.parts[name].unload()

    def sites(self, pattern: str = "*") -> list[str]:
        """What `probe.record` can record, by name; those that match, e.g. "blocks.0.*". Reads the experts' networks.

        "blocks.3.out" is a quantity of a block, "blocks.3.self.entropy" of an attention, "stack.ratio" of all blocks
        together. Raises WanlabError for a pattern that matches nothing.
        """
        listed: list[str] = _site_names(self, pattern)
        return listed

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

    # What caches look at

    def time_embeddings(self, timesteps: Tensor, expert: str, *, projected: bool = False) -> Tensor:
        """The network's embedding of timesteps (N,): (N, D) float32 on the CPU; projected: its modulation of a block.

        Reads only those tensors of the checkpoint and builds no network.
        """
        raise NotImplementedError(f"cache_signal of {type(self).__name__} is {self.cache_signal!r}")

    def modulated_input(self, streams: Streams, expert: str) -> Tensor:
        """The tokens as the first block's attention reads them, (B, L, D): normalised and modulated by the timestep."""
        raise NotImplementedError(f"cache_signal of {type(self).__name__} is {self.cache_signal!r}")

    @functools.cached_property
    def stored_as(self) -> str:
        """How the (first) transformer's linear weights are stored on the disk: float, int8, fp8 or gguf."""
        files = self.parts[self.experts_present[0]].component.files
        kinds = {weights.recognise(weights.read_header(file)).stored_as for file in files}
        return next((kind for kind in kinds if kind != "float"), "float")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the weight files, equal on every machine that has the same ones."""
        if self.is_described:
            _refuse(self.id, "fingerprint")
        return self.checkpoint.fingerprint()

    def config(self, component: str) -> dict[str, Any]:
        """A diffusers component's configuration, with its class's defaults for what the file leaves out."""
        signature = inspect.signature(self.component_class(component).__init__)
        defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
        return {**defaults, **self.parts[component].component.config}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.device}, {_word(self.dtype)})"

    def _repr_html_(self) -> str:
        title = html.escape(self.definition.title or self.id)
        rows = "".join(
            f'<tr><td style="text-align:left">{html.escape(p.name)}</td>'
            f"<td>{p.num_bytes / 1e6:,.1f} MB</td>"
            f"<td>{'loaded' if p.loaded else 'described' if self.is_described else 'on disk'}</td></tr>"
            for p in self.parts.values()
        )
        return f"<b>{title}</b> ({html.escape(self.id)}) on {self.device}, {_word(self.dtype)}<table>{rows}</table>"


def _refuse(model: str, what: str, into: Any = None) -> NoReturn:
    raise WanlabError(
        f"{model} is described only: its weights are not loaded, so it has no {what}",
        remedy=f"wanlab.load({model!r}) makes a model that runs",
    )


def _concrete_dtype(word: str, device: torch.device) -> torch.dtype:
    """The dtype a word stands for; auto: float32 on the CPU, bfloat16 where the GPU has it, else float16."""
    if word != "auto":
        return _DTYPES[word]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
