"""One generated sample and all that is known about how it came to be: shown inline, saved, opened again."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wanlab import details, inline, media, runs, video
from wanlab.audio import Audio, read_audio, write_wav
from wanlab.errors import WanlabError, shorten
from wanlab.files import header_gate, read_json
from wanlab.inline import Shown
from wanlab.notebook import link, notebook_file
from wanlab.spec import GenerationSpec

_FOLDER, _VIDEO, _IMAGE = "a folder (no ending)", ".mp4", ".png"
_CLIP, _STILL, _LATENTS, _SOUND = "video.mp4", "image.png", "latents.safetensors", "audio.wav"
_TITLE = 240  # characters of the prompt in a tooltip

Frames = np.ndarray[Any, Any]


@dataclass(eq=False)
class Result:
    """One sample: `frames` (T, H, W, 3) uint8, T = 1 for an image; `latents` (1, C, T, H, W) float32 on the CPU; spec.

    `record` is what run.json will hold: what really ran, timings, versions. Opened from a bare mp4 or png, `latents` is
    None and the record knows only the spec and the run's id. A notebook shows it as `show()` says.
    """

    frames: Frames
    latents: Any
    spec: GenerationSpec
    record: runs.RunRecord
    fps: float = 16.0
    path: Path | None = None
    """The file or folder that it was opened from or first saved to."""
    audio: Audio | None = None
    _written: _Written | None = field(default=None, init=False, repr=False)

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
        """How many forwards of the network a cache left out; None without a cache, or where the record is silent."""
        reused = (self.ran.get("cache") or {}).get("reused")
        return None if reused is None else int(reused)

    @property
    def is_video(self) -> bool:
        """Whether it plays: more than one frame, or sound. Otherwise it is an image."""
        return len(self.frames) > 1 or self.audio is not None

    def save(self, path: str | Path) -> Path:
        """Write the sample and return its path; complete or not at all.

        "x.mp4" and "x.png" (one frame) carry the spec inside; a path without an ending becomes a run folder with
        run.json, the picture, the latents, the sound and the media that went in. Raises WanlabError for another ending,
        for a full disk, for a place that cannot be written and, for a folder, where media are no longer stored.
        """
        path = _path(path)
        if path.suffix not in ("", _VIDEO, _IMAGE):
            raise WanlabError(f"Cannot save as {path.name!r}", choices=[_VIDEO, _IMAGE, _FOLDER])
        if path.suffix == _IMAGE and self.is_video:
            what = f"{len(self.frames)} frames" if self.audio is None else "sound"
            raise WanlabError(
                f"{path.name} holds one image and the result has {what}", remedy=f"Save it as {path.stem}{_VIDEO}."
            )
        if not path.suffix:
            runs.write_run(path, self.published_record(), self.artifacts())
            media.remember(path)
        elif path.suffix == _VIDEO:
            self._write_clip(path)
        else:
            video.write_image(path, self.frames[0], comment=self._comment())
        if self._file() is None:
            self._lies_at(path, path if path.suffix else path / self._picture())
        return path

    def keep(self, root: str | Path) -> Path:
        """Save as a run folder below `root`, named after the prompt, the seed and the run; returns the folder.

        If the same sample lies there, nothing is written; other ones are never replaced: the name gets a number. From
        then on `path` is this folder. Raises WanlabError as `save` does.
        """
        folder, is_new = runs.new_folder(root, runs.folder_name(self.spec, self.run_id), self._equals)
        if is_new:
            try:
                self.save(folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                raise
        self.lies_in(folder)
        return folder

    def _equals(self, folder: Path) -> bool:
        """Whether a run folder holds exactly this sample: the same spec, run, picture, latents and sound."""
        record = self.published_record()
        with contextlib.suppress(WanlabError, OSError), tempfile.TemporaryDirectory() as scratch:
            there = runs.read_run(folder)
            same_spec = GenerationSpec.from_json(there.spec) == GenerationSpec.from_json(record.spec)
            if (there.status, there.id, same_spec) != ("ok", record.id, True):
                return False
            for entry in there.artifacts:
                runs.artifact(folder, there, entry.path)
            here = runs.write_run(scratch, record, self.artifacts())
            return {(a.path, a.sha256) for a in here.artifacts} == {(a.path, a.sha256) for a in there.artifacts}
        return False

    def _picture(self) -> str:
        return _CLIP if self.is_video else _STILL

    def lies_in(self, folder: Path) -> None:
        """Note that this run folder holds the sample as it is; `save` and `keep` do so themselves."""
        media.remember(folder)
        self._lies_at(folder, folder / self._picture())

    def _lies_at(self, path: Path, file: Path) -> None:
        """Note where the sample is, and how its picture's file looks now."""
        self.path = path
        self._written = _Written(file.absolute(), _stamp(file), self.frames)

    def _file(self) -> Path | None:
        """The picture's file, if the sample was opened or saved and neither has changed since."""
        written = self._written
        if written is None or written.frames is not self.frames or _stamp(written.file) != written.stamp:
            return None
        return written.file

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

    def artifacts(self) -> dict[str, runs.Source]:
        """The files of a run folder: the picture, which is encoded when it is written, the latents, the sound and the
        media that went in. Raises WanlabError where those are no longer stored."""
        from safetensors.torch import save

        if self.is_video:
            artifacts: dict[str, runs.Source] = {_CLIP: self._write_clip}
        else:
            artifacts = {_STILL: lambda path: video.write_image(path, self.frames[0], comment=self._comment())}
        if self.latents is not None:
            artifacts[_LATENTS] = save({"latents": self.latents.contiguous()})
        if self.audio is not None:
            audio = self.audio
            artifacts[_SOUND] = lambda path: write_wav(path, audio)
        return artifacts | runs.shared(media.run_files(self.spec.media))

    def _write_clip(self, path: Path) -> None:
        crf, comment = self.spec.output.crf, self._comment()
        video.write_video(path, self.frames, self.fps, crf=crf, comment=comment, audio=self.audio)

    def show(self, embed: bool | None = None) -> Shown:
        """The result as HTML: the picture, the prompt, a line of facts; folded, the settings, timings and what ran.

        embed: None links to the file beside the notebook, which keeps the notebook small; a result that lies elsewhere
        or nowhere is first saved below runs/ there. Where no notebook is known, or nothing can be written, a small copy
        goes into the page: at most 320 pixels in height and 2 MB, 20 MB for all of a kernel. True always embeds. False
        insists on the link and raises WanlabError where there can be none.
        """
        address, note = None, ""
        if embed is not True:
            try:
                address = self._address()
            except WanlabError as error:
                if embed is False:
                    raise
                note = f"Embedded as a small copy: {error}"
        if embed is False and address is None:
            raise WanlabError("The page cannot link to a file: no notebook is known here", remedy="show(embed=True)")
        return Shown(self._page(address, note), repr(self))

    def strip(self, num: int = 8) -> Shown:
        """`num` frames, evenly spaced from the first to the last, as one picture sheet; a title is a frame's number.

        Raises WanlabError for less than one.
        """
        if isinstance(num, bool) or not isinstance(num, int) or num < 1:
            raise WanlabError(f"num = {shorten(num)} frames", remedy="Give a number of frames, 1 or more.")
        chosen = np.unique(np.linspace(0, len(self.frames) - 1, min(num, len(self.frames))).round().astype(int))
        page = inline.strip([self.frames[i] for i in chosen], [str(i) for i in chosen])
        return Shown(page, f"{len(chosen)} frames of {self!r}")

    def _address(self) -> str | None:
        """The picture's link from the notebook's page; None where no notebook is known.

        Saved beside the notebook first if the page does not reach it; raises WanlabError if that fails.
        """
        notebook = notebook_file()
        if notebook is None:
            return None
        file = self._file()
        if file is None or link(file) is None or file.suffix != (_VIDEO if self.is_video else _IMAGE):
            self.keep(notebook.parent / "runs")
            file = self._file()
        return None if file is None else link(file)

    def _page(self, address: str | None, note: str) -> str:
        title, has_sound = inline.ellipsis(self.spec.text.prompt, _TITLE), self.audio is not None
        if address is not None:
            picture = inline.linked(self.frames, address, title, is_video=self.is_video, has_sound=has_sound)
        else:
            picture, problem = inline.embedded(self.frames, self.fps, title, self.audio)
            note = " ".join(filter(None, [note, problem]))
        file = self._file()
        place = details.place(file, None if file is None else link(file))
        text = details.caption(self.spec.text.prompt, self._facts(), note, place)
        return f'<figure style="margin:0">{picture}{text}{details.folded(self.spec, self.record, place)}</figure>'

    def _repr_html_(self) -> str:
        return self.show().page

    def _facts(self) -> str:
        return details.facts(self.frames, self.fps, self.audio, self.spec, self.seconds)

    def __repr__(self) -> str:
        return f"Result({shorten(self.spec.text.prompt, 120)} · {self._facts()} · spec {self.spec.id})"


