"""Modules from weight files: matched by name and shape before a byte of a tensor is read, filled as the disk reads."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from wanlab.errors import WanlabError
from wanlab.weights._component import Component, component_in
from wanlab.weights._expand import expand
from wanlab.weights._header import Entry, Header
from wanlab.weights._layouts import Stored
from wanlab.weights._match import Plan, check_family, match, open_files, pick, tied
from wanlab.weights._read import read_tensors

Module = TypeVar("Module", bound=nn.Module)


def _go_on() -> None:
    """The check of a caller who has none."""


def load_module(
    cls: type[Module],
    folder: Path,
    component: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = _go_on,
) -> Module:
    """Build `cls` from `folder/component` in diffusers layout; equal to `cls.from_pretrained`. See `load_component`."""
    return load_component(cls, component_in(folder, component), dtype, device, check)


def load_component(
    cls: type[Module],
    component: Component,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = _go_on,
    into: Module | None = None,
) -> Module:
    """Build `cls` with the component's weights, in eval mode; or fill `into`, a module that `unload` emptied.

    Each file's layout is recognised by its header. Tensors go straight to `device`, are renamed and expanded there,
    and cast to `dtype`, except those that the class keeps in float32. Buffers that are not in the file (RoPE tables)
    stay float32. `check` is called before each tensor and may raise to stop; nothing stays in memory then.
    Raises `WanlabError` for files that do not pass the gate, another model's weights, tensors that are missing,
    unexpected or of another shape, and values that are NaN or infinite.
    """
    try:
        return _load(cls, component, dtype, torch.device(device), check, into)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # who keeps the error must not keep gigabytes
        raise


def load_tensors(
    cls: type[nn.Module],
    component: Component,
    names: Sequence[str],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = _go_on,
) -> dict[str, torch.Tensor]:
    """Some tensors of a component by their names in `cls`, equal to those that `load_component` puts there.

    Nothing else of the files is read and nothing is built. Raises WanlabError as it does, and for names that the files
    do not hold.
    """
    files = open_files(component)
    check_family(cls, component, files)
    plans, kept = pick(files, names, cls.__name__), _kept_in_float32(cls, dtype)
    return {name: tensor for plan in plans for name, tensor in _read(plan, dtype, kept, torch.device(device), check)}


def _load(
    cls: type[Module],
    component: Component,
    dtype: torch.dtype,
    device: torch.device,
    check: Callable[[], None],
    into: Module | None,
) -> Module:
    files = open_files(component)
    check_family(cls, component, files)
    module = into if into is not None else _build(cls, component)
    plans = match(component, files, module)
    kept = _kept_in_float32(module, dtype)
    state: dict[str, torch.Tensor] = {}
    bounds: dict[str, torch.Tensor] = {}
    for plan in plans:
        for name, tensor in _read(plan, dtype, kept, device, check):
            state[name] = tensor
            if tensor.is_floating_point() and tensor.numel():  # on the device, while the next are read
                bounds[name] = torch.stack(torch.aminmax(tensor)).float()
    check()
    _refuse_nan(bounds, {name: plan.header.path for plan in plans for name in plan.shapes})
    _assign(module, state)
    return module.to(device).eval().requires_grad_(False)


def loaded_bytes(cls: type[nn.Module], component: Component, dtype: torch.dtype) -> int:
    """Bytes that a network's parameters take in memory, by its configuration alone; tied ones count once."""
    module = _build(cls, component)
    kept = _kept_in_float32(module, dtype)
    sizes = (torch.float32 if kept & set(name.split(".")) else dtype for name, _ in module.named_parameters())
    return sum(p.numel() * size.itemsize for p, size in zip(module.parameters(), sizes, strict=True))


