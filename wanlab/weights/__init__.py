"""Weights: find a checkpoint's files, check every file before it is read, load modules, and download.

Files are recognised by their header, never by their name; safetensors and GGUF are read, a pickle only when asked.
The names below load on first use: finding files needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.weights._checkpoint import Checkpoint, checkpoint_in, fingerprint
    from wanlab.weights._component import Component, check_folder, component_in
    from wanlab.weights._fetch import Transfer, download
    from wanlab.weights._header import Entry, Header, read_header
    from wanlab.weights._layouts import Layout, recognise
    from wanlab.weights._load import load_component, load_module, load_tensors, loaded_bytes, unload
    from wanlab.weights._locate import locate

_HOME = {
    "Checkpoint": "_checkpoint",
    "checkpoint_in": "_checkpoint",
    "fingerprint": "_checkpoint",
    "Component": "_component",
    "check_folder": "_component",
    "component_in": "_component",
    "Transfer": "_fetch",
    "download": "_fetch",
    "Entry": "_header",
    "Header": "_header",
    "read_header": "_header",
    "Layout": "_layouts",
    "recognise": "_layouts",
    "load_component": "_load",
    "load_module": "_load",
    "load_tensors": "_load",
    "loaded_bytes": "_load",
    "unload": "_load",
    "locate": "_locate",
}
__all__ = [
    "Checkpoint",
    "Component",
    "Entry",
    "Header",
    "Layout",
    "Transfer",
    "check_folder",
    "checkpoint_in",
    "component_in",
    "download",
    "fingerprint",
    "load_component",
    "load_module",
    "load_tensors",
    "loaded_bytes",
    "locate",
    "read_header",
    "recognise",
    "unload",
]
__getattr__ = lazy(__name__, _HOME)
