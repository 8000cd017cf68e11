"""`wanlab generate`: one generation, watched on stderr, saved whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.cli._console import Parser, command, say
from wanlab.cli._progress import ProgressLine
from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab.result import Result
    from wanlab.spec import GenerationSpec

_INTERVAL = 0.2  # seconds between looks at the job
_RUNS = Path("runs")
_ENDINGS = ("", ".mp4", ".png")
_EPILOG = """\
settings are those of a spec, by flat or dotted name; values are JSON, or text where they are no JSON:

  wanlab generate wan_tiny prompt="a red circle moves right on a black background" seed=7
  wanlab generate wan_tiny prompt="a blue square" guidance_scale=1.0 num_frames=9 --out square.mp4
  wanlab generate wan_tiny cache=fixed 'cache.mask=[true,false,true,true]' num_steps=4
  wanlab generate MODEL image=kite.png fit=pad 'references=["fox.png","hat.png"]'
  wanlab generate --spec square.mp4 seed=8

`wanlab models MODEL` lists a model's settings and their defaults."""


def run(words: Sequence[str]) -> int:
    """Generate and save; prints where, and what came out."""
    arguments = _parser().parse_intermixed_args(words)
    from wanlab.cli._settings import request

    definition, spec = request(arguments.words, arguments.spec, arguments.task)
    out = None if arguments.out is None else Path(arguments.out)
    _check_place(out or _RUNS / "new", spec)
    if out is not None and not arguments.force:
        _check_free(out)
    with contextlib.closing(ProgressLine()) as line:
        line.begin(f"loading {definition.id}")
        from wanlab.jobs import submit  # torch, only after what can be wrong without it
        from wanlab.models import load

        model = load(definition, arguments.device, **spec.weights.model_dump())
        result = _watched(submit(model, model.canonical(spec)), line)
    path = _save(result, out)
    _tell(result, path, str(model.device), as_json=arguments.json)
    return 0


def _parser() -> Parser:
    parser = command(
        "generate", "[MODEL] [setting=value ...] [options]", "Make a clip or an image and save it.", epilog=_EPILOG
    )
    parser.add_argument("words", nargs="*", metavar="MODEL setting=value", help="what to generate, see below")
    parser.add_argument(
        "--spec", metavar="FILE", help="start from settings by wanlab or WanGP: a JSON, clip, image, run folder"
    )
    parser.add_argument("--task", type=int, metavar="N", help="which one, from 1, of a queue that --spec names")
    parser.add_argument(
        "--out", metavar="PATH", help="x.mp4, x.png (one frame) or a folder with all there is; default: one in runs/"
    )
    parser.add_argument("--force", action="store_true", help="replace what --out names")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object: path, run_id, spec_id, seconds")
    return parser


def _check_place(out: Path, spec: GenerationSpec) -> None:
    """Refuse, before the work is done, a place where the result could not be saved."""
    if out.suffix not in _ENDINGS:
        raise WanlabError(f"Cannot save as {out.name!r}", choices=[".mp4", ".png", "a folder (no ending)"])
    if out.suffix == ".png" and spec.size.num_frames not in (None, 1):
        remedy = f"Save it as {out.stem}.mp4, or set num_frames=1"
        raise WanlabError(f"{out.name} holds one image, and num_frames is {spec.size.num_frames}", remedy=remedy)
    if out.suffix and out.is_dir():
        raise WanlabError(f"{out} is a folder", remedy=f"Give a file in it: {out / ('clip' + out.suffix)}")
    if not out.suffix and out.exists() and not (out / "run.json").is_file() and not _is_empty(out):
        raise WanlabError(f"{out} exists and is no run folder", remedy="Name a new folder, or a file such as clip.mp4")
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise WanlabError(f"Nothing can be written into {nearest}", remedy="Give another place with --out")


def _check_free(out: Path) -> None:
    """Refuse to replace an earlier result unasked."""
    if out.is_file() or (out / "run.json").is_file():
        raise WanlabError(f"{out} holds a result already", remedy="Give another name, or replace it with --force")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _watched(job: Any, line: ProgressLine) -> Result:
    """The job's result, with its progress shown until then; Ctrl-C cancels it within a step."""
    try:
        with _announced():
            while not job.done():
                with contextlib.suppress(TimeoutError):
                    job.result(_INTERVAL)
                line.show(job.progress)
            result: Result = job.result()  # or whatever the generation raised
            return result
    except KeyboardInterrupt:
        from wanlab.watch import Cancelled

        job.cancel()
        with contextlib.suppress(Cancelled):  # an interrupt between two looks reaches only us
            job.result()
        raise


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Answer Ctrl-C at once: a step of a large model may take a minute to end."""
    previous = signal.getsignal(signal.SIGINT)

    def handle(*_: Any) -> None:
        os.write(sys.stderr.fileno(), b"\nStopping at the end of this step.\n")  # the stream may be in mid-write
        raise KeyboardInterrupt

    if previous is not signal.default_int_handler:  # a background job ignores it
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _save(result: Result, out: Path | None) -> Path:
    """Save to `out`, or to a new folder under runs/; Ctrl-C waits until the files are whole."""
    from wanlab import runs
    from wanlab.watch import Interrupts

    with Interrupts():
        made = [place for place in (out or _RUNS, *(out or _RUNS).absolute().parents) if not place.exists()]
        path = out or _RUNS / runs.new_folder(_RUNS, runs.folder_name(result.spec, result.run_id))[0].name
        try:
            return result.save(path)
        except BaseException:
            for folder in dict.fromkeys((path, *made)):  # those that are not empty stay
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def _tell(result: Result, path: Path, device: str, *, as_json: bool) -> None:
    seconds = result.seconds["total"]
    if as_json:
        facts = {"path": str(path), "run_id": result.run_id, "spec_id": result.spec.id, "seconds": round(seconds, 3)}
        say(json.dumps(facts))
        return
    frames, height, width = result.frames.shape[:3]
    what = f"{frames} frames of {width}x{height}" if frames > 1 else f"{width}x{height}"
    seed = result.spec.sampling.seed
    say(str(path))
    say(f"{what}, seed {seed}, {seconds:.1f} s on {device}, run {result.run_id}, spec {result.spec.id}")
