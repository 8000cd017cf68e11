"""Weights: find a checkpoint's folder, check every file before it is read, load modules.

Files are recognised by their header, never by their name; only safetensors are read, a pickle is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from wanlab.catalog import INDEX_BYTES, Definition, candidates, missing_files
from wanlab.errors import WanlabError
from wanlab.files import header_gate, read_json
from wanlab.workspace import Workspace, find_workspace

Module = TypeVar("Module", bound=nn.Module)
Header = dict[str, Any]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_EDGE = 1 << 16  # bytes at both ends of a file that enter the fingerprint
_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}  # formats that need no scale
_OTHER_MODEL = "The file belongs to another model or is incomplete: download it again with its config.json"


def locate(definition: Definition, workspace: Workspace | None = None) -> Path:
    """The folder, in diffusers layout, that holds all of the definition's files.

    Looks at the shipped asset, the definition's folder, the workspace's checkpoint paths and the hub's cache; then
    downloads from the hub, unless HF_HUB_OFFLINE is set. Raises one `WanlabError` that names the missing files,
    their source and the folder to put them in.
    """
    workspace = workspace or find_workspace()
    reasons = []
    for folder in candidates(definition, workspace):
        missing = missing_files(definition, folder)
        if not missing:
            return folder
        if folder.is_dir():
            reasons.append(f"{folder} lacks {', '.join(missing)}")
    if definition.weights.repo is not None:
        folder, reason = _download(definition)
        if folder is not None:
            return folder
        reasons.append(reason)
    raise _nowhere(definition, workspace, reasons)


def _download(definition: Definition) -> tuple[Path | None, str]:
    """The hub's snapshot, or None and why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode

    source = definition.weights
    assert source.repo is not None
    if is_offline_mode():
        return None, "the hub is not asked because HF_HUB_OFFLINE is set"
    patterns = [*source.files] + [f"{p}.index.json" for p in source.files if p.endswith(".safetensors")]
    try:
        folder = Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns or None))
    except (OSError, ValueError, RuntimeError) as error:  # no network, gated, no such revision, disk full
        return None, f"{source.repo} could not be downloaded ({type(error).__name__}: {_first_line(error)})"
    missing = missing_files(definition, folder)
    return (None, f"{source.repo} holds no {', '.join(missing)}") if missing else (folder, "")


