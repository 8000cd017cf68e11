"""Which tensor of which file goes where in a module, or why these files are not that module's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from wanlab.errors import WanlabError
from wanlab.weights._component import Component
from wanlab.weights._describe import architecture_of, words
from wanlab.weights._header import Header, read_header
from wanlab.weights._layouts import SPARE, Layout, Stored, component_of, recognise, shapes_of, stored_tensors

_OTHER = "The file belongs to another model or is incomplete: download it again with its config.json"
_COMPARED = {  # component -> arguments that a file tells for sure; a number of layers shows in keys that lack
    "transformer": (
        "in_channels out_channels ffn_dim text_dim freq_dim image_dim added_kv_proj_dim pos_embed_seq_len "
        "vace_in_channels"
    ).split(),
    "vae": "base_dim z_dim is_residual".split(),
    "text_encoder": "vocab_size d_model d_ff num_heads d_kv".split(),
    "image_encoder": "hidden_size intermediate_size patch_size image_size".split(),
}
_PACKED = re.compile(r"\.(qweight|absmax|weight_packed|quant_map|quant_state.*|wscales|weight_scale_2|_shift)$")

_WHOLE = frozenset("BOOL U8 I8 U16 I16 U32 I32 U64 I64 C64".split())
"""Number formats that become floats with a scale only, or never."""


@dataclass
class Opened:
    """A file, what it is, and its tensors."""

    header: Header
    layout: Layout
    tensors: list[Stored]


@dataclass
class Plan:
    """What is read of one file: its tensors in order, and the shapes of the module's tensors that they become."""

    header: Header
    wanted: list[Stored] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def open_files(component: Component) -> list[Opened]:
    """Gate and recognise every file. Raises WanlabError for unsound files, number formats that are not read, LoRAs."""
    opened = []
    for path in component.files:
        header = read_header(path, component.allow_pickle)
        layout = recognise(header)
        if layout.kind == "lora":
            raise WanlabError(f"{path} is a LoRA, not the weights of a network", remedy="Name it in the spec's loras")
        opened.append(Opened(header, layout, stored_tensors(header, layout)))
    return opened


def check_family(cls: type, component: Component, files: list[Opened]) -> None:
    """Raise WanlabError, before anything is built, for files whose shapes are not of the configured network.

    Says which network they look like, and every setting in which they differ.
    """
    known = [file for file in files if file.layout.kind != "unknown"]
    kinds = {file.layout.component for file in known}
    if len(kinds) != 1 or len(known) != len(files):
        return
    kind = kinds.pop()
    shapes = {name: shape for file in files for name, shape in shapes_of(file.tensors).items()}
    found, wanted = architecture_of(kind, shapes), _settings(cls, component.config)
    if not found or not wanted or not set(_COMPARED[kind]) & set(wanted):
        return
    if kind == "transformer" and "in_channels" not in found:
        raise WanlabError(
            f"{_place(files)} looks like {words(kind, shapes)}, a part of a network",
            remedy="Give it as a module, after the file of the network that it is laid over",
        )
    differ = {key: (found.get(key), wanted.get(key)) for key in _COMPARED[kind] if found.get(key) != wanted.get(key)}
    if kind != "transformer":  # shapes of a part tell less, and an absent argument says nothing
        differ = {key: pair for key, pair in differ.items() if pair[0] is not None}
    width = _width(kind, wanted)
    dim = shapes["patch_embedding.weight"][0] if width else None
    if width and dim != width:
        differ["dim"] = (dim, width)
    if differ:
        raise _other_model(files, words(kind, shapes), cls.__name__, differ)


def _other_model(files: list[Opened], like: str, kind: str, differ: Mapping[str, tuple[Any, Any]]) -> WanlabError:
    facts = ", ".join(f"{key} {have} instead of {want}" for key, (have, want) in differ.items())
    remedy = "Give the file of this model, or a definition of the model that the file is of"
    if differ.get("vace_in_channels", (0, 0))[0] is None:
        remedy = "Give the VACE module's file too, or the whole VACE file"
    return WanlabError(f"{_place(files)} looks like {like}; it does not fit this {kind}: {facts}", remedy=remedy)


def _width(kind: str, wanted: Mapping[str, Any]) -> int | None:
    heads, size = wanted.get("num_attention_heads"), wanted.get("attention_head_dim")
    return heads * size if kind == "transformer" and heads and size else None


