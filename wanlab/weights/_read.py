"""Bytes of many tensors from a file to a device, as fast as the disk gives them and in little host memory.

A few threads read large pieces of the file in order. For a GPU they fill pinned buffers, whose copies run while the
next pieces are read; on the CPU they fill the tensors themselves. Nothing is mapped: pages of a mapped file count as
memory of the process, and faults bring them in small steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wanlab.errors import WanlabError

CHUNK = 64 << 20
"""Bytes of one read."""
THREADS = 4
"""Reads at a time; one buffer more is being copied. See experiments/loading."""
_PIECES = 4096  # tensors of one read


@dataclass
class _Target:
    """A tensor on its way: `left` bytes are still to come."""

    key: str
    begin: int
    end: int
    left: int
    tensor: Tensor | None = None


@dataclass
class _Chunk:
    """Consecutive bytes of the file, and where they go: (target, its first byte of these, count)."""

    begin: int
    pieces: list[tuple[_Target, int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(count for _, _, count in self.pieces)


def read_tensors(
    path: Path,
    places: Sequence[tuple[str, int, int]],
    device: torch.device,
    check: Callable[[], None],
    *,
    staged: bool | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(key, bytes as a 1-D uint8 tensor on `device`) of each (key, first byte, end), in the order given.

    `check` is called before each read and each tensor; it may raise to stop, and the reads that are under way end
    first. `staged` reads through buffers, by default for devices that are not the CPU.
    Raises WanlabError if the file ends early or cannot be read.
    """
    staged = device.type != "cpu" if staged is None else staged
    chunks = deque(_chunks(places))
    source = (_Staged if staged else _Direct)(path, device)
    waiting: deque[tuple[_Chunk, Any, Future[None]]] = deque()
    with ThreadPoolExecutor(THREADS, "wanlab-read") as pool:
        try:
            while chunks or waiting:
                while chunks and len(waiting) < THREADS:
                    check()
                    chunk = chunks.popleft()
                    _allocate(chunk, device)
                    buffer = source.prepare(chunk)
                    waiting.append((chunk, buffer, pool.submit(source.read, chunk, buffer)))
                chunk, buffer, done = waiting.popleft()
                done.result()
                source.deliver(chunk, buffer)
                for target, _, count in chunk.pieces:
                    target.left -= count
                    if not target.left:
                        check()
                        assert target.tensor is not None
                        tensor, target.tensor = target.tensor, None
                        yield target.key, tensor
                        del tensor
        finally:
            for *_, done in waiting:
                done.cancel()


def _allocate(chunk: _Chunk, device: torch.device) -> None:
    for target, start, _ in chunk.pieces:
        if start == 0 and target.tensor is None:
            target.tensor = torch.empty(target.end - target.begin, dtype=torch.uint8, device=device)


def _chunks(places: Sequence[tuple[str, int, int]]) -> Iterator[_Chunk]:
    """The reads that bring `places`; tensors that follow each other in the file share one, large ones take several."""
    chunk, room, stop = _Chunk(-1), 0, -1
    for key, begin, end in places:
        target = _Target(key, begin, end, end - begin)
        start = 0
        while True:
            if begin + start != stop or room <= 0 or len(chunk.pieces) >= _PIECES:
                if chunk.pieces:
                    yield chunk
                chunk, room = _Chunk(begin + start), CHUNK
            count = min(room, target.end - target.begin - start)
            chunk.pieces.append((target, start, count))
            start, room = start + count, room - count
            stop = begin + start
            if stop >= end:
                break
    if chunk.pieces:
        yield chunk


class _Direct:
    """Reads into the tensors themselves."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path

    def prepare(self, chunk: _Chunk) -> list[memoryview]:
        views = []
        for target, start, count in chunk.pieces:
            assert target.tensor is not None
            views.append(memoryview(target.tensor.numpy())[start : start + count])
        return views

    def read(self, chunk: _Chunk, views: list[memoryview]) -> None:
        _fill(self._path, chunk.begin, views)

    def deliver(self, chunk: _Chunk, views: list[memoryview]) -> None:
        views.clear()


class _Staged:
    """Reads into host buffers, pinned where the device is a GPU, and copies from them."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path, self._device = path, device
        self._free: deque[tuple[Tensor, Any]] = deque()
        self._made = 0

    def prepare(self, chunk: _Chunk) -> Tensor:
        if self._made < THREADS + 1:
            self._made += 1
            return torch.empty(CHUNK, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        buffer, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()
        return buffer

    def read(self, chunk: _Chunk, buffer: Tensor) -> None:
        _fill(self._path, chunk.begin, [memoryview(buffer.numpy())[: chunk.size]])

    def deliver(self, chunk: _Chunk, buffer: Tensor) -> None:
        place = 0
        for target, start, count in chunk.pieces:
            assert target.tensor is not None
            target.tensor[start : start + count].copy_(buffer[place : place + count], non_blocking=True)
            place += count
        copied = None
        if self._device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self._device))
        self._free.append((buffer, copied))


def _fill(path: Path, begin: int, views: list[memoryview]) -> None:
    """Fill `views` one after another with the file's bytes from `begin`; each thread has its own handle."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            for view in views:
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise WanlabError(f"{path} became shorter while it was read", remedy="Download it again")
                    done += count
    except OSError as error:
        raise WanlabError(f"{path} cannot be read ({error.strerror})", remedy="Check the disk that holds it") from None
