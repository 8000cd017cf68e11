"""Versions and devices."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wanlab
from wanlab.doctor import _packages
from wanlab.doctor._notebooks import PACKAGES as NOTEBOOK_PACKAGES
from wanlab.doctor._report import Fact, home, size


def installation() -> Iterator[Fact]:
    """wanlab, Python, system, and the packages that a generation needs."""
    found = _origin()
    commit = f", commit {found['commit'][:12]}{' with changes' if found['dirty'] else ''}" if "commit" in found else ""
    place = home(Path(wanlab.__file__).parent)
    yield Fact(
        "wanlab", "note", f"{wanlab.__version__}{commit}, {place}", data={"version": wanlab.__version__, **found}
    )
    python = platform.python_version()
    yield Fact("python", "note", f"{python}, {home(sys.executable)}", data={"version": python})
    yield Fact("system", "note", platform.platform())
    yield from versions("packages", exclude=NOTEBOOK_PACKAGES)


def _origin() -> dict[str, Any]:
    """The checkout's commit; nothing where a package that `runs` needs is broken, which `versions` finds."""
    try:
        from wanlab import runs
    except ImportError:
        return {}
    return {key: value for key, value in runs.environment().items() if key in ("commit", "dirty")}


def versions(name: str, exclude: frozenset[str] = frozenset(), include: frozenset[str] | None = None) -> Iterator[Fact]:
    """One fact with the versions of required packages, and one for each that is missing or too old."""
    needs = [n for n in _packages.required() if n.name not in exclude and (include is None or n.name in include)]
    found = {need.name: version for need in needs if (version := _packages.installed(need)) is not None}
    text = ", ".join(f"{package} {version}" for package, version in found.items())
    wrong = [need for need in needs if not _packages.is_met(need)]
    yield Fact(name=name, status="note" if wrong else "ok", text=text or "none", data=found)
    for need in wrong:
        here = found.get(need.name)
        text = f"{need.name} is missing" if here is None else f"{here} is here, {need.specifier} is needed"
        yield Fact(need.name, "failed", text, f'pip install --upgrade "{need}"')


def device() -> Iterator[Fact]:
    """Processor, GPUs, and what `auto` means here."""
    import torch

    from wanlab.models import load

    threads, memory = torch.get_num_threads(), _memory()
    yield Fact(
        name="cpu",
        status="note",
        text=f"{_processor()}, {_cores()} cores, torch threads: {threads}, memory: {size(memory)}",
        data={"cores": _cores(), "threads": threads, "memory": memory},
    )
    if not torch.cuda.is_available():
        yield _no_gpu(torch.__version__, torch.version.cuda)
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        yield Fact(
            name=f"cuda:{index}",
            status="note",
            text=f"{name}, {size(free)} of {size(total)} free, capability {major}.{minor}, CUDA {torch.version.cuda}",
            data={"gpu": name, "free": free, "total": total, "capability": [major, minor]},
        )
    model = load("wan_tiny")
    chosen = {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
    yield Fact("auto", "note", "device {device}, dtype {dtype}".format(**chosen), data=chosen)


def _no_gpu(version: str, cuda: str | None) -> Fact:
    """Why there is no GPU; something to do about it only where one is in the machine."""
    if shutil.which("nvidia-smi") is None:
        return Fact("gpu", "note", f"none: no NVIDIA driver here (torch {version})")
    if cuda is None:
        remedy = "Install the build of torch for your CUDA: https://pytorch.org/get-started/locally/"
        return Fact("gpu", "absent", f"torch {version} is built without CUDA", remedy)
    text = f"torch {version} is built for CUDA {cuda} and finds no GPU"
    return Fact("gpu", "absent", text, "See what nvidia-smi says; the driver may be too old")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
