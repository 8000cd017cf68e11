"""What a run ran on, for its record: versions, machine, commit."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import wanlab

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "av", "pydantic")


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for `run.json`. Imports nothing; asks torch for the device if it is loaded."""
    versions = {"wanlab": wanlab.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "platform": platform.platform(), **versions, **_device(), **_commit()}


def _device() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        found |= {"gpu": torch.cuda.get_device_name(index), "capability": list(torch.cuda.get_device_capability(index))}
    return found


@functools.cache
def _commit() -> dict[str, Any]:
    """The commit of this checkout; nothing for an installed package, even inside somebody's repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, or a repository it does not trust
        return {}
    return {"commit": head, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
