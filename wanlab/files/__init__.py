"""Files that are whole or absent: atomic writes, safe names, strict JSON, the gate for weights, packaged resources."""

from wanlab.files._header import header_gate
from wanlab.files._json import read_json
from wanlab.files._paths import resource, safe_path, sha256_file
from wanlab.files._write import PART, atomic_write, sweep, sync_folder, writing

__all__ = [
    "PART",
    "atomic_write",
    "header_gate",
    "read_json",
    "resource",
    "safe_path",
    "sha256_file",
    "sweep",
    "sync_folder",
    "writing",
]
