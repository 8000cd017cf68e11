"""One generated sample and all that is known about how it came to be: shown inline, saved, opened again."""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wanlab import runs, video
from wanlab.errors import WanlabError, shorten
from wanlab.files import header_gate, read_json
from wanlab.inline import ellipsis, player
from wanlab.spec import GenerationSpec

_FOLDER, _VIDEO, _IMAGE = "a folder (no ending)", ".mp4", ".png"

Frames = np.ndarray[Any, Any]


@dataclass(eq=False)
class Result:
    """One sample: `frames` (T, H, W, 3) uint8, T = 1 for an image; `latents` (1, C, T, H, W) float32 on the CPU; spec.

    `record` is what run.json will hold: what really ran, timings, versions. Opened from a bare mp4 or png, `latents` is
    None and the record knows only the spec and the run's id.
    """

    frames: Frames
    latents: Any
    spec: GenerationSpec
    record: runs.RunRecord
    fps: float = 16.0
    path: Path | None = None
    """The file or folder it was opened from."""

    @property
    def resolved(self) -> GenerationSpec | None:
        """The spec with every `auto` made concrete, as it ran."""
        found = self.record.resolved.get("spec")
        return None if found is None else GenerationSpec.from_json(found)

    @property
    def ran(self) -> dict[str, Any]:
        """What really ran: the attention kernel, the cache's hit map, compilation, tokens, attachments by hand."""
        return dict(self.record.resolved.get("ran", {}))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage and in total; loading of weights counts for the stage that needed them."""
        return dict(self.record.timings)

    @property
    def peak_bytes(self) -> int:
        """Peak of the GPU's memory; on the CPU, of the process."""
        return self.record.peak_bytes or 0

    @property
    def versions(self) -> dict[str, Any]:
        """Packages, device and commit that made it."""
        return dict(self.record.env)

    @property
    def run_id(self) -> str:
        """Equal for results of the same spec, weights and numerics."""
        return self.record.id

    @property
    def skipped_forwards(self) -> int | None:
        """How many forwards of the network a cache left out; None without a cache."""
        cache = self.ran.get("cache")
        return None if cache is None else int(cache["reused"])

    def save(self, path: str | Path) -> Path:
        """Write the sample and return its path; complete or not at all.

        "x.mp4" and "x.png" (one frame) carry the spec inside; a path without an ending becomes a run folder with
        run.json, the picture and the latents. Raises WanlabError for another ending, for a full disk and for a place
        that cannot be written.
        """
        path = _path(path)
        if path.suffix == _VIDEO:
            return video.write_video(path, self.frames, self.fps, crf=self.spec.output.crf, comment=self._comment())
        if path.suffix == _IMAGE:
            if len(self.frames) != 1:
                raise WanlabError(
                    f"{path.name} holds one image and the result has {len(self.frames)} frames",
                    remedy=f"Save it as {path.stem}{_VIDEO}.",
                )
            return video.write_image(path, self.frames[0], comment=self._comment())
        if path.suffix:
            raise WanlabError(f"Cannot save as {path.name!r}", choices=[_VIDEO, _IMAGE, _FOLDER])
        return self._save_folder(path)

    def _comment(self) -> str:
        """What travels inside the file: the spec, without prompts if it says so, and the run's id."""
        spec = publishable(self.spec)
        return json.dumps({"wanlab": {"spec": json.loads(spec.to_json()), "run": self.run_id}}, ensure_ascii=False)

    def published_record(self) -> runs.RunRecord:
        """The record as it is written: without prompts if the spec says so."""
        if not self.spec.output.strip_prompt:
            return self.record
        record, resolved = self.record.with_(spec=publishable(self.spec).to_dict()), self.resolved
        if resolved is None:
            return record
        return record.with_(resolved={**record.resolved, "spec": publishable(resolved).to_dict()})

    def _save_folder(self, folder: Path) -> Path:
        runs.write_run(folder, self.published_record(), self.artifacts())
        return folder

    def artifacts(self) -> dict[str, runs.Source]:
        """The files of a run folder: the picture, which is encoded when it is written, and the latents."""
        from safetensors.torch import save

        picture = "image.png" if len(self.frames) == 1 else "video.mp4"
        artifacts: dict[str, runs.Source] = {picture: self._save_picture}
        if self.latents is not None:
            artifacts["latents.safetensors"] = save({"latents": self.latents.contiguous()})
        return artifacts

    def _save_picture(self, path: Path) -> None:
        if len(self.frames) == 1:
            video.write_image(path, self.frames[0], comment=self._comment())
        else:
            video.write_video(path, self.frames, self.fps, crf=self.spec.output.crf, comment=self._comment())

    def _repr_html_(self) -> str:
        picture = player(self.frames, self.fps, self.spec.text.prompt, self.path)
        prompt, facts = html.escape(ellipsis(self.spec.text.prompt, 240)), html.escape(self._facts())
        caption = f'<figcaption>{prompt}<br><small style="opacity:0.7">{facts}</small></figcaption>'
        return f'<figure style="margin:0">{picture}{caption}</figure>'

    def _facts(self) -> str:
        frames, height, width = self.frames.shape[:3]
        size = f"{width}x{height}" + (f", {frames} frames at {self.fps:g}/s" if frames > 1 else "")
        took = f" · made in {self.seconds['total']:.1f} s" if "total" in self.seconds else ""
        return f"{size} · seed {self.spec.sampling.seed}{took} · spec {self.spec.id}"

    def __repr__(self) -> str:
        return f"Result({shorten(self.spec.text.prompt, 120)} · {self._facts()})"


