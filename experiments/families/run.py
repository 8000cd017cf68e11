"""Seconds a step and peak memory of the Wan family at real size, random weights, beside diffusers in one process.

    python experiments/families/run.py --out experiments/families/results/h100.json [--rows a,b] [--deadline 540]

A row builds one model on the GPU and puts diffusers' pipeline around the same modules. Then ours and diffusers take
turns: conditions and some denoising steps from the same noise, whose latents must agree; then each decodes them.
`--tiny` does all of it with narrow networks and small pictures, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

BEGIN = time.perf_counter()

import diffusers  # noqa: E402
import networks  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from clock import GB, Clock, Gauge  # noqa: E402
from inputs import Inputs  # noqa: E402
from peer import Peer  # noqa: E402
from rows import ROWS, STARTUP, Plan, Row, plan, tiny  # noqa: E402
from torch import Tensor  # noqa: E402

import wanlab  # noqa: E402
from wanlab.files import atomic_write  # noqa: E402

LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-4, 1e-1)}
"""Largest relative difference of what the first step changed, and of what the later ones did: in bfloat16 a difference
of 1e-6 after the first step turns roundings over in every later forward."""
OTHER_KERNELS = 2e-2
"""The first limit in bfloat16 where the sides embed other numbers of timesteps, and so use other kernels (TI2V)."""
SAME_STAGE = 1e-3
"""Largest relative difference of text embeddings and of pixels from the same latents."""
ROOM = 10 * GB
"""Bytes that a denoising step needs beside the weights, about; where they are not there, the text encoder leaves."""
MEMORY_ERROR = "out of memory"
PROMPT = "a red kite over dunes, the camera follows it along the shore while the sun sets"
NEGATIVE = "blurred, static, grey, low quality"
Found = dict[str, Any]
Save = Callable[[], None]


def rel(a: Tensor, b: Tensor, base: Tensor | float = 0.0) -> float:
    """Norm of a - b over that of b - base; raises for anything that is not finite."""
    a, b = a.float(), b.float()
    found = float((a - b).norm() / (b - base).norm())
    if not found < float("inf"):
        raise ValueError("the sides' results are not finite")
    return found


class Measurement:
    """One row: both sides around one set of modules. `found` fills while it runs."""

    def __init__(self, row: Row, plan: Plan, rounds: tuple[int, ...], folder: Path, device: str) -> None:
        self.row, self.rounds = row, rounds
        self.model = networks.load(row, plan, folder, device)
        self.gauge = Gauge(self.model.device)
        self.inputs = Inputs(row.media, row.size)
        height, width, num_frames = row.size
        shift = {} if row.flow_shift is None else {"flow_shift": row.flow_shift}
        settings = {"height": height, "width": width, "num_frames": num_frames, "num_steps": rounds[0], "seed": 7}
        settings |= {"prompt": PROMPT, "negative_prompt": NEGATIVE, "sampler": "unipc", **shift}
        self.spec = self.model.spec(**settings, **self.inputs.for_wanlab())
        resolved = self.spec.resolve(self.model)
        shape = self.model.latent_shape(resolved)
        self.found: Found = {
            "model": row.model,
            "definition": plan.source,
            "size": f"{height}x{width}x{num_frames}",
            "media": row.media,
            "latents": list(shape),
            "tokens": shape[1] * shape[2] * shape[3] // 4,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "guidance": [resolved.guidance.guidance_scale, resolved.guidance.guidance_scale_2],
            "flow_shift": resolved.sampling.flow_shift,
            "rounds": list(rounds),
            "other_kernels": plan.expand_timesteps,
            "experts": self.model.experts(resolved),
            "ours": {},
            "diffusers": {},
        }
        assert set(self.found["experts"]) == set(self.model.experts_present), "these steps leave an expert unused"

    def run(self, save: Save) -> None:
        """Load, text, rounds, decode; `save` is called whenever something was found."""
        begin = self.gauge.now()
        for part in self.model.parts.values():
            part.module  # noqa: B018  makes it
        sizes = networks.weight_bytes(self.model)
        self.found["weights_gb"] = {name: round(size / GB, 2) for name, size in sizes.items()}
        self.found["load_seconds"] = round(self.gauge.now() - begin, 2)
        peer = Peer(self.model, self.spec.resolve(self.model), self.inputs)
        self._text(peer)
        self._make_room(peer, sum(sizes.values()))
        save()
        noise = self.model.initial_noise(self.spec)
        latents = noise
        for num_steps in self.rounds:
            latents = self._round(peer, noise, num_steps)
            save()
            if latents is None:
                return
        if self.row.decode:
            self._decode(peer, latents)
        self.found["agrees"] = self.agrees()

    def _text(self, peer: Peer) -> None:
        wanlab.encode_text(self.model, self.spec)  # the first call of a network is not like the others
        text, self.found["ours"]["text"] = self.gauge.stage(lambda: wanlab.encode_text(self.model, self.spec))
        theirs, self.found["diffusers"]["text"] = self.gauge.stage(peer.text)
        pairs = zip(theirs, ("prompt", "negative_prompt"), strict=True)
        self.found["text_rel"] = max(rel(text[name]["embeds"], their) for their, name in pairs)
        self.text, self.their_text = text, theirs

    def _make_room(self, peer: Peer, weights: int) -> None:
        """The text encoder leaves where weights and a step do not fit together."""
        fits = not torch.cuda.is_available() or weights + ROOM < torch.cuda.get_device_properties(0).total_memory
        self.found["text_encoder"] = "stays" if fits else "leaves after the text"
        if not fits:
            peer.forget_text_encoder()
            self.model.unload("text_encoder")
            free()

    def _round(self, peer: Peer, noise: Tensor, num_steps: int) -> Tensor | None:
        """Ours, then diffusers, from the same noise. Our latents, or None where a side had no memory."""
        ours = self._attempt("ours", lambda clock: self._denoise(noise, num_steps, clock))
        theirs = self._attempt("diffusers", lambda clock: peer.denoise(self.their_text, noise, num_steps, clock))
        if ours is None or theirs is None:
            return None
        differ = [rel(a, b, noise) for a, b in zip(ours, theirs, strict=True)]
        self.found.setdefault("latents_rel", []).append(differ)
        speeds = " and ".join(f"{self.found[side]['denoise']['step_seconds']:.3f}" for side in ("ours", "diffusers"))
        print(
            f"  {num_steps} steps: {speeds} s a step, latents differ by {differ[0]:.1e} to {differ[-1]:.1e}", flush=True
        )
        return ours[-1]

    def agrees(self) -> bool:
        """Whether all that both sides made is the same but for rounding."""
        first, later = LIMITS[self.model.dtype]
        if self.found["other_kernels"] and self.model.dtype != torch.float32:
            first = OTHER_KERNELS
        rounds = self.found["latents_rel"]
        same = max(self.found["text_rel"], self.found.get("pixels_rel", 0.0)) <= SAME_STAGE
        return same and all(r[0] <= first and max(r) <= max(first, later) for r in rounds)

    def _attempt(self, side: str, run: Callable[[Clock], None]) -> list[Tensor] | None:
        """The latents after each step, or None where there was no memory."""
        clock = Clock(self.gauge)
        try:
            run(clock)
        except torch.OutOfMemoryError:
            self.found[side]["denoise"] = MEMORY_ERROR
            free()
            return None
        before = self.found[side].get("denoise", {"steps": [], "peak_gb": None})
        steps = [*before["steps"], clock.steps]
        flat = [seconds for part in steps for seconds in part]
        peaks = [peak for peak in (before["peak_gb"], clock.peak_gb) if peak is not None]
        self.found[side]["conditions"] = clock.conditions
        self.found[side]["denoise"] = {
            "steps": steps,
            "step_seconds": round(statistics.median(flat[1:] or flat), 4),
            "peak_gb": max(peaks, default=None),
        }
        return clock.latents

    def _denoise(self, noise: Tensor, num_steps: int, clock: Clock) -> None:
        spec = self.spec.with_(num_steps=num_steps)
        with self.inputs.readable(), self.model.on_begin(lambda ctx: clock.forward()), self._watch_prompt():
            clock.start()
            conditions = wanlab.encode_conditions(self.model, spec)
            latents = wanlab.denoise(
                self.model, spec, self.text, conditions, noise, on_step=lambda *seen: clock.step(seen[2])
            )
            clock.end(latents)

    @contextmanager
    def _watch_prompt(self) -> Iterator[None]:
        """Find out, in the first step of all, how far apart the predictions of the two prompts are."""
        if "prompts_rel" in self.found:
            yield
            return
        velocity, seen = self.model.velocity, []

        def noting(latents: Tensor, ctx: Any, branch: Any) -> Tensor:
            seen.append(velocity(latents, ctx, branch))
            return seen[-1]

        with mock.patch.object(self.model, "velocity", noting):
            yield
        self.found["prompts_rel"] = rel(seen[0], seen[1])

    @torch.no_grad()
    def _decode(self, peer: Peer, latents: Tensor) -> None:
        """From latents to pixels on the device, once a side, after a short clip for both."""
        with suppress(torch.OutOfMemoryError):  # it will come again where it counts
            peer.decode(latents[:, :, :3])
        pixels = {}
        for side, run in (("ours", self.model.decode_pixels), ("diffusers", peer.decode)):
            try:
                out, self.found[side]["decode"] = self.gauge.stage(lambda run=run: run(latents))
            except torch.OutOfMemoryError:
                self.found[side]["decode"] = MEMORY_ERROR
            else:
                pixels[side] = out.to("cpu")
                del out
            free()
        if len(pixels) == 2:
            both = (pixels[side].to(self.model.device) for side in ("ours", "diffusers"))
            self.found["pixels_rel"] = rel(*both)


def free() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine() -> Found:
    """What the figures belong to."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / GB, 1) if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def fitting(row: Row, left: float) -> tuple[int, ...]:
    """The rounds of a row that end within `left` seconds; none where even the first does not."""
    for num_rounds in range(len(row.rounds), 0, -1):
        if row.predicted(row.rounds[:num_rounds]) <= left:
            return row.rounds[:num_rounds]
    return ()


