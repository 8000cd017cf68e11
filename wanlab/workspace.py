"""The user's folder: finetunes, configs, loras, checkpoints, runs."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from wanlab.errors import WanlabError, shorten, unknown
from wanlab.files import read_json

MARKER = "wanlab.toml"
_MAX_TOML = 1 << 20  # bytes
_PROGRAMS = ("wangp", "comfyui", "hub")
_KEYS = {"checkpoints": {"paths", *_PROGRAMS}}  # what wanlab.toml may hold
_WANGP_CONFIG = "wgp_config.json"
_WANGP_PATHS = ["ckpts", "."]  # where WanGP looks if its configuration names no folders
_COMFYUI_FOLDERS = ("diffusion_models", "unet", "vae", "text_encoders", "clip", "clip_vision")


@dataclass(frozen=True)
class Root:
    """A folder that weights are looked for in, and whose it is."""

    path: Path
    kind: Literal["folder", "wangp", "comfyui", "hub"] = "folder"

    def named(self, name: str) -> list[Path]:
        """Files of this name in the folder itself, and in ComfyUI's folders and those one level below them.

        The folders are listed once for each Root.
        """
        return [folder / name for folder, names in self._listing.items() if name in names]

    @cached_property
    def _listing(self) -> dict[Path, frozenset[str]]:
        found: dict[Path, frozenset[str]] = {}
        for folder in (self.path, *(self.path / name for name in _COMFYUI_FOLDERS)):
            entries = _entries(folder)
            found[folder] = frozenset(entries)
            if folder != self.path:
                below = (folder / name for name, is_folder in entries.items() if is_folder)
                found |= {place: frozenset(_entries(place)) for place in below}
        return found


def _entries(folder: Path) -> dict[str, bool]:
    """Name -> whether it is a folder; none for a folder that is not there or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_dir() for entry in entries}
    except OSError:
        return {}


@dataclass(frozen=True)
class Workspace:
    """Folders of one workspace; nothing is made until something is written there.

    `wanlab.toml` in the root may name existing folders of weights:

        [checkpoints]
        paths = ["../weights"]
        wangp = "~/Wan2GP"
        comfyui = "~/ComfyUI"
        hub = "/big/huggingface/hub"
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

    @property
    def roots(self) -> list[Root]:
        """Folders that weights are looked for in, in order: `checkpoints`, WanGP's, ComfyUI's, hub caches.

        Raises WanlabError for a wanlab.toml or a wgp_config.json that cannot be read.
        """
        named = self._config.get("checkpoints", {})
        places = {name: self.root / Path(named[name]).expanduser() for name in _PROGRAMS if name in named}
        found = [Root(path) for path in self.checkpoints]
        if "wangp" in places:
            found += [Root(places["wangp"] / path, "wangp") for path in _wangp_paths(places["wangp"])]
        if "comfyui" in places:
            found.append(Root(places["comfyui"] / "models", "comfyui"))
        hubs = [places["hub"]] if "hub" in places else []
        return [*found, *(Root(path, "hub") for path in dict.fromkeys([*hubs, hub_cache()]))]

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
    named = config.get("checkpoints", {})
    paths = named.get("paths", [])
    if not isinstance(paths, list) or not all(map(_is_path, paths)):
        raise WanlabError(f"checkpoints.paths in {file} is {shorten(paths)}", remedy='Give a list: paths = ["folder"]')
    for name in _PROGRAMS:
        if name in named and not _is_path(named[name]):
            problem = f"checkpoints.{name} in {file} is {shorten(named[name])}"
            raise WanlabError(problem, remedy=f'Give a folder: {name} = "folder"')


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _wangp_paths(folder: Path) -> list[str]:
    """Folders of checkpoints, relative to WanGP's own, as its configuration has them."""
    file = folder / _WANGP_CONFIG
    config = read_json(file) if file.is_file() else {}
    paths = config.get("checkpoints_paths", _WANGP_PATHS) if isinstance(config, dict) else None
    if not isinstance(paths, list) or not all(map(_is_path, paths)):
        raise WanlabError(f"checkpoints_paths in {file} is {shorten(paths, 80)}", remedy="Give a list of folders")
    return [os.path.expanduser(path) for path in paths]


def hub_cache() -> Path:
    """The hub's cache on this machine, as huggingface_hub finds it, without importing that."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if place := os.environ.get(name):
            return Path(place).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


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
