"""How fast weights come from a disk to a device, beside what the disk itself gives.

    python experiments/loading/bench.py --device cuda --out loading.json          # 28 GB, as Wan 14B in bfloat16
    python experiments/loading/bench.py --gigabytes 1 --device cpu                # a small try

Writes a safetensors file of Wan 14B's shapes (fewer blocks for smaller sizes), drops it from the page cache, reads it
in order without doing anything with it, drops it again, loads it with `weights.load_component`, and loads it once more
from memory. `--threads` and `--chunk` (MiB) take several values, to choose by; `--baseline` adds safetensors' reader.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import mmap
import os
import platform
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from wanlab import weights
from wanlab.catalog import find
from wanlab.weights import _read

Config = dict[str, Any]


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network, built without memory."""
    with torch.device("meta"):
        module = WanTransformer3DModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def config_of(size: float) -> Config:
    """Wan 14B's architecture with as many blocks as fit `size` bytes in bfloat16; at least one."""
    config = dict(find("wan_t2v_14b").architecture["transformer"])
    one, two = (_bytes(shapes_of({**config, "num_layers": n})) for n in (1, 2))
    return {**config, "num_layers": min(config["num_layers"], max(1, 1 + round((size - one) / (two - one))))}


def _bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values())


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of random bfloat16, on the disk when this returns. Returns its bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    block = memoryview(torch.randn(32 << 20).mul_(0.02).bfloat16().view(torch.uint8).numpy())
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        left = end
        while left:
            left -= file.write(block[: min(left, len(block))])
        os.fsync(file.fileno())
    return path.stat().st_size


def resident(path: Path) -> float:
    """Share of the file's pages in the page cache, by mincore; -1 where the system does not say."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | 2) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        held = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)
        try:
            failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), held)
        finally:
            del anchor
        return -1.0 if failed else sum(value & 1 for value in bytes(held)) / pages


def drop(path: Path) -> float:
    """Ask the system to forget the file's pages; returns the share that stayed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return resident(path)


def read_only(path: Path, threads: int, chunk: int) -> float:
    """Seconds to read the whole file in order into memory that is used again."""
    size, local = path.stat().st_size, threading.local()

    def read(begin: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(chunk))
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            done, wanted = 0, min(chunk, size - begin)
            while done < wanted:
                done += file.readinto(local.buffer[done:wanted])

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(0, size, chunk)))
    return time.perf_counter() - start


class Memory:
    """Growth of this process's memory while inside, sampled every 5 ms; `peak` in bytes."""

    def __enter__(self) -> Memory:
        gc.collect()
        self._start, self.peak, self._stop = _rss(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, _rss() - self._start)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, _rss() - self._start)


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@contextlib.contextmanager
def reader(threads: int, chunk: int) -> Iterator[None]:
    """Load with other numbers than wanlab's."""
    before = _read.THREADS, _read.CHUNK
    _read.THREADS, _read.CHUNK = threads, chunk
    try:
        yield
    finally:
        _read.THREADS, _read.CHUNK = before


def timed(load: Callable[[], Any], size: int, device: torch.device) -> dict[str, Any]:
    """Seconds, GB/s and memory of one load, whose result is thrown away after it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with Memory() as memory:
        start = time.perf_counter()
        held = load()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    del held
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {"seconds": seconds, "gb_per_s": size / seconds / 1e9, "host_growth": memory.peak, "device_peak": peak}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one file."""
    device, path = torch.device(arguments.device), Path(arguments.file)
    config = config_of(arguments.gigabytes * 1e9)
    size = write(path, shapes_of(config))
    component = weights.Component("transformer", (path,), config, path)

    def load() -> Any:
        return weights.load_component(WanTransformer3DModel, component, torch.bfloat16, device)

    def theirs() -> Any:
        from safetensors.torch import load_file

        return load_file(path, device=str(device))

    torch.zeros(1 << 20, device=device)  # the device's own memory on the host is not the load's
    rows: list[dict[str, Any]] = []

    def note(what: str, threads: int, chunk: int, kept: float | None, **found: Any) -> None:
        rows.append({"what": what, "threads": threads, "chunk_mib": chunk >> 20, "kept_in_cache": kept, **found})
        print(json.dumps(rows[-1]), flush=True)

    for chunk in (mib << 20 for mib in arguments.chunk):
        for threads in arguments.threads:
            kept = drop(path)
            seconds = read_only(path, threads, chunk)
            note("disk", threads, chunk, kept, seconds=seconds, gb_per_s=size / seconds / 1e9)
            with reader(threads, chunk):
                kept = drop(path)
                note("load", threads, chunk, kept, **timed(load, size, device))
                note("load again", threads, chunk, resident(path), **timed(load, size, device))
    if arguments.baseline:
        kept = drop(path)
        note("safetensors", 1, 0, kept, **timed(theirs, size, device))
    disk = max(row["gb_per_s"] for row in rows if row["what"] == "disk")
    best = max((row for row in rows if row["what"] == "load"), key=lambda row: row["gb_per_s"])
    return {
        "bytes": size,
        "config": config,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "share_of_disk": best["gb_per_s"] / disk,
        "best": best,
        "rows": rows,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=28.6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--file", default="loading.safetensors", help="written and removed; its disk is measured")
    parser.add_argument("--out", default="loading.json")
    parser.add_argument("--threads", type=int, nargs="+", default=[_read.THREADS])
    parser.add_argument("--chunk", type=int, nargs="+", default=[_read.CHUNK >> 20], help="MiB")
    parser.add_argument("--baseline", action="store_true", help="safetensors' own reader too")
    arguments = parser.parse_args()
    try:
        found = run(arguments)
    finally:
        Path(arguments.file).unlink(missing_ok=True)
    Path(arguments.out).write_text(json.dumps(found, indent=2, default=list))
    print(f"{found['share_of_disk']:.0%} of the disk's rate; {arguments.out}")


if __name__ == "__main__":
    main()