@dataclass(frozen=True)
class _Written:
    """A picture's file as it was when a sample was opened from it or saved to it."""

    file: Path
    stamp: tuple[int, int] | None
    frames: Frames


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, which change when it is written again; None if it is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


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
    audio = None if video.is_png(path) else read_audio(path)
    result = Result(frames, None, spec, record, fps or spec.size.fps or 16.0, audio=audio)
    result._lies_at(path, path)
    if (path.parent / runs.RUN_JSON).is_file():
        media.remember(path.parent)
    return result


def _open_folder(folder: Path) -> Result:
    record = runs.read_run(folder)
    if record.status != "ok":
        why = f": {record.error.message}" if record.error else ""
        alive = record.status in ("pending", "running")
        remedy = "Wait for its end." if alive else "Generate it again from its spec."
        raise WanlabError(f"The run in {folder} is {record.status}{why}", remedy=remedy)
    names = {entry.path for entry in record.artifacts}
    picture = _STILL if _STILL in names else _CLIP
    file = runs.artifact(folder, record, picture)
    frames, fps, _ = _read_picture(file)
    latents = _open_latents(runs.artifact(folder, record, _LATENTS)) if _LATENTS in names else None
    audio = read_audio(runs.artifact(folder, record, _SOUND)) if _SOUND in names else None
    spec = GenerationSpec.from_json(record.spec)
    result = Result(frames, latents, spec, record, fps or spec.size.fps or 16.0, audio=audio)
    result.lies_in(folder)
    return result


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