def measure(row: Row, plan: Plan, left: float, device: str, save: Callable[[Found], None]) -> Found:
    """What was found about a row; errors are part of it, so that the next row runs."""
    rounds = fitting(row, left)
    if not rounds:
        return {"skipped": f"{row.predicted(row.rounds[:1]):.0f} s predicted, {left:.0f} s left"}
    begin = time.perf_counter()
    found: Found = {}
    try:
        with tempfile.TemporaryDirectory(prefix="wanlab-families-") as folder:
            run = Measurement(row, plan, rounds, Path(folder) / "checkpoint", device)
            found = run.found
            run.run(lambda: save(found))
    except Exception as error:  # noqa: BLE001  a row that fails must not cost the others
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"[:500]
    found["seconds"] = round(time.perf_counter() - begin, 1)
    found["predicted_seconds"] = round(row.predicted(rounds), 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", help="names with commas; all by default")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds from the start of the process")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    names = args.rows.split(",") if args.rows else [row.name for row in ROWS]
    if unknown := sorted(set(names) - {row.name for row in ROWS}):
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(row.name for row in ROWS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("real sizes need a GPU; --tiny runs on a CPU")
    results: Found = {"machine": machine(), "tiny": args.tiny, "rows": {}}

    def save(name: str, found: Found) -> None:
        results["rows"][name] = found
        atomic_write(args.out, json.dumps(results, indent=2) + "\n")

    print(f"{results['machine']}, started in {time.perf_counter() - BEGIN:.1f} s ({STARTUP:.0f} predicted)", flush=True)
    for row in (row for row in ROWS if row.name in names):
        full = plan(row)
        chosen, chosen_plan = tiny(row, full) if args.tiny else (row, full)
        print(chosen.name, flush=True)
        left = args.deadline - (time.perf_counter() - BEGIN)
        found = measure(chosen, chosen_plan, left, device, lambda found, name=row.name: save(name, found))
        save(row.name, found)
        free()
        print(f"  {found.get('error') or found.get('skipped') or str(found['seconds']) + ' s'}", flush=True)
    good = all(found.get("agrees", "skipped" in found) for found in results["rows"].values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
