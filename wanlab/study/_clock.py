"""Time and memory of a device, read without making it wait where it can tell them itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

import torch

from wanlab.pipeline import peak_bytes

_QUERY = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit", "pstate")


class Clock:
    """Marks in time: CUDA events in the device's queue, or the process's clock on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None

    def mark(self) -> Any:
        """The moment at which all that was asked of the device so far is done."""
        if self._device is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Wait until every mark has passed."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks, after `settle`."""
        return float(end - start if self._device is None else start.elapsed_time(end) / 1000)


class Peaks:
    """The most memory since it was made; there is no such start on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> tuple[int, int | None]:
        """Bytes allocated and, on a GPU, reserved."""
        is_gpu = self._device.type == "cuda"
        return peak_bytes(self._device), torch.cuda.max_memory_reserved(self._device) if is_gpu else None


def gpu_state(device: torch.device) -> dict[str, str]:
    """Clocks, temperature and power of a GPU in the driver's words; empty where nvidia-smi does not tell them."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return {}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [program, f"--id={uuid}", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver without it, or a container that hides it
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_QUERY, values, strict=False)) if len(values) == len(_QUERY) else {}