def _nowhere(definition: Definition, workspace: Workspace, reasons: list[str]) -> WanlabError:
    source = definition.weights
    files = ", ".join(source.files or ("model_index.json",))
    roots = list(workspace.checkpoints)
    target = (
        Path(source.folder) if source.folder else (Path(roots[0]) if roots else Path("checkpoints")) / definition.id
    )
    origin = f"https://huggingface.co/{source.repo}" if source.repo else f"the place {definition.id} came from"
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return WanlabError(
        f"The weights of {definition.id} are not on this machine{why}. Files: {files}",
        remedy=f"Put these files from {origin} into {target}, or connect to the network and load again",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


def check_folder(folder: Path, component: str) -> dict[Path, Header]:
    """Gate a component's weight files: {file: safetensors header}, all shards of an index included.

    Reads headers only. Raises `WanlabError` that names the file, the reason and the remedy: a missing folder or
    shard, a pickle, a truncated file, an HTML page, a git-lfs pointer, an empty file.
    """
    place = folder / component
    index = next(iter(sorted(place.glob("*.safetensors.index.json"))), None)
    files = _shards(index) if index else _single(place)
    return {file: header_gate(file) for file in files}


def _shards(index: Path) -> list[Path]:
    table = read_json(index, INDEX_BYTES)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise WanlabError(f"{index} maps no tensor to a file", remedy="Download this file again")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file in files:
        if file.parent != index.parent or file.name in ("", ".."):
            raise WanlabError(f"{index} names {file.name!r}, a file outside its folder", remedy="Do not use this file")
        if not file.is_file():
            raise WanlabError(f"{file} is missing: {index.name} names it", remedy="Download this shard too")
    return files


def _single(place: Path) -> list[Path]:
    files = sorted(place.glob("*.safetensors"))
    plain = [f for f in files if f.name in ("diffusion_pytorch_model.safetensors", "model.safetensors")]
    if len(plain or files) == 1:
        return plain or files
    if files:
        names = ", ".join(f.name for f in files)
        raise WanlabError(f"{place} holds {names} and no index", remedy="Keep one of them, or add the index of shards")
    pickles = sorted(f for f in place.glob("*") if f.suffix in _PICKLES)
    if pickles:
        raise WanlabError(
            f"{pickles[0]} is a pickle, which can run any code when it is read; wanlab refuses it",
            remedy="Download the safetensors file, or convert this one on a machine you can lose",
        )
    raise WanlabError(f"{place} holds no safetensors file", remedy="Download the component's weights into this folder")


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
    """Build `cls` from `folder/component` with its weights, in eval mode; equal to `cls.from_pretrained`.

    Parameters are made without memory, filled straight from the files and cast to `dtype`, except those that the
    class keeps in float32. Buffers that are not in the file (RoPE tables) stay float32. `check` is called before each
    tensor is read and may raise to stop; nothing stays in memory then.
    Raises `WanlabError` for files that do not pass the gate, and for keys that are missing, unexpected or of another
    shape, values that are NaN or infinite, and numbers of another format (8 bits).
    """
    headers = check_folder(folder, component)
    with _EmptyOnMeta():
        module = _build(cls, folder / component)
    names = _match(headers, module)
    kept = _kept_in_float32(module, dtype)
    state: dict[str, torch.Tensor] = {}
    for file in headers:
        for name, tensor in _tensors(file, names[file], dtype, kept, device):
            check()
            state[name] = tensor
    check()
    _refuse_nan(state, {name: file for file in headers for name in names[file].values()})
    for target, source in _tied(module).items():
        if source not in state and target in state:
            state[source] = state[target]
    module.load_state_dict(state, strict=False, assign=True)
    if _tied(module):
        module.tie_weights()  # type: ignore[operator]
    left = [name for name, tensor in _all_tensors(module) if tensor.is_meta]
    assert not left, f"{cls.__name__} makes {left[:3]} with torch.empty and the file does not hold them"
    return module.to(device).eval().requires_grad_(False)


class _EmptyOnMeta(TorchFunctionMode):
    """Layers allocate parameters with `torch.empty`: those take no memory; computed tables (RoPE) stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _build(cls: type[Module], place: Path) -> Module:
    config = read_json(place / "config.json", INDEX_BYTES)
    try:
        if hasattr(cls, "config_class"):  # transformers
            return cls(cls.config_class.from_dict(config))
        return cls.from_config(config)  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WanlabError(
            f"{place / 'config.json'} does not describe a {cls.__name__}: {_first_line(error)}",
            remedy="Download config.json again from the checkpoint's source",
        ) from error


def _tied(module: nn.Module) -> dict[str, str]:
    """{target: source} of parameters that share memory, of which a file holds one or both."""
    return dict(getattr(module, "all_tied_weights_keys", None) or {})


def _match(headers: dict[Path, Header], module: nn.Module) -> dict[Path, dict[str, str]]:
    """{file: {key in the file: name in the module}}. Raises `WanlabError` unless names, shapes and formats agree."""
    expected, kind = module.state_dict(), type(module).__name__
    ignored = [re.compile(p) for p in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()]
    names: dict[Path, dict[str, str]] = {file: {} for file in headers}
    for file, header in headers.items():
        for key, entry in header.items():
            name = _name(key, expected)
            if key == "__metadata__" or (name not in expected and any(p.search(key) for p in ignored)):
                continue
            if name not in expected:
                raise WanlabError(f"{file} holds {key}, which {kind} does not have", remedy=_OTHER_MODEL)
            _check_entry(f"{file}: {key}", entry, tuple(expected[name].shape), kind)
            names[file][key] = name
    found = {name for table in names.values() for name in table.values()}
    shared = {name for pair in _tied(module).items() if found & set(pair) for name in pair}
    missing = sorted(set(expected) - found - shared)
    if missing:
        place = next(iter(headers)) if len(headers) == 1 else next(iter(headers)).parent
        count = f"{len(missing)} of {len(expected)} tensors of {kind}, the first is {missing[0]}"
        raise WanlabError(f"{place} lacks {count}", remedy=_OTHER_MODEL)
    return names


def _name(key: str, expected: dict[str, Any]) -> str:
    """The module's name of a file's key: CLIP files start keys with `text_model.`, which transformers 5 dropped."""
    return key if key in expected else key.removeprefix("text_model.")


def _check_entry(place: str, entry: Any, want: tuple[int, ...], kind: str) -> None:
    if tuple(entry["shape"]) != want:
        raise WanlabError(f"{place} has shape {tuple(entry['shape'])}, {kind} needs {want}", remedy=_OTHER_MODEL)
    if entry["dtype"] not in _READABLE:
        remedy = "Use the 16- or 32-bit file of this checkpoint"
        raise WanlabError(f"{place} is stored as {entry['dtype']}, which is not read yet", remedy=remedy)


def _kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Parts of parameter names that stay float32; transformers asks for it in float16 only, diffusers always."""
    names = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if hasattr(module, "config_class") and dtype != torch.float16:
        names = set()
    return names | set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())


def _tensors(
    file: Path, names: dict[str, str], dtype: torch.dtype, kept: set[str], device: torch.device | str
) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt", device=str(device)) as data:
        for key, name in names.items():
            tensor = data.get_tensor(key)
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32 if kept & set(name.split(".")) else dtype)
            yield name, tensor


def _refuse_nan(state: dict[str, torch.Tensor], files: dict[str, Path]) -> None:
    """Raise `WanlabError` naming the first tensor that holds NaN or infinity; reads each tensor once, one sync."""
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point() and tensor.numel()}
    if not floats:
        return
    bounds = torch.stack([torch.stack(torch.aminmax(tensor)).float() for tensor in floats.values()])
    good = bounds.isfinite().all(dim=1).tolist()
    bad = [key for key, fine in zip(floats, good, strict=True) if not fine]
    if bad:
        raise WanlabError(
            f"{files[bad[0]]}: {bad[0]} holds NaN or infinity ({len(bad)} tensors do)",
            remedy="The file is damaged, or its numbers do not fit this dtype: download it again or load in float32",
        )


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def fingerprint(folder: Path) -> str:
    """16 hex digits that tell one checkpoint folder from another: headers, sizes and edges of its files.

    Reads at most the header and 64 kB at both ends of each file, so 30 GB cost a few milliseconds; the folder's own
    place does not enter. A change in the middle of a file that keeps its size is not seen.
    """
    digest = hashlib.sha256()
    kinds = {".safetensors", ".json", ".model", ".txt"}
    files = [p for p in folder.rglob("*") if p.suffix in kinds and p.is_file() and not _hidden(p.relative_to(folder))]
    for file in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as data:
            head = data.read(8)
            header = int.from_bytes(head, "little") if file.suffix == ".safetensors" else 0
            digest.update(head + data.read(min(header, 100_000_000) + _EDGE))
            data.seek(max(0, file.stat().st_size - _EDGE))
            digest.update(data.read())
    return digest.hexdigest()[:16]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
