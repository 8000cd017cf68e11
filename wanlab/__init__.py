"""wanlab: a research workbench for video diffusion.

>>> import wanlab
>>> model = wanlab.load("wan_tiny")
>>> clip = wanlab.generate(model, prompt="a red circle moves right on a black background", seed=7)

Importing this module imports nothing else: a public name loads its module on first use, and so does a module's own name
(`wanlab.widgets`).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wanlab.catalog import catalogue as catalogue
    from wanlab.errors import WanlabError as WanlabError
    from wanlab.jobs import Job as Job
    from wanlab.jobs import submit as submit
    from wanlab.models import load as load
    from wanlab.pipeline import generate as generate
    from wanlab.reports import report as report
    from wanlab.result import Result as Result
    from wanlab.result import open_result as open_result
    from wanlab.runs import results as results
    from wanlab.settings import open_settings as open_settings
    from wanlab.spec import GenerationSpec as GenerationSpec
    from wanlab.stages import decode as decode
    from wanlab.stages import denoise as denoise
    from wanlab.stages import denoise_to as denoise_to
    from wanlab.stages import encode_conditions as encode_conditions
    from wanlab.stages import encode_text as encode_text
    from wanlab.stages import post as post
    from wanlab.study import estimate as estimate
    from wanlab.sweeps import Grid as Grid
    from wanlab.sweeps import grid as grid
    from wanlab.sweeps import run_sweep as run_sweep
    from wanlab.sweeps import seeds as seeds
    from wanlab.sweeps import zip_ as zip_
    from wanlab.widgets import compare as compare

_HOMES = {  # public name -> the module of this package that it lives in
    "catalogue": "catalog",
    "WanlabError": "errors",
    "Job": "jobs",
    "submit": "jobs",
    "load": "models",
    "generate": "pipeline",
    "report": "reports",
    "Result": "result",
    "open_result": "result",
    "results": "runs",
    "open_settings": "settings",
    "GenerationSpec": "spec",
    "decode": "stages",
    "denoise": "stages",
    "denoise_to": "stages",
    "encode_conditions": "stages",
    "encode_text": "stages",
    "post": "stages",
    "estimate": "study",
    "Grid": "sweeps",
    "grid": "sweeps",
    "run_sweep": "sweeps",
    "seeds": "sweeps",
    "zip_": "sweeps",
    "compare": "widgets",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, or the module of that name, and keep the name."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"wanlab.{_HOMES[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"wanlab.{name}"):
        value = importlib.import_module(f"wanlab.{name}")
    else:
        raise AttributeError(f"module 'wanlab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
