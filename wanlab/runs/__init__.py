"""The format of a run folder: `run.json`, the clip, its latents and the media that went in; and of a sweep's folder.

    <run>/run.json               written last and atomically: while it is missing, the run does not exist
    <run>/attempt-001.json ...   who began it, of several processes that may (`claim`)
    <run>/video.mp4|image.png    the clip, with the spec inside
    <run>/latents.safetensors
    <run>/audio.wav              the sound exactly, if there is any; the mp4 has it as AAC
    <run>/media/<sha256>.<ext>   the pictures and videos that the spec names

    <sweep>/sweep.json           what is planned (`write_sweep`), also sweep-002.json and so on
    <sweep>/<run>/               a folder a run
    <sweep>/progress/            what each process is doing (`write_working`)
    <sweep>/cancel               while it exists, whoever works for the sweep stops

Files are the truth: any process may die at any moment, and any other one reads what is there.
"""

from wanlab.runs._claims import MAX_ATTEMPTS, GaveUp, claim, fail, failure, num_crashes
from wanlab.runs._environment import environment
from wanlab.runs._folder import (
    Source,
    Unchanging,
    artifact,
    beat,
    begin_run,
    encoded,
    folder_name,
    new_folder,
    queue_run,
    shared,
    write_run,
)
from wanlab.runs._heart import keep_alive
from wanlab.runs._held import release
from wanlab.runs._plan import SWEEP_JSON, Point, SweepFile, read_sweep, write_sweep
from wanlab.runs._process import STALE_SECONDS, now
from wanlab.runs._record import NUMERICS, RUN_JSON, Artifact, Failure, RunRecord, Status, read_run, run_id
from wanlab.runs._results import Results, results
from wanlab.runs._row import Row
from wanlab.runs._working import (
    Working,
    clear_cancel,
    end_working,
    is_cancelled,
    read_working,
    request_cancel,
    write_working,
)

__all__ = [
    "MAX_ATTEMPTS",
    "NUMERICS",
    "RUN_JSON",
    "STALE_SECONDS",
    "SWEEP_JSON",
    "Artifact",
    "Failure",
    "GaveUp",
    "Point",
    "Results",
    "Row",
    "RunRecord",
    "Source",
    "Status",
    "SweepFile",
    "Unchanging",
    "Working",
    "artifact",
    "beat",
    "begin_run",
    "claim",
    "clear_cancel",
    "encoded",
    "end_working",
    "environment",
    "fail",
    "failure",
    "folder_name",
    "is_cancelled",
    "keep_alive",
    "new_folder",
    "now",
    "num_crashes",
    "queue_run",
    "read_run",
    "read_sweep",
    "read_working",
    "release",
    "request_cancel",
    "results",
    "run_id",
    "shared",
    "write_run",
    "write_sweep",
    "write_working",
]