def publishable(spec: GenerationSpec) -> GenerationSpec:
    """The spec without prompts, if it asks for that."""
    return spec.with_(prompt="", negative_prompt="") if spec.output.strip_prompt else spec


def _path(path: Any) -> Path:
    """A path that a user gave. Raises WanlabError for None, an empty text and what no path can hold."""
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
        raise WanlabError(f"{shorten(path)} is no path", remedy='Give a file or folder, such as "kite.mp4" or "kite".')
    return Path(path)


def open_result(path: str | Path) -> Result:
    """A saved result: an mp4 or png that carries its spec, or a run folder (or its run.json), which has latents
    and timings too.

    Frames of an mp4 have been through H.264. Raises WanlabError for a file without a spec, for a run that did not end
    well and for files that are damaged or cannot be read.
    """
    path = _path(path)
    if path.name == runs.RUN_JSON:
        path = path.parent
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise WanlabError(f"Cannot read {path}: {error.strerror or error}", remedy="Check the path.") from error


def _open_file(path: Path) -> Result:
    frames, fps, comment = _read_picture(path)
    try:
        inside = read_json(comment if comment.startswith("{") else "{}", max_bytes=video.MAX_COMMENT)["wanlab"]
        spec, run = GenerationSpec.from_json(inside["spec"]), str(inside["run"])
    except (KeyError, TypeError, WanlabError) as error:
        raise WanlabError(
            f"{path} carries no spec of wanlab ({shorten(str(error), 120)})",
            remedy="Open a file written by Result.save, or the run folder; sites that re-encode videos remove it.",
        ) from None
    record = runs.RunRecord(id=run, status="ok", spec=spec.to_dict(), seeds=[spec.sampling.seed])
    return Result(frames, None, spec, record, fps or spec.size.fps or 16.0, path)


def _open_folder(folder: Path) -> Result:
    record = runs.read_run(folder)
    if record.status != "ok":
        why = f": {record.error.message}" if record.error else ""
        alive = record.status in ("pending", "running")
        remedy = "Wait for its end." if alive else "Generate it again from its spec."
        raise WanlabError(f"The run in {folder} is {record.status}{why}", remedy=remedy)
    names = {entry.path for entry in record.artifacts}
    picture = next((name for name in ("video.mp4", "image.png") if name in names), "video.mp4")
    frames, fps, _ = _read_picture(runs.artifact(folder, record, picture))
    latents = None
    if "latents.safetensors" in names:
        latents = _open_latents(runs.artifact(folder, record, "latents.safetensors"))
    spec = GenerationSpec.from_json(record.spec)
    return Result(frames, latents, spec, record, fps or spec.size.fps or 16.0, folder)


def _open_latents(path: Path) -> Any:
    """The latents (1, C, T, H, W) of a run; raises WanlabError for a damaged file and for one of something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    entry = header_gate(path).get("latents")
    if entry is None or len(entry["shape"]) != 5:
        raise WanlabError(f"{path} holds no latents (1, C, T, H, W)", remedy="Generate the run again from its spec.")
    try:
        return load_file(path)["latents"]
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a format that torch does not have
        raise WanlabError(f"{path} cannot be read: {error}", remedy="Generate the run again from its spec.") from error


def _read_picture(path: Path) -> tuple[Frames, float, str]:
    """Frames (T, H, W, 3), frames per second (0 for an image) and the text inside."""
    if video.is_png(path):
        frame, comment = video.read_image(path)
        return frame[None], 0.0, comment
    return video.read_video(path)
