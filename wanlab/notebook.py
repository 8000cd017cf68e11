"""Where the code runs: beside which notebook, and whether somebody looks at it.

A notebook's file is known under a Jupyter server and in VS Code. papermill, nbclient and scripts do not tell it, and
show no widgets: there, everything is plain HTML and text.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


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
    told = here.user_ns.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")
    return Path(told) if told and os.path.isabs(told) else None


def is_live() -> bool:
    """Whether a frontend shows widgets and answers clicks: a Jupyter server, VS Code or Colab. False when headless."""
    return notebook_file() is not None or (shell() is not None and "google.colab" in sys.modules)


def link(path: Path | str) -> str | None:
    """The address of a file relative to the notebook, for `src` and `href`; None where the page could not reach it.

    Files in the notebook's folder and below are reached, by name: a server shows none whose name begins with a dot.
    """
    notebook = notebook_file()
    if notebook is None:
        return None
    try:
        inside = Path(path).resolve().relative_to(notebook.parent.resolve())
    except ValueError:
        return None
    return None if any(step.startswith(".") for step in inside.parts) else quote(inside.as_posix())
