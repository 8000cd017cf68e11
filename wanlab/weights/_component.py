"""What one network is built and filled from: its files and its configuration. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanlab.catalog import INDEX_BYTES
from wanlab.errors import WanlabError
from wanlab.files import read_json
from wanlab.weights._header import PICKLES, Header, read_header

_PLAIN = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Component:
    """One network's weights and configuration."""

    name: str
    """transformer, vae, text_encoder, ..."""
    files: tuple[Path, ...]
    """All shards, then the files of modules that are laid over them: of two tensors with one name the later wins."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class, or what its config.json holds."""
    place: Path = Path()
    """Where the configuration is from, for messages."""
    allow_pickle: bool = False
    """Whether files of torch.save are read, by the reader that runs no code from them."""

    @property
    def num_bytes(self) -> int:
        """Size of its files, 0 for those that are gone."""
        return sum(file.stat().st_size for file in self.files if file.is_file())


def component_in(folder: Path, name: str) -> Component:
    """A component of a folder in diffusers layout.

    Raises WanlabError that names the file, the reason and the remedy: no weights, a missing shard, only a pickle, no
    config.json.
    """
    place = folder / name
    files = tuple(files_of(place))
    config = place / "config.json"
    return Component(name, files, read_json(config, INDEX_BYTES), config)


def check_folder(folder: Path, component: str) -> dict[Path, Header]:
    """Gate a component's weight files: {file: its header}, all shards of an index included.

    Reads headers only. Raises `WanlabError` that names the file, the reason and the remedy: a missing folder or
    shard, a pickle, a truncated file, an HTML page, a git-lfs pointer, an empty file.
    """
    return {file: read_header(file) for file in files_of(folder / component)}


def files_of(place: Path) -> list[Path]:
    """The weight files of a component: a folder, the index of its shards, or one file."""
    if place.name.endswith(".index.json"):
        return shards(place)
    if place.is_file():
        return [place]
    index = next(iter(sorted(place.glob("*.safetensors.index.json"))), None)
    return shards(index) if index else _single(place)


def shards(index: Path) -> list[Path]:
    """The files that an index names. Raises WanlabError for one that is missing, or lies outside the index's folder."""
    if absent := absent_shards(index):
        raise WanlabError(f"{absent[0]} is missing: {index.name} names it", remedy="Download this shard too")
    return _named(index)


def absent_shards(index: Path) -> list[Path]:
    """The files that an index names and that are not there. Raises WanlabError for an index that is not sound."""
    return [file for file in _named(index) if not file.is_file()]


def _named(index: Path) -> list[Path]:
    table = read_json(index, INDEX_BYTES)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise WanlabError(f"{index} maps no tensor to a file", remedy="Download this file again")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file in files:
        if file.parent != index.parent or file.name in ("", ".."):
            raise WanlabError(f"{index} names {file.name!r}, a file outside its folder", remedy="Do not use this file")
    return files


def _single(place: Path) -> list[Path]:
    files = sorted(place.glob("*.safetensors"))
    plain = [f for f in files if f.name in _PLAIN]
    if len(plain or files) == 1:
        return plain or files
    if files:
        names = ", ".join(f.name for f in files)
        raise WanlabError(f"{place} holds {names} and no index", remedy="Keep one of them, or add the index of shards")
    pickles = sorted(f for f in place.glob("*") if f.suffix in PICKLES)
    if pickles:
        raise WanlabError(
            f"{pickles[0]} is a pickle, which can run any code when it is read; wanlab refuses it",
            remedy="Download the safetensors file, or convert this one on a machine you can lose",
        )
    raise WanlabError(f"{place} holds no safetensors file", remedy="Download the component's weights into this folder")
