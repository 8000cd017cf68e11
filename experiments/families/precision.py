"""How exact is one bfloat16 forward, ours and diffusers', where the two use different kernels?

    python experiments/families/precision.py --out experiments/families/results/precision.json [--tiny | --layout]

The same random weights and inputs go through both in bfloat16, and through both in float32. Where both bfloat16 results
are equally far from float32, and the two float32 results agree, their difference is rounding and not work left out.

`--layout` runs VACE at full size in bfloat16 and asks whether the difference there is one of memory layout alone:
diffusers' VACE network keeps its tokens transposed in memory, so that some of its matrix products are other kernels;
with tokens laid out as ours, does it give our bits?
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from rows import ROWS, plan, tiny
from torch import Tensor

from wanlab.files import atomic_write
from wanlab.sites import Branch, Conditions, StepContext

SIZE = {"vace_14b": (480, 832, 17), "ti2v_5b_first": (704, 1280, 25)}
"""(height, width, frames); few frames, since float32 weights and activations are on the device too."""
LAYERS = {"vace_14b": 10, "ti2v_5b_first": 30}
TIMESTEP = 900.0


def rel(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference.double()).norm() / reference.double().norm())


class Case:
    """One network with its inputs."""

    def __init__(self, row: str, device: str, is_tiny: bool, is_whole: bool = False) -> None:
        self.row = row
        chosen = next(known for known in ROWS if known.name == row)
        layout = plan(chosen)
        if is_tiny:
            chosen, layout = tiny(chosen, layout)
        config = dict(layout.architecture["transformer"])
        if not is_tiny and not is_whole:
            config["num_layers"] = LAYERS[row]
            if "vace_layers" in config:
                config["vace_layers"] = [i for i in config["vace_layers"] if i < LAYERS[row]]
        layout = replace(layout, architecture={**layout.architecture, "transformer": config})
        height, width, frames = (32, 64, 9) if is_tiny else chosen.size if is_whole else SIZE[row]
        self._folder = tempfile.TemporaryDirectory()
        self.model = networks.load(chosen, layout, Path(self._folder.name) / "model", device, "bfloat16")
        stride = self.model.geometry.pixel_stride
        grid = ((frames - 1) // 4 + 1, height // stride, width // stride)
        draw = torch.Generator().manual_seed(0)
        self.latents = torch.randn(1, self.model.geometry.channels, *grid, generator=draw).to(device)
        self.text = torch.randn(1, 512, config["text_dim"], generator=draw).to(device)
        self.conditions = self._conditions(config, grid, draw, device)

    def _conditions(
        self, config: dict[str, Any], grid: tuple[int, ...], draw: torch.Generator, device: str
    ) -> Conditions:
        if "vace_layers" in config:
            control = torch.randn(1, config["vace_in_channels"], *grid, generator=draw).to(device)
            return Conditions(control=(control,), control_scale=((1.0,) * len(config["vace_layers"]),))
        free = torch.ones(1, 1, *grid, device=device)
        free[:, :, 0] = 0
        return Conditions(known=self.latents, free=free)

    def ours(self, dtype: torch.dtype) -> Tensor:
        self.model.dtype = dtype
        ctx = StepContext(0, 1, TIMESTEP / 1000, timestep=TIMESTEP)
        return self.model.velocity(self.latents, ctx, Branch("cond", {"embeds": self.text}, self.conditions))

    @torch.no_grad()
    def theirs(self, dtype: torch.dtype) -> Tensor:
        network = self.model.parts["transformer"].module
        before = dict(network.attn_processors)
        network.set_attn_processor(WanAttnProcessor())
        timestep = torch.full((1,), TIMESTEP, device=self.latents.device)
        extra: dict[str, Tensor] = {}
        if self.conditions.control:
            extra["control_hidden_states"] = self.conditions.control[0].to(dtype)
            extra["control_hidden_states_scale"] = torch.tensor(self.conditions.control_scale[0]).to(timestep).to(dtype)
        else:
            free = self.conditions.free
            assert free is not None
            timestep = (free[0, 0, :, ::2, ::2] * TIMESTEP).flatten()[None]
        found = network(self.latents.to(dtype), timestep, self.text.to(dtype), return_dict=False, **extra)[0]
        network.set_attn_processor(before)
        return found

    def run(self) -> dict[str, float]:
        """Relative differences of the velocities."""
        half = self.ours(torch.bfloat16), self.theirs(torch.bfloat16)
        self.model.parts["transformer"].module.float()
        full = self.ours(torch.float32), self.theirs(torch.float32)
        return {
            "ours bfloat16 from float32": rel(half[0], full[1]),
            "diffusers bfloat16 from float32": rel(half[1], full[1]),
            "ours from diffusers, bfloat16": rel(half[0], half[1]),
            "ours from diffusers, float32": rel(full[0], full[1]),
        }


def layout(device: str, is_tiny: bool) -> dict[str, float]:
    """Relative differences of VACE's velocity at full size: as diffusers runs, and with its tokens laid out as ours."""
    case = Case("vace_14b", device, is_tiny, is_whole=True)
    network, half = case.model.parts["transformer"].module, torch.bfloat16
    ours, theirs = case.ours(half), case.theirs(half)
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: out.to(memory_format=torch.channels_last_3d))
        for module in (network.patch_embedding, network.vace_patch_embedding)
    ]
    alike = case.theirs(half)
    for hook in hooks:
        hook.remove()
    return {"ours from diffusers": rel(ours, theirs), "ours from diffusers, tokens laid out alike": rel(ours, alike)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--layout", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "sizes": SIZE}
    if arguments.layout:
        found = {"device": found["device"], "vace_14b at full size": layout(device, arguments.tiny)}
        print(found)
    for row in () if arguments.layout else SIZE:
        case = Case(row, device, arguments.tiny)
        found[row] = case.run()
        print(row, found[row])
        del case
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    atomic_write(arguments.out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
