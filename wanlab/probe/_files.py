"""Traces as folders: trace.json says what is there, values.safetensors holds the numbers, `kept/` the tensors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from safetensors.torch import save as pack

from wanlab.errors import WanlabError
from wanlab.files import atomic_write, header_gate, read_json, safe_path
from wanlab.probe._keep import FOLDER, Kept, Value, write
from wanlab.probe._names import Where
from wanlab.probe._trace import Series, Trace, parts

SCHEMA = 1
_INDEX, _VALUES = "trace.json", "values.safetensors"
_MAX_INDEX = 256 << 20  # bytes; 50 steps of two branches of 40 blocks with everything kept take 5 MB


def save(trace: Trace, folder: Path) -> Path:
    """Write a trace; trace.json comes last. Raises WanlabError for a folder that holds another one."""
    if (folder / _INDEX).exists():
        raise WanlabError(f"{folder} holds a trace already", remedy="Give a new folder")
    trace.flush()
    numbers: dict[str, torch.Tensor] = {}
    entries, written = [], 0
    for i, (series, steps) in enumerate(trace.data.items()):
        entry: dict[str, Any] = {**asdict(series), "steps": list(steps)}
        plain = [value for value in steps.values() if isinstance(value, np.ndarray)]
        if plain:
            numbers[str(i)] = torch.from_numpy(np.stack(plain))
        else:
            entry["files"] = []
            for value in steps.values():
                kept, written = _place(value, folder, written)
                entry["files"].append(kept.path.name)
        entries.append(entry)
    atomic_write(folder / _VALUES, pack(numbers))
    head = {name: getattr(trace, name) for name in ("model", "experts", "pieces", "tokens", "stride", "fps")}
    head |= {"stopped": trace.stopped, "state_bytes": trace.state_bytes, "steps": sorted(trace.steps)}
    recorded = [{**asdict(where), "quantities": wanted} for where, wanted in trace.recorded]
    text = json.dumps({"schema": SCHEMA, **head, "recorded": recorded, "series": entries}, ensure_ascii=False)
    atomic_write(folder / _INDEX, text + "\n")
    return folder


def _place(value: Value, folder: Path, written: int) -> tuple[Kept, int]:
    """A kept tensor in the trace's folder, where it may lie already."""
    if isinstance(value, Kept) and value.path.parent == folder / FOLDER:
        return value, written
    while (folder / FOLDER / f"{written:06d}.safetensors").exists():
        written += 1
    tensor = value.load() if isinstance(value, Kept) else torch.as_tensor(value)
    return write(folder, written, tensor), written + 1


def open_trace(folder: Path | str) -> Trace:
    """Read what `Trace.save` wrote; kept tensors are read when they are asked for.

    Raises WanlabError for a folder without a trace, another schema, and damaged files.
    """
    folder = Path(folder)
    index = read_json(folder / _INDEX, _MAX_INDEX)
    if not isinstance(index, dict) or index.get("schema") != SCHEMA:
        raise WanlabError(f"{folder / _INDEX} is no trace of schema {SCHEMA}", remedy="Record and save it again")
    header_gate(folder / _VALUES)
    numbers = load((folder / _VALUES).read_bytes())
    try:
        recorded = tuple((_where(entry), tuple(entry["quantities"])) for entry in index["recorded"])
        trace = Trace(
            index["model"],
            tuple(index["experts"]),
            recorded,
            pieces=tuple(index["pieces"]),
            tokens=tuple(index["tokens"]),
            stride=(index["stride"][0], index["stride"][1]),
            fps=float(index["fps"]),
            stopped=index["stopped"],
            state_bytes=index["state_bytes"],
            steps=set(index["steps"]),
        )
        for i, entry in enumerate(index["series"]):
            names = ("quantity", "stream", "branch", "window", "run")
            series = Series(_where(entry["where"]), **{name: entry[name] for name in names})
            values: list[Value] = (
                [Kept(safe_path(folder, f"{FOLDER}/{name}")) for name in entry["files"]]
                if "files" in entry
                else list(parts(numbers[str(i)].numpy()))
            )
            trace.data[series] = dict(zip(entry["steps"], values, strict=True))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, WanlabError):
            raise
        raise WanlabError(f"{folder} holds a damaged trace: {error}", remedy="Record and save it again") from error
    return trace


def _where(entry: dict[str, Any]) -> Where:
    return Where(entry["expert"], entry["block"], entry["part"], entry["role"])
