"""Packages of the extra `metrics`: found when they are asked for, and named when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from wanlab.errors import WanlabError

_PROJECTS = {"imageio_ffmpeg": "imageio-ffmpeg", "flip_evaluator": "flip-evaluator", "ssimulacra2": "ssimulacra2"}


def extra(module: str, purpose: str) -> Any:
    """Import a package of the extra. Raises WanlabError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise WanlabError(
            f"{purpose} needs {_PROJECTS[module]}, which cannot be imported ({error})",
            remedy="pip install 'wanlab[metrics]'",
        ) from None
