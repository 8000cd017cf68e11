"""The two sides: wanlab's `denoise` with its fixed cache, and cache-dit on diffusers' network in the same loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cache_dit
import networks
import torch
from diffusers import WanTransformer3DModel
from gauges import Ticks
from rows import ROWS, plan, tiny
from torch import Tensor

from wanlab.sampling import sample
from wanlab.sites import NO_CONDITIONS
from wanlab.stages import denoise_recorded, make_sampler

Mask = Sequence[bool]
NAME = "t2v_1_3b"
TINY_BLOCKS = 10
"""More than the 8 that cache-dit always runs by default."""


class Ours:
    """Wan 2.1 1.3B with random weights in wanlab, blocks compiled, guidance by two forwards a step."""

    def __init__(self, folder: Path, device: str, is_tiny: bool) -> None:
        row = next(row for row in ROWS if row.name == NAME)
        full = plan(row)
        row, self.plan = tiny(row, full) if is_tiny else (row, full)
        if is_tiny:
            self.plan.architecture["transformer"]["num_layers"] = TINY_BLOCKS
        self.model = networks.load(row, self.plan, folder, device)
        height, width, num_frames = row.size
        self.spec = self.model.spec(
            prompt="a red kite over dunes", height=height, width=width, num_frames=num_frames, seed=7
        ).with_(sampler="unipc", compile={"compile_mode": "blocks"})
        config = self.plan.architecture["transformer"]
        generator = torch.Generator().manual_seed(3)
        shape = (1, self.model.text_tokens, config["text_dim"])
        self.text = {
            name: {"embeds": torch.randn(shape, generator=generator).to(self.model.device, self.model.dtype)}
            for name in ("prompt", "negative_prompt")
        }
        self.noise = self.model.initial_noise(self.spec.resolve(self.model))

    def describe(self) -> dict[str, Any]:
        spec = self.spec.resolve(self.model)
        _, frames, height, width = self.model.latent_shape(spec)
        patch = self.plan.architecture["transformer"]["patch_size"]
        return {
            "size": f"{spec.size.height}x{spec.size.width}x{spec.size.num_frames}",
            "tokens": frames * height * width // (patch[0] * patch[1] * patch[2]),
            "blocks": self.plan.architecture["transformer"]["num_layers"],
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "sampler": spec.sampling.sampler,
            "flow_shift": spec.sampling.flow_shift,
            "guidance_scale": spec.guidance.guidance_scale,
            "batch_branches": spec.guidance.batch_branches,
            "compile_mode": spec.compile.compile_mode,
        }

    def run(self, num_steps: int, mask: Mask | None, ticks: Ticks) -> tuple[Tensor, dict[str, Any]]:
        """The whole stage as a user calls it: (clean latents, what ran)."""
        spec = self.spec.with_(num_steps=num_steps)
        if mask is not None:
            spec = spec.with_(cache={"method": "fixed", "mask": tuple(mask)})
        ticks.mark()
        latents, ran = denoise_recorded(self.model, spec, self.text, NO_CONDITIONS, self.noise, ticks.mark)
        assert not ran["uncompiled"], ran["uncompiled"]
        if mask is not None:
            for name, hits in ran["cache"]["hit_map"].items():
                assert [hits[str(i)] for i in range(num_steps)] == list(mask), f"{name} ran other steps"
        return latents, {"state_bytes": ran["cache"]["state_bytes"] if mask is not None else 0}


class Peer:
    """diffusers' transformer of the same weights, blocks compiled in place, cached by cache-dit.

    `Module.compile` changes the block objects themselves, which cache-dit holds on to: enabled before or after, its
    cache runs compiled blocks. (Replacing blocks by `torch.compile(block)` after enabling would leave it eager ones.)
    """

    def __init__(self, ours: Ours) -> None:
        self.ours, model = ours, ours.model
        config = ours.plan.architecture["transformer"]
        self.network: Any = networks.random_module(WanTransformer3DModel, config, model.dtype, model.device)
        theirs = dict(model.parts["transformer"].module.named_parameters())
        for name, parameter in self.network.named_parameters():
            assert torch.equal(parameter, theirs[name]), f"{name} differs"
        self._is_compiled = False

    def run(
        self, num_steps: int, mask: Mask | None, ticks: Ticks, first: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """wanlab's loop and sampler around the network; `first` blocks always run where a mask is given."""
        if mask is not None:
            assert first is not None
            self._enable(num_steps, mask, first)
        if not self._is_compiled:
            self.network.compile_repeated_blocks(fullgraph=True, dynamic=False)
            self._is_compiled = True
        try:
            latents = self._denoise(num_steps, ticks)
            return latents, {"state_bytes": self._check(num_steps, mask) if mask is not None else 0}
        finally:
            if mask is not None:
                cache_dit.disable_cache(self.network)

    def _enable(self, num_steps: int, mask: Mask, first: int) -> None:
        """cache-dit's defaults but for the mask, the number of steps and the number of first blocks."""
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=first,
            Bn_compute_blocks=0,
            enable_separate_cfg=True,
            num_inference_steps=num_steps,
            steps_computation_mask=[int(hit) for hit in mask],
            steps_computation_policy="static",
        )
        cache_dit.enable_cache(self.network, cache_config=config)

    @torch.no_grad()
    def _denoise(self, num_steps: int, ticks: Ticks) -> Tensor:
        ours = self.ours
        spec = ours.spec.with_(num_steps=num_steps).resolve(ours.model)
        sampler = make_sampler(ours.model, spec)
        scale = spec.guidance.guidance_scale
        timesteps = sampler.timesteps.to(ours.model.device)  # as in a pipeline: on the device before the loop

        def velocity(latents: Tensor, step: int) -> Tensor:
            hidden, timestep = latents.to(ours.model.dtype), timesteps[step].expand(len(latents))
            cond, uncond = (
                self.network(
                    hidden_states=hidden,
                    timestep=timestep,
                    encoder_hidden_states=ours.text[name]["embeds"],
                    return_dict=False,
                )[0]
                for name in ("prompt", "negative_prompt")
            )
            guided: Tensor = uncond + scale * (cond - uncond)
            return guided

        ticks.mark()
        return sample(sampler, velocity, sampler.init(ours.noise.float()), on_step=ticks.mark).latents

    def _check(self, num_steps: int, mask: Mask) -> int:
        """Bytes of the cache's tensors; raises if it skipped other steps than the mask's."""
        [name] = self.network._context_names
        context = self.network._context_manager.get_context(name)
        skipped = [i for i in range(num_steps) if not mask[i]]
        assert context.get_cached_steps() == skipped, "cond skipped other steps"
        assert context.get_cfg_cached_steps() == skipped, "uncond skipped other steps"
        tensors = [t for t in context.buffers.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)
