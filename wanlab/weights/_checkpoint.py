"""All files of one model, found on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wanlab.weights._component import Component, component_in

_EDGE = 1 << 16  # bytes at both ends of a file that enter the fingerprint
_MAX_HEADER = 100_000_000
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json")
_KINDS = {".safetensors", ".json", ".model", ".txt"}


@dataclass(frozen=True)
class Checkpoint:
    """One model's files: its networks by component, its tokenizers by name."""

    id: str
    components: Mapping[str, Component]
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    """Folder of each tokenizer."""
    folder: Path | None = None
    """The whole folder in diffusers layout; None for a model that is gathered from single files."""

    def fingerprint(self) -> str:
        """16 hex digits that tell these weights from others: headers, sizes, edges, and what is made of them.

        Of a folder equal to `fingerprint(folder)`; of single files their names and places do not enter.
        """
        if self.folder is not None:
            return fingerprint(self.folder)
        digest = hashlib.sha256()
        for name, component in sorted(self.components.items()):
            digest.update(f"{name}\0{json.dumps(dict(component.config), sort_keys=True, default=str)}\0".encode())
            for file in component.files:
                _add(digest, file)
        for name, folder in sorted(self.tokenizers.items()):
            digest.update(f"{name}\0".encode())
            for file in sorted(f for f in folder.glob("*") if f.name in _TOKENIZER):
                digest.update(f"{file.name}\0".encode())
                _add(digest, file)
        return digest.hexdigest()[:16]


class FolderComponents(Mapping[str, Component]):
    """Components of a folder in diffusers layout; one is looked at when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Component:
        if not (self._folder / name).is_dir():
            raise KeyError(name)
        return component_in(self._folder, name)

    def __iter__(self) -> Iterator[str]:
        return (p.name for p in sorted(self._folder.glob("*")) if (p / "config.json").is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def checkpoint_in(name: str, folder: Path) -> Checkpoint:
    """The checkpoint of a whole folder in diffusers layout."""
    tokenizers = {p.name: p for p in sorted(folder.glob("tokenizer*")) if p.is_dir()}
    return Checkpoint(name, FolderComponents(folder), tokenizers, folder)


def fingerprint(folder: Path) -> str:
    """16 hex digits that tell one checkpoint folder from another: headers, sizes and edges of its files.

    Reads at most the header and 64 kB at both ends of each file, so 30 GB cost a few milliseconds; the folder's own
    place does not enter. A change in the middle of a file that keeps its size is not seen.
    """
    digest = hashlib.sha256()
    files = [p for p in folder.rglob("*") if p.suffix in _KINDS and p.is_file() and not _hidden(p.relative_to(folder))]
    for file in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        _add(digest, file)
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{size}\0".encode())
    with file.open("rb") as data:
        head = data.read(8)
        header = int.from_bytes(head, "little") if file.suffix == ".safetensors" else 0
        digest.update(head + data.read(min(header, _MAX_HEADER) + _EDGE))
        data.seek(max(0, size - _EDGE))
        digest.update(data.read())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
