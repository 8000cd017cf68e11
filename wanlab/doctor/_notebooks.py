"""The notebook stack: versions, and whether a notebook's kernel is this Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from wanlab.doctor._report import Fact, home
from wanlab.files import resource

PACKAGES = frozenset("jupyterlab ipykernel ipywidgets anywidget papermill mediapy matplotlib".split())
_KERNEL = "python3"


def notebooks() -> Iterator[Fact]:
    """Packages, the kernel that notebooks get, and the notebooks that come with wanlab."""
    from wanlab.doctor._machine import versions

    yield from versions("packages", include=PACKAGES)
    yield _kernel()
    names = sorted(path.stem for path in resource("notebooks").glob("*.ipynb"))
    yield Fact(
        name="shipped", status="note", text=f"{', '.join(names)}; `wanlab lab` opens them", data={"names": names}
    )


def _kernel() -> Fact:
    """The kernelspec that our notebooks name; started by another Python, it would not find wanlab."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = f"{home(sys.executable)} -m ipykernel install --sys-prefix"
    try:
        spec = KernelSpecManager().get_kernel_spec(_KERNEL)
    except NoSuchKernel:
        return Fact("kernel", "failed", f"There is no kernel called {_KERNEL}", remedy)
    program = spec.argv[0] if spec.argv else ""
    if _is_this_python(program):
        return Fact("kernel", "ok", f"{_KERNEL} runs this Python, {home(spec.resource_dir)}")
    text = f"{_KERNEL} runs {home(program)}, not this Python ({home(spec.resource_dir)})"
    return Fact("kernel", "failed", text, f"{remedy}, and start the lab with `wanlab lab`")


def _is_this_python(program: str) -> bool:
    """Whether a kernelspec's program is this interpreter; a bare name is the one that starts the kernel."""
    if os.sep not in program:
        return program.startswith("python")
    return Path(program).parent == Path(sys.executable).parent
