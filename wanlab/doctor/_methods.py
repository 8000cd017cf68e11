"""What methods can do here: attention backends, optional packages, files of video; each is tried."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.doctor import _packages
from wanlab.doctor._report import Fact, failure
from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from torch import Tensor

_TOLERANCE = 0.05  # of the norm; 8-bit kernels are at about 0.01, a wrong layout is at about 1
_REQUIRED = {"sdpa", "math"}  # `auto`, and the one that others are measured with
PURPOSES = {  # extra -> what it is for
    "attention": "8-bit attention",
    "browser": "the tests that drive JupyterLab in Chromium",
    "cluster": "sweeps on several GPUs or machines",
    "frame": "tables of sweeps",
    "memory": "models larger than the GPU",
    "metrics": "VMAF, XPSNR, FLIP and SSIMULACRA2",
    "prep": "poses and edges from a video",
    "slurm": "sweeps on a Slurm cluster",
    "upscale": "larger frames",
}
PLANNED = {"attention", "memory", "prep", "upscale"}
"""Extras that no method uses yet; a test sees when that changes."""


def attention() -> Iterator[Fact]:
    """Every registered backend on the device and dtype that `auto` means, against float64 arithmetic."""
    import torch

    from wanlab.models import load

    model = load("wan_tiny")
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 128, 2, 64, generator=generator).to(model.device, model.dtype)
    scores = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) * q.shape[-1] ** -0.5
    expected = torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v.double())
    for name in ATTENTION.names():
        try:
            yield _backend(name, (q, k, v), expected)
        except Exception as error:  # noqa: BLE001 - kernels fail in their own ways, and the next one may work
            found = failure(error, name)
            yield found if name in _REQUIRED else replace(found, status="absent")


def _backend(name: str, inputs: tuple[Tensor, ...], expected: Tensor) -> Fact:
    """One call; the error is relative, in the Euclidean norm."""
    import torch

    from wanlab.sites import AttentionSite, Layout

    site = AttentionSite("doctor", "self", ATTENTION.get(name), Layout(), inputs[0].shape[-1])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 explains at length that flex is slow without a compiler
        found = site(*(x.clone() for x in inputs))  # some kernels change their input
    error = float((found.double() - expected).norm() / expected.norm())
    device, dtype = str(found.device), str(found.dtype).removeprefix("torch.")
    data = {"error": error, "device": device, "dtype": dtype}
    if not error <= _TOLERANCE:  # NaN too
        remedy = "Use another backend, and report this with the output of `wanlab doctor --json`"
        return Fact(name, "failed", f"gives wrong numbers: relative error {error:.1e}", remedy, data)
    return Fact(name, "ok", f"works on {device} in {dtype}, relative error {error:.0e}", data=data)


def extras() -> Iterator[Fact]:
    """Optional packages by extra: versions, or what to install. None is imported: mmgp changes other packages."""
    for extra, needs in _packages.optional().items():
        fact = _extra(extra, needs)
        yield _with_chromium(fact) if extra == "browser" and fact.status == "ok" else fact


def _extra(extra: str, needs: list[Requirement]) -> Fact:
    found = {need.name: version for need in needs if (version := _packages.installed(need)) is not None}
    absent = [need.name for need in needs if need.name not in found]
    old = [
        f"{n.name} {found[n.name]} is not {n.specifier}" for n in needs if n.name in found if not _packages.is_met(n)
    ]
    purpose = PURPOSES.get(extra, "")
    purpose += "; nothing uses it yet" if extra in PLANNED else ""
    if not absent and not old:
        text = ", ".join(f"{name} {version}" for name, version in found.items())
        return Fact(extra, "ok", f"{text} ({purpose})", data=found)
    text = "; ".join([*old, *([f"{', '.join(absent)} not installed"] if absent else [])])
    return Fact(extra, "absent", f"{text} ({purpose})", f'pip install "wanlab[{extra}]"', found)


def _with_chromium(fact: Fact) -> Fact:
    """Playwright alone drives nothing: it uses the system's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        remedy = "Install the system's Chromium (Debian: apt-get install chromium)"
        return replace(fact, status="absent", text=f"{fact.text}; no chromium is on the PATH", remedy=remedy)
    return replace(fact, text=f"{fact.text}, {program}")


def video() -> Iterator[Fact]:
    """A clip and a picture written and read again in a temporary folder."""
    import av

    from wanlab.metrics import psnr
    from wanlab.video import read_image, read_video, write_image, write_video

    frames, note = _moving_square(), "a prompt with ü and 🪁"
    with tempfile.TemporaryDirectory() as folder:
        clip = write_video(Path(folder) / "clip.mp4", frames, 16, crf=18, comment=note)
        back, fps, comment = read_video(clip)
        picture, written = read_image(write_image(Path(folder) / "frame.png", frames[0], comment=note))
        num_bytes = clip.stat().st_size
    if back.shape != frames.shape or fps != 16 or comment != note or psnr(back, frames) < 30:
        raise WanlabError("The mp4 that was read is not the one that was written", remedy=_reinstall("av"))
    quality = psnr(back, frames)
    text = f"PyAV {av.__version__} wrote and read {len(frames)} frames: {quality:.0f} dB, {num_bytes:,} bytes"
    yield Fact("H.264", "ok", text, data={"psnr": quality, "bytes": num_bytes})
    if not (picture == frames[0]).all() or written != note:
        raise WanlabError("The PNG that was read is not the one that was written", remedy=_reinstall("pillow"))
    yield Fact("PNG", "ok", "written and read without loss")


def _moving_square() -> Any:
    """(9, 64, 96, 3) uint8: a white square that moves over a gradient."""
    import numpy as np

    frames = np.empty((9, 64, 96, 3), np.uint8)
    frames[:] = np.linspace(20, 200, 96, dtype=np.uint8)[:, None]
    for index in range(9):
        frames[index, 24:40, 8 * index : 8 * index + 16] = 255
    return frames


def _reinstall(package: str) -> str:
    return f"pip install --force-reinstall {package}"
