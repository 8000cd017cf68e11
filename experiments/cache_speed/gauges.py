"""What is read off the machine: moments on the device's queue, waits for the device, kernels, clocks, graphs."""

from __future__ import annotations

import subprocess
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

Found = dict[str, Any]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""CUDA runtime calls that make the processor wait for the device."""
_LISTED = 6


class Ticks:
    """Moments on the device's queue (CUDA events); `mark` does not wait. On a CPU they are moments of the clock."""

    def __init__(self) -> None:
        self._marks: list[Any] = []
        self._cuda = torch.cuda.is_available()

    def mark(self, *_: object) -> None:
        """Now, as a callback of any signature."""
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Between neighbouring marks; waits for the last one."""
        if not self._cuda:
            return [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(self._marks, self._marks[1:], strict=False)]


class Memory:
    """Bytes that the allocator held at the worst moment, over what it held at the begin; None on a CPU."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() - self._before if self._cuda else None


class Graphs:
    """How many graphs torch.compile made since this object, and how many breaks it met."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())

    def found(self) -> dict[str, int]:
        made, breaks = (now - before for now, before in zip(self._read(), self._before, strict=True))
        return {"graphs_made": made, "breaks": breaks}


def waits(run: Callable[[], object]) -> dict[str, int] | None:
    """Where `run` waited for the device: "file:line" of the innermost line of ours or a library's -> how often.

    torch names every operation that waits in its synchronisation debug mode; None where there is no GPU.
    """
    if not torch.cuda.is_available():
        return None
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            found[_place()] += 1

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found)


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if not _is_torch(f.filename) and f.name not in ("note", "_place")]
    last = frames[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno} {last.name}"


def _is_torch(filename: str) -> bool:
    return "/torch/" in filename or filename.endswith("warnings.py") or filename.startswith("<")


def profiled(run: Callable[[], object]) -> Found | None:
    """Calls that wait, the kernels that take most of the time, and the device's busy seconds; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as profile:
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    events = profile.key_averages()
    kernels = sorted(
        ((e.self_device_time_total, e.count, e.key) for e in events if e.device_type == torch.autograd.DeviceType.CUDA),
        reverse=True,
    )
    busy = sum(kernel[0] for kernel in kernels) / 1e6
    return {
        "seconds": round(seconds, 3),
        "busy_seconds": round(busy, 3),
        "waits": {e.key: e.count for e in events if e.key in WAITS},
        "kernels": [{"ms": round(us / 1e3, 1), "count": n, "name": name[:110]} for us, n, name in kernels[:_LISTED]],
        "num_kernels": sum(kernel[1] for kernel in kernels),
    }


class Clocks:
    """nvidia-smi's readings, twice a second: SM clock (MHz), power (W), temperature (C). Only reads."""

    _FIELDS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"

    def __init__(self) -> None:
        self._rows: list[tuple[float, list[float]]] = []
        self._process: subprocess.Popen[str] | None = None
        if torch.cuda.is_available():
            command = ["nvidia-smi", f"--query-gpu={self._FIELDS}", "--format=csv,noheader,nounits", "-lms", "500"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._rows.append((time.perf_counter(), [float(x) for x in line.split(",")]))

    def since(self, begin: float) -> dict[str, float] | None:
        """Means since a moment of time.perf_counter, and the lowest SM clock; None without readings."""
        rows = [values for at, values in list(self._rows) if at >= begin]
        if not rows:
            return None
        sm, memory, power, celsius = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        lowest = min(row[0] for row in rows)
        found = {"sm_mhz": sm, "sm_mhz_lowest": lowest, "memory_mhz": memory, "watts": power, "celsius": celsius}
        return {name: round(value) for name, value in found.items()}

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()


@contextmanager
def nothing_compiles() -> Iterator[None]:
    """Compiling a second version of anything raises while inside."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
