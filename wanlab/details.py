"""What a notebook tells below a result: a line of facts, then, folded, its settings, timings and what really ran."""

from __future__ import annotations

import contextlib
import html
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wanlab import catalog
from wanlab.audio import Audio
from wanlab.errors import WanlabError
from wanlab.inline import ellipsis
from wanlab.runs import RunRecord
from wanlab.spec import PARTS, GenerationSpec, MediaRef, plain
from wanlab.video import Frames

_COLUMNS = 3  # of the settings that are the model's
_WORD = 60  # characters of a value in a label
_CUT = 240  # characters of a value
_ROW = 'style="text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:none'
_NAME, _VALUE = f'{_ROW};white-space:nowrap;font-weight:normal;opacity:0.7"', f'{_ROW};overflow-wrap:anywhere"'
_MADE_WITH = ("wanlab", "torch", "diffusers", "transformers", "python", "platform", "gpu", "cuda", "threads", "commit")


def facts(frames: Frames, fps: float, audio: Audio | None, spec: GenerationSpec, seconds: dict[str, float]) -> str:
    """Size, length, seed and the time it took, on one line."""
    count, height, width = frames.shape[:3]
    words = [spec.model, f"{width}×{height}"]
    if count > 1:
        words.append(f"{count} frames at {fps:g}/s")
    if audio is not None:
        words.append(f"sound of {audio.seconds:.1f} s")
    words += [f"{spec.sampling.num_run} steps", f"seed {spec.sampling.seed}"]
    if "total" in seconds:
        words.append(f"made in {seconds['total']:.1f} s")
    return " · ".join(words)


def place(file: Path | None, address: str | None) -> str:
    """HTML of where a result lies: a link if the page reaches it, else the path from the working folder."""
    if file is None:
        return "not saved"
    with contextlib.suppress(ValueError, OSError):  # it lies elsewhere, or the working folder is gone
        file = file.relative_to(Path.cwd())
    name = html.escape(file.as_posix())
    return f"<code>{name}</code>" if address is None else f'<a href="{html.escape(address)}">{name}</a>'


def caption(prompt: str, line: str, note: str, where: str) -> str:
    """HTML of the prompt, cut at 240 characters, and the line of facts; `note`, if any, says why there is no player.

    where: HTML of `place`, shown with a note.
    """
    lines = [html.escape(line)] + ([f"{html.escape(note)} The clip: {where}."] if note else [])
    small = "".join(f'<br><small style="opacity:0.7">{text}</small>' for text in lines)
    return f"<figcaption>{html.escape(ellipsis(prompt, _CUT))}{small}</figcaption>"


def folded(spec: GenerationSpec, record: RunRecord, where: str) -> str:
    """HTML that is closed at first: settings that differ from the model's, timings, what ran, versions, the file.

    where: HTML of `place`.
    """
    own, rest = _settings(spec)
    made_with = {name: record.env[name] for name in _MADE_WITH if record.env.get(name)}
    if isinstance(commit := made_with.get("commit"), str):
        made_with["commit"] = commit[:12]
    tables = [
        _table("Settings", own),
        _table("Seconds", {name: f"{value:.2f}" for name, value in record.timings.items()}),
        _table("What ran", _ran(record)),
        _table("Made with", made_with),
    ]
    usual = [_table("", part) for part in _parts(rest, _COLUMNS)]
    more = f"<details><summary>{len(rest)} more, as the model has them</summary>{_row(usual)}</details>"
    ids = f"<p>spec <code>{spec.id}</code> · run <code>{html.escape(record.id)}</code> · {where}</p>"
    return f"<details><summary>Settings and timings</summary>{ids}{_row(tables)}{more}</details>"


def _settings(spec: GenerationSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that differ from the model's, by flat name, and the others; a model unknown here has the bare ones."""
    try:
        usual = GenerationSpec.of({**catalog.find(spec.model).spec, "model": spec.model}).flat()
    except WanlabError:
        usual = GenerationSpec(model=spec.model).flat()
    every = spec.flat()
    own = {name: value for name, value in every.items() if name == "model" or usual.get(name) != value}
    return own, {name: value for name, value in every.items() if name not in own}


def _ran(record: RunRecord) -> dict[str, Any]:
    """The kernel, the cache, forwards, memory and more of a run; whatever the record holds, it may be foreign."""
    ran, resolved = (record.resolved.get(name) for name in ("ran", "spec"))
    found = dict(ran) if isinstance(ran, dict) else {}
    if isinstance(cache := found.get("cache"), dict):
        found["cache"] = {name: cache.get(name) for name in ("computed", "reused")}
    if isinstance(resolved, dict) and isinstance(weights := resolved.get("weights"), dict):
        found["dtype"] = weights.get("dtype")
    if record.peak_bytes:
        found["peak memory"] = f"{record.peak_bytes / 1e9:.2f} GB"
    return {str(name).replace("_", " "): value for name, value in found.items() if value}


def _parts(values: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The values in order, in as many parts of about equal length."""
    items = list(values.items())
    size = max(1, math.ceil(len(items) / count))
    return [dict(items[i : i + size]) for i in range(0, len(items), size)]


def _row(tables: list[str]) -> str:
    """Tables side by side, below each other where the page is narrow."""
    return f'<div style="display:flex;flex-wrap:wrap;gap:0 24px;align-items:flex-start">{"".join(tables)}</div>'


def _table(title: str, values: dict[str, Any]) -> str:
    """A table of names and values below its title; nothing without values."""
    cells = [(html.escape(name), html.escape(ellipsis(_words(value), _CUT))) for name, value in values.items()]
    lines = "".join(f"<tr><th {_NAME}>{name}</th><td {_VALUE}>{words}</td></tr>" for name, words in cells)
    head = f"<b>{title}</b>" if title else ""
    table = f'<table style="margin:0 0 8px 0;table-layout:auto"><tbody>{lines}</tbody></table>'
    return f'<div style="max-width:100%">{head}{table}</div>' if lines else ""


def _words(value: Any) -> str:
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def telling(names: set[str], specs: Sequence[GenerationSpec]) -> list[str]:
    """The names, sorted, without options that each method has at its own default in all specs."""
    untold: set[str] = set()
    for part in names & set(PARTS):
        with contextlib.suppress(WanlabError):  # a method that is not here has defaults that are not known
            told = {f"{part}.{option}" for spec in specs for option in getattr(spec, part).changed()}
            leaves = {f"{part}.{leaf}" for leaf in PARTS[part].model_fields}
            untold |= {name for name in names if name.startswith(f"{part}.")} - told - leaves
    return sorted(names - untold)


def in_words(values: dict[str, Any]) -> str:
    """Dotted names and values as a label: "guidance_scale 1.0", "cache fixed, mask 1010"."""
    leaves = Counter(name.rpartition(".")[2] for name in values)
    words = []
    for name, value in values.items():
        part, _, leaf = name.rpartition(".")
        if part in values and value in (None, {}, ()):
            continue  # an option that this method lacks, or one that says nothing
        words.append(f"{leaf if leaves[leaf] == 1 else name} {_word(value)}")
    return ", ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, MediaRef):
        return value.name or value.sha256[:8]
    if isinstance(value, list | tuple) and value and all(isinstance(v, bool) for v in value):
        return ellipsis("".join("01"[v] for v in value), _WORD)
    return ellipsis(value if isinstance(value, str) and value.isidentifier() else repr(value), _WORD)
