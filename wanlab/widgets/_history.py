"""Earlier runs of a model, newest first, from the run folders: what was asked, how it ended, and the way back."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from wanlab import runs, video
from wanlab.details import in_words
from wanlab.errors import WanlabError
from wanlab.inline import ellipsis, poster
from wanlab.spec import GenerationSpec
from wanlab.widgets._buttons import button
from wanlab.widgets._closing import close

_SHOWN = 8  # entries in sight, and more with each press of "More"
_LOOKED_AT = 200  # newest folders whose records are read
_OTHERS = 90  # characters of the settings that differ from the model's
_THUMBNAIL = 64  # pixels
_SAID = ("text.prompt", "sampling.seed", "sampling.num_steps")


@dataclass(frozen=True)
class Entry:
    """One run folder."""

    folder: Path
    record: runs.RunRecord

    @property
    def spec(self) -> GenerationSpec:
        """The spec as it was asked. Raises WanlabError for one that this version cannot read."""
        return GenerationSpec.from_json(self.record.spec)


def entries(root: Path, model_id: str) -> list[Entry]:
    """The runs of a model among the newest 200 below `root`; folders without a readable record are no runs."""
    folders = [(path.parent, _written(path)) for path in root.glob(f"*/{runs.RUN_JSON}")]
    found = []
    for folder, _ in sorted(folders, key=lambda pair: pair[1], reverse=True)[:_LOOKED_AT]:
        try:
            record = runs.read_run(folder)
        except WanlabError:
            continue
        if record.spec.get("model") == model_id:
            found.append(Entry(folder, record))
    return found


def _written(file: Path) -> float:
    """When a file was written; long ago if it was deleted meanwhile."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


class History(widgets.VBox):
    """Runs of one model below a folder, each with "load this spec" and, for those that ended well, "show"."""

    def __init__(self, default: GenerationSpec, load: Callable[[Entry], None], show: Callable[[Entry], None]) -> None:
        self._default, self._load, self._show = default, load, show
        self._num, self._root, self._of = _SHOWN, Path(), default.model
        self._more = button("More", "Show older runs", self._show_more)
        self._rows: dict[tuple[Path, str], Any] = {}
        self._lock = threading.Lock()
        self._box = widgets.VBox()
        inside = widgets.VBox([self._box, self._more])
        self._fold = widgets.Accordion([inside], titles=["history"], selected_index=None)
        super().__init__([self._fold], layout={"display": "none"})

    def fold(self) -> None:
        """Close it, so that what stands below comes into sight."""
        self._fold.selected_index = None

    def _show_more(self) -> None:
        self._num += _SHOWN
        self.refresh(self._root)

    def refresh(self, root: Path) -> None:
        """Read the folder again; from any thread."""
        with self._lock:
            self._root = root
            found = entries(root, self._of)
            shown = {(entry.folder, entry.record.status): entry for entry in found[: self._num]}
            earlier, self._rows = self._rows, {key: self._rows.get(key) or self._row(e) for key, e in shown.items()}
            for key, row in self._rows.items():
                row.children[1].value = _label(shown[key], self._default)
            self._box.children = list(self._rows.values())
            close(*(row for key, row in earlier.items() if key not in self._rows))
            newest = f", {len(shown)} newest shown" if len(shown) < len(found) else ""
            runs_in = f"{len(found)} {'run' if len(found) == 1 else 'runs'} in {root.name}"
            self._fold.set_title(0, f"history · {runs_in}{newest}")
            self._more.layout.display = None if newest else "none"
            self.layout.display = None if found else "none"

    def _row(self, entry: Entry) -> Any:
        load = button("Load settings", "Put the settings of this run into the form", lambda: self._load(entry))
        buttons = [load]
        if entry.record.status == "ok":
            buttons.append(button("Show", "Show its result again", lambda: self._show(entry)))
        text = widgets.HTML(layout={"flex": "1 1 180px"})
        text.add_class("wanlab-text")
        box = widgets.Box(
            [widgets.HTML(_thumbnail(entry)), text, *buttons], layout={"flex_flow": "row wrap", "align_items": "center"}
        )
        box.add_class("wanlab-entry")
        return box


def _label(entry: Entry, default: GenerationSpec) -> str:
    """HTML of what was asked, how it ended and what else was not the model's default."""
    record = entry.record
    prompt, seed, num_steps = (
        _setting(record, *name) for name in (("text", "prompt"), ("sampling", "seed"), ("sampling", "num_steps"))
    )
    facts = [record.status] if record.status != "ok" else []
    facts += [f"seed {seed}", f"{num_steps} steps", _others(entry, default), _ago(record)]
    words = html.escape(ellipsis(str(prompt or ""), 100)) or "<i>no prompt</i>"
    return f'{words}<br><span class="wanlab-quiet">{html.escape(" · ".join(filter(None, facts)))}</span>'


def _others(entry: Entry, default: GenerationSpec) -> str:
    """The settings that differ from the model's, besides those that every entry shows."""
    try:
        diff = default.diff(entry.spec)
    except WanlabError:  # of another version
        return ""
    return ellipsis(in_words({name: there for name, (_, there) in diff.items() if name not in _SAID}), _OTHERS)


def _setting(record: runs.RunRecord, part: str, name: str) -> Any:
    """A setting of a record, which may be foreign; None where it has none."""
    values = record.spec.get(part)
    return values.get(name) if isinstance(values, dict) else None


def _ago(record: runs.RunRecord) -> str:
    """How long ago the run ended, or began."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(record.ended or record.started or "")).total_seconds()
    except (ValueError, TypeError):
        return ""
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


def _thumbnail(entry: Entry) -> str:
    """A small JPEG of the first frame, in the page; a grey square for a run without a picture."""
    style = f'style="width:{_THUMBNAIL}px;height:{_THUMBNAIL}px;object-fit:cover"'
    names = {artifact.path for artifact in entry.record.artifacts} & {"video.mp4", "image.png"}
    try:
        frame = video.first_frame(entry.folder / names.pop()) if names else None
    except WanlabError:
        frame = None
    if frame is None:
        return f'<div class="wanlab-blank" {style}></div>'
    return f'<img {style} alt="" src="{poster(frame[None], (2 * _THUMBNAIL, 2 * _THUMBNAIL))}">'
