"""The user's folder: finetunes, configs, loras, checkpoints, runs."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError, shorten, unknown

MARKER = "wanlab.toml"
_MAX_TOML = 1 << 20  # bytes
_KEYS = {"checkpoints": {"paths"}}  # what wanlab.toml may hold


@dataclass(frozen=True)
class Workspace:
    """Folders of one workspace; nothing is made until something is written there.

    `wanlab.toml` in the root may name existing folders of weights:

        [checkpoints]
        paths = ["~/ComfyUI/models", "../weights"]
    """

    root: Path

    @property
    def finetunes(self) -> Path:
        """Definitions of the user's own variants."""
        return self.root / "finetunes"

    @property
    def configs(self) -> Path:
        """The user's settings for each model."""
        return self.root / "configs"

    @property
    def loras(self) -> Path:
        """LoRA files, in one folder a model family."""
        return self.root / "loras"

    @property
    def profiles(self) -> Path:
        """The user's memory profiles."""
        return self.root / "profiles"

    @property
    def media(self) -> Path:
        """Pictures, videos and sound that specs name, under the hashes of their content."""
        return self.root / "media"

    @property
    def runs(self) -> Path:
        """Finished and failed runs."""
        return self.root / "runs"

    @property
    def checkpoints(self) -> list[Path]:
        """Folders searched for weights: `checkpoints` here, then the paths in wanlab.toml, relative to the root."""
        paths = self._config.get("checkpoints", {}).get("paths", [])
        return [self.root / "checkpoints", *((self.root / Path(p).expanduser()) for p in paths)]

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = self.root / MARKER
        try:
            with open(file, "rb") as opened:
                config = tomllib.loads(opened.read(_MAX_TOML).decode())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise WanlabError(f"Cannot read {file}: {error.strerror}", remedy="Check its permissions.") from None
        except ValueError as error:
            raise WanlabError(f"{file} is not valid TOML: {error}", remedy="Correct it.") from None
        _check_config(config, file)
        return config


def _check_config(config: dict[str, Any], file: Path) -> None:
    for section, values in config.items():
        if section not in _KEYS:
            raise unknown(f"section of {file}", section, _KEYS)
        if not isinstance(values, dict):
            raise WanlabError(f"{section} in {file} is {shorten(values)}", remedy=f"Make it a section: [{section}]")
        for key in values:
            if key not in _KEYS[section]:
                raise unknown(f"key in [{section}] of {file}", key, _KEYS[section])
    paths = config.get("checkpoints", {}).get("paths", [])
    if not isinstance(paths, list) or not all(isinstance(p, str) and p and "\0" not in p for p in paths):
        raise WanlabError(f"checkpoints.paths in {file} is {shorten(paths)}", remedy='Give a list: paths = ["folder"]')


def find_workspace(explicit: Path | str | None = None) -> Workspace:
    """The workspace: `explicit`, else the nearest folder with wanlab.toml from here upward, else the user's own.

    The user's own is `$XDG_DATA_HOME/wanlab`. Reads only. Raises WanlabError if `explicit` is a file.
    """
    if explicit is not None:
        root = Path(explicit).expanduser().absolute()
        if root.exists() and not root.is_dir():
            raise WanlabError(f"The workspace {root} is a file", remedy="Give a folder.")
        return Workspace(root)
    here = Path.cwd()
    marked = next((folder for folder in (here, *here.parents) if (folder / MARKER).is_file()), None)
    return Workspace(marked or _user_data())


def _user_data() -> Path:
    """`$XDG_DATA_HOME/wanlab`, by default `~/.local/share/wanlab`; a relative value is ignored, as XDG says."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "wanlab"
