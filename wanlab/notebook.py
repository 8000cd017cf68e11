"""Where the code runs: beside which notebook, in which cell, and whether somebody looks at it.

A notebook's file is known under a Jupyter server and in VS Code. papermill, nbclient and scripts do not tell it, and
show no widgets: there, everything is plain HTML and text.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

_NAME = "JPY_SESSION_NAME"


def shell() -> Any:
    """IPython's shell of this kernel; None outside of one, in terminal IPython too. Imports nothing."""
    ipython = sys.modules.get("IPython")
    found = None if ipython is None else ipython.get_ipython()
    return found if hasattr(found, "kernel") else None


def notebook_file() -> Path | None:
    """The notebook that this kernel belongs to; None where nobody says (papermill, nbclient, Colab, scripts).

    Told by the variable that jupyter_server sets for each kernel, and by the name that VS Code puts into its kernels.
    A notebook that was moved while its kernel ran is still found at its old place.
    """
    here = shell()
    if here is None:
        return None
    told = here.user_ns.get("__vsc_ipynb_file__") or _told_by_server()
    return Path(told) if told and os.path.isabs(told) else None


def _told_by_server() -> str | None:
    """What jupyter_server named the kernel's session; not what a kernel hands down to papermill and its kernels."""
    told = os.environ.get(_NAME)
    return None if told is None or told == _name_of_starter(os.environ.get("JPY_PARENT_PID", "")) else told


@functools.cache
def _name_of_starter(pid: str) -> str | None:
    """The session in the environment of the process that started this kernel; None if it has none or hides it."""
    try:
        import psutil  # comes with ipykernel
    except ImportError:
        return None
    try:
        return psutil.Process(int(pid)).environ().get(_NAME)
    except (ValueError, OSError, psutil.Error):  # on Windows the variable holds a handle
        return None


def is_live() -> bool:
    """Whether a frontend shows widgets and answers clicks: a Jupyter server, VS Code or Colab. False when headless."""
    return notebook_file() is not None or (shell() is not None and "google.colab" in sys.modules)


def running_cell() -> tuple[str, str]:
    """The running cell and its run: equal ids of a cell whose output the second run replaces. Empty outside a kernel.

    Frontends that do not name their cells give each run as a cell of its own.
    """
    here = shell()
    asked = {} if here is None else here.get_parent() or {}
    run = asked.get("header", {}).get("msg_id", "")
    return asked.get("metadata", {}).get("cellId") or run, run


def link(path: Path | str) -> str | None:
    """The address of a file relative to the notebook, for `src` and `href`; None where the page could not reach it.

    Files in the notebook's folder and below are reached, by name: a server shows none whose name begins with a dot. A
    folder there may be a link to elsewhere.
    """
    notebook = notebook_file()
    if notebook is None:
        return None
    named = Path(os.path.abspath(path)), Path(os.path.abspath(notebook.parent))
    for file, folder in (named, (named[0].resolve(), named[1].resolve())):
        if file.is_relative_to(folder):
            inside = file.relative_to(folder)
            return None if any(step.startswith(".") for step in inside.parts) else quote(inside.as_posix())
    return None