def _read(
    plan: Plan, dtype: torch.dtype, kept: set[str], device: torch.device, check: Callable[[], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the module, tensor) of all that a file gives."""
    for stored, raw, factor in _stored(plan.header, plan.wanted, device, check):
        wanted = torch.float32 if kept & set(stored.names[0].split(".")) else dtype
        value = expand(stored.entry.dtype, stored.entry.shape, raw, factor, wanted)
        parts = [value] if len(stored.names) == 1 else [part.clone() for part in value.chunk(len(stored.names))]
        for name, part in zip(stored.names, parts, strict=True):
            if name in plan.shapes:
                yield name, part.view(plan.shapes[name])


def _stored(
    header: Header, wanted: list[Stored], device: torch.device, check: Callable[[], None]
) -> Iterator[tuple[Stored, torch.Tensor, torch.Tensor | None]]:
    """(tensor, its bytes, what they are multiplied by), factors read first: they are small, and one for each layer."""
    by_key = {stored.key: stored for stored in wanted}
    scales = {stored.scale: header.entries[stored.scale] for stored in wanted if stored.scale}
    factors: dict[str, torch.Tensor] = {}
    places = {**scales, **{stored.key: stored.entry for stored in wanted}}
    for key, raw in _bytes(header, places, device, check):
        if key in scales:
            entry = scales[key]
            factors[key] = expand(entry.dtype, entry.shape, raw, None, None)
            continue
        stored = by_key[key]
        yield stored, raw, factors.pop(stored.scale) if stored.scale else None
        del raw


def _bytes(
    header: Header, places: Mapping[str, Entry], device: torch.device, check: Callable[[], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    if header.tensors is None:
        triples = [(key, entry.begin, entry.end) for key, entry in places.items()]
        yield from read_tensors(header.path, triples, device, check)
        return
    for key in places:
        check()
        yield key, header.tensors[key].contiguous().to(device, copy=True).view(-1).view(torch.uint8)


def _assign(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    pairs = tied(module)
    for target, source in pairs.items():
        if source not in state and target in state:
            state[source] = state[target]
    module.load_state_dict(state, strict=False, assign=True)
    if pairs:
        module.tie_weights()  # type: ignore[operator]
    left = [name for name, tensor in _all_tensors(module) if tensor.is_meta]
    assert not left, f"{type(module).__name__} makes {left[:3]} with torch.empty and the file does not hold them"


class _EmptyOnMeta(TorchFunctionMode):
    """Layers allocate parameters with `torch.empty`: those take no memory; computed tables (RoPE) stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _build(cls: type[Module], component: Component) -> Module:
    config = dict(component.config)
    try:
        with _EmptyOnMeta():
            if hasattr(cls, "config_class"):  # transformers
                return cls(cls.config_class.from_dict(config))
            return cls.from_config(config)  # type: ignore[attr-defined,no-any-return]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WanlabError(
            f"{component.place} does not describe a {cls.__name__}: {str(error).strip().split(chr(10))[0][:200]}",
            remedy="Download config.json again from the checkpoint's source, or correct the definition's architecture",
        ) from error


def _kept_in_float32(module: nn.Module | type[nn.Module], dtype: torch.dtype) -> set[str]:
    """Parts of parameter names that stay float32; transformers asks for it in float16 only, diffusers always."""
    names = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if hasattr(module, "config_class") and dtype != torch.float16:
        names = set()
    return names | set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())


def _refuse_nan(bounds: Mapping[str, torch.Tensor], files: Mapping[str, Path]) -> None:
    """Raise `WanlabError` naming the first tensor whose (smallest, largest) value is no number; one sync."""
    if not bounds:
        return
    good = torch.stack(list(bounds.values())).isfinite().all(dim=1).tolist()
    bad = [key for key, fine in zip(bounds, good, strict=True) if not fine]
    if bad:
        raise WanlabError(
            f"{files[bad[0]]}: {bad[0]} holds NaN or infinity ({len(bad)} tensors do)",
            remedy="The file is damaged, or its numbers do not fit this dtype: download it again or load in float32",
        )


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def unload(module: nn.Module) -> None:
    """Give back the memory of a module's parameters: tensors without storage take their places.

    The module, its hooks, its attributes and its buffers stay, and so does every reference to it; `load_component`
    with `into` fills it again.
    """
    empty: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                meta = torch.empty_like(parameter, device="meta")
                part._parameters[name] = empty.setdefault(
                    id(parameter), nn.Parameter(meta, requires_grad=parameter.requires_grad)
                )
