"""How much of a sweep over 26 MagCache configurations is the same work, and how much sooner is it done?

    python experiments/sweep_sharing/run.py --model wan_tiny --out experiments/sweep_sharing/results/cpu.json
    python experiments/sweep_sharing/run.py --model wan_t2v_1_3b --out shared.json            # a GPU, random weights
    python experiments/sweep_sharing/run.py --model wan_t2v_1_3b --alone 0 13 --out alone_0.json ...

Denoising one by one (`denoise_recorded` for each) against sharing (`sweeps.denoise_together` for all), compared by the
SHA-256 of every clip's latents. With wan_tiny also whole sweeps, from the first claim to the last file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "families"))

import torch
from torch import Tensor

import wanlab
from wanlab import runs, sweeps
from wanlab.files import atomic_write, resource
from wanlab.sites import NO_CONDITIONS
from wanlab.spec import GenerationSpec
from wanlab.stages import denoise_recorded

THRESHOLDS, MAX_SKIPS = (0.06, 0.12, 0.18, 0.24, 0.30), (1, 2, 3, 4, 5)
VARIED = ("threshold", "max_skip")
PROMPT = "a red circle moves right on a black background"


def configurations(base: GenerationSpec) -> Any:
    """No cache, and 25 settings of MagCache with the ratios published for Wan 2.1 1.3B."""
    constants = json.loads((resource("defaults") / "wan_t2v_1_3b.json").read_text())["constants"]
    magcache = {"method": "magcache", "mag_ratios": constants["mag_ratios"]["ratios"], "retention": 0.2}
    pairs = [(threshold, longest) for threshold in THRESHOLDS for longest in MAX_SKIPS]
    return wanlab.grid(base, cache=["none", *({**magcache, "threshold": t, "max_skip": k} for t, k in pairs)])


class Network:
    """A model with what its runs read: text of its own encoder, or random where that has no weights here."""

    def __init__(self, name: str, device: str, folder: Path, num_steps: int, num_frames: int | None) -> None:
        changes: dict[str, Any] = {"num_steps": num_steps, "seed": 7, "prompt": PROMPT}
        if num_frames is not None:
            changes["num_frames"] = num_frames
        if name == "wan_tiny":
            self.model: Any = wanlab.load(name, device=device)
            self.spec = self.model.spec(**changes)
            self.text: Any = wanlab.encode_text(self.model, self.spec)
            return
        import networks
        from rows import ROWS, plan

        row = next(row for row in ROWS if row.model == name)
        full = plan(row)
        self.model = networks.load(row, full, folder, device)
        height, width, length = row.size
        size = {"height": height, "width": width, "num_frames": length}
        self.spec = self.model.spec(**{**size, **changes}, compile={"compile_mode": "blocks"})
        shape = (1, self.model.text_tokens, full.architecture["transformer"]["text_dim"])
        generator = torch.Generator().manual_seed(3)
        self.text = {
            part: {"embeds": torch.randn(shape, generator=generator).to(self.model.device, self.model.dtype)}
            for part in ("prompt", "negative_prompt")
        }

    def describe(self) -> dict[str, Any]:
        size, sampling = self.spec.size, self.spec.sampling
        return {
            "model": self.model.id,
            "size": f"{size.height}x{size.width}x{size.num_frames}",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "num_steps": sampling.num_steps,
            "sampler": sampling.sampler,
            "guidance_scale": self.spec.guidance.guidance_scale,
            "compile_mode": self.spec.compile.compile_mode,
            "device": torch.cuda.get_device_name() if self.model.device.type == "cuda" else platform.processor(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        }

    def settle(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.model.device.type == "cuda" else None

    def begin(self) -> float:
        self.settle()
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return time.perf_counter()

    def alone(self, specs: Mapping[str, GenerationSpec]) -> Iterator[tuple[str, Tensor, float]]:
        """Each by itself, with its seconds."""
        for key, spec in specs.items():
            begin = self.begin()
            latents, _ = denoise_recorded(self.model, spec, self.text, NO_CONDITIONS)
            self.settle()
            yield key, latents, time.perf_counter() - begin

    def shared(self, specs: Mapping[str, GenerationSpec]) -> dict[str, Any]:
        """All at once: their digests, the seconds of all, forwards that ran."""
        begin = self.begin()
        together = sweeps.denoise_together(self.model, specs, self.text, NO_CONDITIONS)
        latents = {key: found for key, found, _ in together}
        self.settle()
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "forwards": together.executed,
            "peak_bytes": self.peak(),
            "sha256": {key: digest(found) for key, found in latents.items()},
        }


def digest(latents: Tensor) -> str:
    """SHA-256 of latents, every bit of them."""
    return hashlib.sha256(latents.to("cpu").contiguous().numpy().tobytes()).hexdigest()


def whole(network: Network, grid: Any, folder: Path) -> dict[str, Any]:
    """Seconds of `run_sweep` with and without sharing, from an empty folder to all files, and whether they agree."""
    found, latents = {}, {}
    for name, share in (("shared", True), ("alone", False)):
        begin = time.perf_counter()
        results = wanlab.run_sweep(grid, folder / name, model=network.model, share=share)
        found[name] = {"seconds": time.perf_counter() - begin, "counts": results.counts()}
        latents[name] = [digest(results.open(row).latents) for row in results]
    return {**found, "equal": latents["shared"] == latents["alone"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="wan_tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--alone", type=int, nargs=2, metavar=("FROM", "TO"), help="only these, one by one")
    parser.add_argument("--no-shared", action="store_true")
    parser.add_argument("--whole", action="store_true", help="whole sweeps too")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        network = Network(arguments.model, arguments.device, Path(scratch) / "model", arguments.steps, arguments.frames)
        grid = configurations(network.spec)
        specs = dict(zip(map(str, range(len(grid))), grid, strict=True))
        expected = sweeps.forecast(network.model, list(grid))
        found: dict[str, Any] = {
            **network.describe(),
            "commit": runs.environment().get("commit"),
            "forecast": {"alone": expected.alone, "shared": expected.shared, "ratio": expected.ratio},
            "settings": {
                key: {k: v for k, v in spec.cache.options.items() if k != "mag_ratios"} for key, spec in specs.items()
            },
        }

        def save() -> None:
            atomic_write(arguments.out, json.dumps(found, indent=1) + "\n")

        for _ in network.alone({"0": network.spec.with_(num_steps=2)}):  # compile, read weights
            pass
        found["one_forward_bytes"] = network.peak()
        if not arguments.no_shared:
            found["shared"] = network.shared(specs)
            save()
        start, stop = arguments.alone or (0, len(specs))
        chosen = {key: spec for key, spec in specs.items() if start <= int(key) < stop}
        found["alone"] = {"seconds": {}, "sha256": {}}
        for key, latents, seconds in network.alone(chosen):
            found["alone"]["seconds"][key], found["alone"]["sha256"][key] = seconds, digest(latents)
            save()
        if arguments.whole:
            found["whole"] = whole(network, grid, Path(scratch))
        save()
        print(json.dumps({k: v for k, v in found.items() if k not in ("settings", "alone", "shared")}, indent=1))
        print({"shared": found.get("shared", {}).get("seconds"), "alone": sum(found["alone"]["seconds"].values())})


if __name__ == "__main__":
    main()