def _settings(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its class's defaults for what it leaves out."""
    if hasattr(cls, "config_class"):
        try:
            return {**cls.config_class.from_dict(dict(config)).to_dict()}
        except (TypeError, ValueError, KeyError, AttributeError):
            return {}
    signature = inspect.signature(cls.__init__)
    return {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty} | dict(config)


def tied(module: nn.Module) -> dict[str, str]:
    """{target: source} of parameters that share memory, of which a file holds one or both."""
    return dict(getattr(module, "all_tied_weights_keys", None) or {})


def match(component: Component, files: list[Opened], module: nn.Module) -> list[Plan]:
    """What to read of each file. Raises `WanlabError` unless names and shapes agree with the module's."""
    state = module.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    kind = type(module).__name__
    _check_component(files, expected, kind)
    ignored = [SPARE, *map(re.compile, getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())]
    plans, extra = [], []
    for file in files:
        plan = Plan(file.header)
        for stored in file.tensors:
            names = tuple(_name(name, expected) for name in stored.names)
            unknown = [n for n in names if n not in expected]
            if not unknown:
                _check_shapes(file, stored, names, expected, kind)
                if stored.entry.dtype in _WHOLE and not stored.scale and state[names[0]].is_floating_point():
                    raise _no_floats(file, stored, kind)
                plan.wanted.append(Stored(stored.key, stored.entry, stored.scale, names))
                plan.shapes |= {name: expected[name] for name in names}
            elif not any(p.search(stored.key) for p in ignored):
                extra.append(stored.key)
        plans.append(plan)
    found = {name for plan in plans for name in plan.shapes}
    shared = {name for pair in tied(module).items() if found & set(pair) for name in pair}
    missing = [name for name in expected if name not in found | shared]
    if extra or missing:
        raise _unfit(files, kind, extra, (missing, len(expected)))
    return _later_wins(plans)


def pick(files: list[Opened], names: Iterable[str], kind: str) -> list[Plan]:
    """What to read for some tensors of a network, by their names in its module, with the shapes that the files have.

    Raises WanlabError for names that no file holds.
    """
    wanted, plans = dict.fromkeys(names), []
    for file in files:
        plan = Plan(file.header)
        for stored in file.tensors:
            if not wanted.keys() & set(stored.names):
                continue
            plan.wanted.append(stored)
            plan.shapes |= {name: stored.part_shape for name in stored.names if name in wanted}
        plans.append(plan)
    if missing := [name for name in wanted if not any(name in plan.shapes for plan in plans)]:
        raise _unfit(files, kind, [], (missing, len(wanted)))
    return _later_wins(plans)


def _later_wins(plans: list[Plan]) -> list[Plan]:
    """A tensor that several files hold is read from the last of them."""
    taken: set[str] = set()
    for plan in reversed(plans):
        plan.shapes = {name: shape for name, shape in plan.shapes.items() if name not in taken}
        plan.wanted = [stored for stored in plan.wanted if any(name in plan.shapes for name in stored.names)]
        taken |= set(plan.shapes)
    return plans


def _check_component(files: list[Opened], expected: Iterable[str], kind: str) -> None:
    wanted = component_of(expected)
    for file in files:
        held = file.layout.component
        if wanted and held and held != wanted:
            like = words(held, shapes_of(file.tensors)) or f"a {held.replace('_', ' ')}"
            raise WanlabError(
                f"{file.header.path} looks like {like}, and {kind} is a {wanted.replace('_', ' ')}",
                remedy=f"Give the file of the {wanted.replace('_', ' ')}",
            )


def _name(name: str, expected: Mapping[str, Any]) -> str:
    """The module's name of a name: files of CLIP start with `text_model.` or `vision_model.`, which transformers 5
    dropped from some classes and not from others."""
    if name in expected:
        return name
    for prefix in ("text_model.", "vision_model."):
        if (bare := name.removeprefix(prefix)) in expected:
            return bare
        if prefix + name in expected:
            return prefix + name
    return name


def _check_shapes(
    file: Opened, stored: Stored, names: tuple[str, ...], expected: Mapping[str, tuple[int, ...]], kind: str
) -> None:
    """Shapes are equal; original and GGUF files may differ in dimensions of 1 (biases as (1, C, 1, 1))."""
    free = file.layout.kind not in ("diffusers", "transformers", "unknown") or file.header.kind == "gguf"
    have = stored.part_shape
    whole = not stored.entry.shape or stored.entry.shape[0] % len(names) == 0
    for name in names:
        want = expected[name]
        if whole and (have == want or (free and [n for n in have if n != 1] == [n for n in want if n != 1])):
            continue
        raise WanlabError(f"{file.header.path}: {stored.key} has shape {have}, {kind} needs {want}", remedy=_OTHER)


def _no_floats(file: Opened, stored: Stored, kind: str) -> WanlabError:
    return WanlabError(
        f"{file.header.path}: {stored.key} is {stored.entry.dtype} without a scale, and {kind} needs floats",
        remedy="Use its 16-bit, scaled fp8, quanto int8 or GGUF file",
    )


def _unfit(files: list[Opened], kind: str, extra: list[str], missing: tuple[list[str], int]) -> WanlabError:
    lacking, total = missing
    parts = []
    if lacking:
        parts.append(f"lacks {len(lacking)} of {total} tensors of {kind}: {_first(lacking)}")
    if extra:
        parts.append(f"holds {len(extra)} that {kind} does not have: {_first(extra)}")
    return WanlabError(f"{_place(files)} {' and '.join(parts)}", remedy=_cause(files, extra, lacking, total))


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cause(files: list[Opened], extra: list[str], missing: list[str], total: int) -> str:
    """What probably happened, and what to do."""
    shapes = {name: shape for file in files for name, shape in shapes_of(file.tensors).items()}
    if any(_PACKED.search(key) for key in extra):
        return "It is stored in a quantised form that is not read: use its 16-bit, scaled fp8, quanto int8 or GGUF file"
    if missing and all(name.startswith(("vace_blocks.", "vace_patch_embedding.")) for name in missing):
        return "It is the base network alone: give the VACE module's file too, or the whole VACE file"
    if extra and missing and len(missing) == total:
        return "No name agrees: it is another network, or in a layout that is not known. Give the diffusers form"
    like = words(files[0].layout.component, shapes)
    looks = f"It looks like {like}. " if like else ""
    if missing and not extra and len(files) == 1:
        return f"{looks}The file may be one shard of several, or another checkpoint's: give all shards with their index"
    return f"{looks}{_OTHER}"


def _place(files: list[Opened]) -> str:
    paths = [file.header.path for file in files]
    return str(paths[0] if len(paths) == 1 else paths[0].parent)
