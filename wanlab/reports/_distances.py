"""How far each clip is from the one that differs in a few settings only, such as the same seed without a cache."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import metrics, runs, video
from wanlab.errors import WanlabError, shorten, unknown
from wanlab.files import atomic_write, header_gate, read_json
from wanlab.reports._columns import REFERENCE, is_number
from wanlab.spec import PARTS, plain

if TYPE_CHECKING:
    from wanlab.runs import Row

REPEATS = ("seed", "prompt")
"""Settings that only repeat a measurement: numbers are averaged over them, and a reference is looked for in each."""
_KEPT = "report_metrics.json"
_SCHEMA = 1
_LATENTS = "latents.safetensors"
_MEASURES = ("psnr", "ssim", "latent_psnr")


@dataclass
class Distances:
    """Distances of the runs that have a reference, by the row's index, the references, and why others have none."""

    values: dict[int, dict[str, float]] = field(default_factory=dict)
    references: set[int] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)
    """What makes a run a reference."""
    notes: Counter[str] = field(default_factory=Counter)


def settings_of(row: Row, base: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run by flat name: those of its spec, else of its notebook."""
    spec = readable_spec(row)
    if spec is not None:
        return {name: plain(value) for name, value in spec.flat().items()}
    return {**base, **row.settings}


def readable_spec(row: Row) -> Any:
    """The run's spec; None for a notebook's run and for a spec that this version cannot read."""
    with contextlib.suppress(WanlabError):
        return row.spec
    return None


def measure(
    rows: Sequence[Row], reference: str | Mapping[str, Any], base: Mapping[str, Any], folder: Path
) -> Distances:
    """Compare each clip with the one of the same other settings that has the reference's.

    reference: the id of a run, or settings, as {"cache": "none"}. An id stands for all settings of that run that vary,
    but for seed and prompt. `folder` keeps the numbers, by the files' hashes, for the next report.
    Raises WanlabError for an unknown id or setting, and where more than one run has the reference's settings.
    """
    every = [settings_of(row, base) for row in rows]
    wanted = _by_id(rows, every, reference) if isinstance(reference, str) else _by_settings(every, reference)
    found, kept = Distances(settings=wanted), _Kept(folder / _KEPT)
    places: dict[str, int] = {}
    for i, (row, own) in enumerate(zip(rows, every, strict=True)):
        if row.status == "ok" and all(own.get(name) == value for name, value in wanted.items()):
            other = places.setdefault(_rest(own, wanted), i)
            if other != i:
                raise WanlabError(
                    f"Runs {rows[other].id} and {row.id} both have the reference's settings {shorten(wanted)}",
                    remedy="Give more settings, such as an option of the method, or a run's id.",
                )
    if not places:
        raise WanlabError(f"No run that ended well has the settings {shorten(wanted)}", remedy="Choose others.")
    found.references = set(places.values())
    for i, (row, own) in enumerate(zip(rows, every, strict=True)):
        if row.status != "ok":
            continue
        first = places.get(_rest(own, wanted))
        if first is None:
            found.notes["no distance, as no run with the reference's settings and the same other ones ended well"] += 1
            continue
        found.values[i] = {f"{REFERENCE}{k}": v for k, v in kept.between(rows[first], row, found.notes).items()}
    kept.save()
    return found


def _rest(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The settings that are not the reference's, as a key; options belong to their method."""
    methods = {name for name in wanted if name in PARTS}
    left = {n: v for n, v in own.items() if n not in wanted and n.partition(".")[0] not in methods}
    return json.dumps(left, sort_keys=True, default=str)


def _by_id(rows: Sequence[Row], every: Sequence[dict[str, Any]], reference: str) -> dict[str, Any]:
    places = [i for i, row in enumerate(rows) if reference and row.id.startswith(reference)]
    if len(places) != 1:
        raise unknown("run", reference, [row.id for row in rows], "report.rows lists the ids.")
    own = every[places[0]]
    varying = {n for n in own if n not in REPEATS and any(other.get(n, own[n]) != own[n] for other in every)}
    return {name: own[name] for name in own if name in varying}


def _by_settings(every: Sequence[dict[str, Any]], reference: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by flat name; {"cache": {"method": "fixed", "period": 2}} and cache__period are understood."""
    known = {name for own in every for name in own}
    wanted: dict[str, Any] = {}
    for name, value in reference.items():
        if name in PARTS and isinstance(value, Mapping):
            options = {k: v for k, v in value.items() if k not in ("method", "options")} | dict(
                value.get("options", {})
            )
            wanted |= {f"{name}.{option}": plain(v) for option, v in options.items()}
            value = value.get("method")
            if value is None:
                continue
        wanted[_flat(name, known)] = plain(value)
    if not wanted:
        raise WanlabError("The reference has no settings", remedy='Give some, such as reference={"cache": "none"}.')
    for name in wanted:
        if name not in known:
            raise unknown("setting", name, known, "A spec's flat() lists every setting.")
    return wanted


def _flat(name: str, known: set[str]) -> str:
    """`cache__period` as `cache.period`, `sampling.num_steps` as `num_steps`."""
    dotted = name if "." in name else name.replace("__", ".", 1)
    return next((n for n in (name, dotted, dotted.partition(".")[2]) if n in known), name)


class _Kept:
    """Numbers of earlier reports by the hashes of the two runs' files, which decide them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pairs: dict[str, dict[str, float]] = {}
        with contextlib.suppress(WanlabError, OSError):  # what cannot be read is measured again
            self._pairs = _checked(read_json(path))
        self._before = dict(self._pairs)

    def between(self, first: Row, second: Row, notes: Counter[str]) -> dict[str, float]:
        """PSNR and SSIM of the clips, PSNR of the latents; what cannot be measured is left out and noted."""
        found: dict[str, float] = {}
        for kind, name in (("clip", None), ("latents", _LATENTS)):
            try:
                a, b = _file(first, name), _file(second, name)
                if a is None or b is None:
                    continue
                key = f"{a[1]}:{b[1]}"
                if key not in self._pairs:
                    self._pairs[key] = _clips(a[0], b[0]) if kind == "clip" else _latents(a[0], b[0])
                found |= self._pairs[key]
            except (WanlabError, OSError) as error:
                notes[f"{kind}: {error}"] += 1
        return found

    def save(self) -> None:
        """Keep what is new; a folder that cannot be written to is measured again the next time."""
        if self._pairs == self._before:
            return
        pairs = {key: {n: v if v < float("inf") else "inf" for n, v in p.items()} for key, p in self._pairs.items()}
        with contextlib.suppress(WanlabError):
            atomic_write(self._path, json.dumps({"schema": _SCHEMA, "pairs": pairs}, indent=1, sort_keys=True) + "\n")


def _checked(data: Any) -> dict[str, dict[str, float]]:
    """Pairs of a file that a foreign hand may have written; {} for anything else."""
    pairs = data.get("pairs") if isinstance(data, dict) and data.get("schema") == _SCHEMA else None
    good: dict[str, dict[str, float]] = {}
    for key, values in pairs.items() if isinstance(pairs, dict) else ():
        if not isinstance(values, dict):
            continue
        numbers = {n: float(v) for n, v in values.items() if n in _MEASURES and (is_number(v) or v == "inf")}
        if len(numbers) == len(values):
            good[key] = numbers
    return good


def _file(row: Row, name: str | None) -> tuple[Path, str] | None:
    """A file of a run and its hash, checked to be as it was written; None if the run has none."""
    if row.record is None or row.folder is None or (name is None and row.clip is None):
        return None
    name = row.clip.name if name is None else name  # type: ignore[union-attr]
    entry = next((a for a in row.record.artifacts if a.path == name), None)
    return None if entry is None else (runs.artifact(row.folder, row.record, name), entry.sha256)


def _clips(first: Path, second: Path) -> dict[str, float]:
    a, b = _frames(first), _frames(second)
    found = {"psnr": metrics.psnr(a, b)}
    with contextlib.suppress(WanlabError):  # SSIM's window needs 11 x 11 pixels
        found["ssim"] = metrics.ssim(a, b)
    return found


def _frames(path: Path) -> video.Frames:
    return video.read_image(path)[0][None] if video.is_png(path) else video.read_video(path)[0]


def _latents(first: Path, second: Path) -> dict[str, float]:
    return {"latent_psnr": metrics.latent_psnr(_read_latents(first), _read_latents(second))}


def _read_latents(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    header_gate(path)
    try:
        return load_file(path)["latents"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WanlabError(f"{path.name} holds no latents that numpy reads ({shorten(str(error), 80)})") from None
