"""Wan from a video equals diffusers' WanVideoToVideoPipeline, and a mask keeps what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wanlab
from tests.tiny_video import film, frames_of, quiet, tiny_v2v
from wanlab.errors import WanlabError
from wanlab.widgets.form import SpecForm

STEPS = 8
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    import diffusers

    folder, definition = tiny_v2v(tmp_path_factory.mktemp("v2v"))
    return wanlab.load(definition, device="cpu"), quiet(diffusers.WanVideoToVideoPipeline.from_pretrained(folder))


def reference(pipe: Any, **changes: Any) -> Tensor:
    settings = {
        "prompt": PROMPTS[:1],
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "output_type": "latent",
        "width": 48,
        "height": 32,
        **changes,
    }
    settings["negative_prompt"] = [settings["negative_prompt"]] * len(settings["prompt"])
    return pipe(generator=torch.Generator().manual_seed(settings.pop("seed", 3)), **settings).frames


def ours(model: Any, spec: Any, batch: int = 1) -> Tensor:
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in PROMPTS[:batch]]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), model.initial_noise(spec, batch))


def make_spec(model: Any, **changes: Any) -> Any:
    settings = {"prompt": PROMPTS[0], "negative_prompt": NEGATIVE, "num_steps": STEPS, "seed": 3}
    return model.spec(**{**settings, "video": frames_of(film(1)), **changes})


@pytest.mark.parametrize("strength", [0.8, 0.5])
def test_video_to_video_equals_diffusers_and_every_input_matters(both: tuple[Any, Any], strength: float) -> None:
    model, pipe = both
    base = {"video": film(1), "strength": strength}
    expected = reference(pipe, **base)
    spec = make_spec(model, denoising_strength=strength)
    assert len(model.experts(spec)) == int(STEPS * strength)
    assert rel(ours(model, spec), expected) <= 1e-5
    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": ["quiet water at night"]},
        "negative_prompt": {"negative_prompt": "bright and calm"},
        "guidance_scale": {"guidance_scale": 6.0},
        "seed": {"seed": 4},
        "video": {"video": film(2)},
        "strength": {"strength": strength + 0.15},
    }
    moved = {name: rel(reference(pipe, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved


def test_a_batch_of_prompts_shares_the_video(both: tuple[Any, Any]) -> None:
    model, pipe = both
    spec = make_spec(model, denoising_strength=0.6)
    noise = model.initial_noise(spec, 2)
    found = ours(model, spec, batch=2)
    start = model.start(spec, wanlab.encode_conditions(model, spec), noise)
    expected = reference(pipe, prompt=PROMPTS, strength=0.6, latents=start)
    assert rel(found, expected) <= 1e-5


def half(first: int = 0, last: int = 24) -> Image.Image:
    """A mask that is white, free to change, between two columns."""
    grey = np.zeros((32, 48), np.uint8)
    grey[:, first:last] = 255
    return Image.fromarray(grey)


def masked_reference(model: Any, pipe: Any, spec: Any, kept_steps: int) -> Tensor:
    """diffusers' network and scheduler in a loop of the test's own that puts the video back before every step."""
    conditions = wanlab.encode_conditions(model, spec)
    text = wanlab.encode_text(model, spec)
    noise, known = model.initial_noise(spec), conditions.known
    free = torch.zeros(1, 1, 1, 4, 6)
    free[..., :3] = 1
    pipe.scheduler.set_timesteps(STEPS)
    timesteps = pipe.scheduler.timesteps[STEPS - int(STEPS * spec.sampling.denoising_strength) :]
    pipe.scheduler.set_begin_index(STEPS - len(timesteps))
    levels = pipe.scheduler.sigmas[-len(timesteps) - 1 :]
    latents = (1 - levels[0]) * known + levels[0] * noise
    for i, t in enumerate(timesteps):
        seen = latents
        if i < kept_steps:
            seen = free * latents + (1 - free) * ((1 - levels[i]) * known + levels[i] * noise)
        cond, uncond = (
            pipe.transformer(seen, t.expand(1), text[name]["embeds"], return_dict=False)[0]
            for name in ("prompt", "negative_prompt")
        )
        latents = pipe.scheduler.step(uncond + 5.0 * (cond - uncond), t, latents, return_dict=False)[0]
    return free * latents + (1 - free) * known if kept_steps >= len(timesteps) else latents


@torch.no_grad()
@pytest.mark.parametrize(("strength", "kept"), [(1.0, STEPS), (0.5, 4)])
def test_a_mask_keeps_the_video_outside_of_it(both: tuple[Any, Any], strength: float, kept: int) -> None:
    model, pipe = both
    spec = make_spec(model, mask=half(), masking_strength=strength, denoising_strength=0.75)
    found, conditions = ours(model, spec), wanlab.encode_conditions(model, spec)
    assert conditions.kept_steps == (None if strength == 1 else kept)
    assert rel(found, masked_reference(model, pipe, spec, kept)) <= 1e-5
    if strength == 1:
        assert torch.equal(found[..., 3:], conditions.known[..., 3:])
    assert rel(found, ours(model, make_spec(model, denoising_strength=0.75))) >= 1e-2
    assert rel(found, ours(model, spec.with_(mask=half(24, 48)))) >= 1e-2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"denoising_strength": 0.01}, "leaves none of 8 steps"),
        ({"denoising_strength": 0.5, "num_steps": 2, "sigmas": [0.9, 0.4, 0.0]}, "and so does denoising_strength"),
        ({"video": None, "denoising_strength": 0.5}, "Give video too"),
        ({"video": None, "mask": half()}, "there is none"),
        ({"masking_strength": 0.5}, "there is none"),
        ({"num_frames": 13, "denoising_strength": 0.5}, "has 9 frames at 16 fps, and the result has 13"),
        ({"image": Image.new("RGB", (48, 32))}, "takes no image"),
    ],
)
def test_what_means_nothing_is_refused(both: tuple[Any, Any], changes: dict[str, Any], words: str) -> None:
    model, _ = both
    with pytest.raises(wanlab.WanlabError, match=words):
        wanlab.encode_conditions(model, make_spec(model, **changes))


def test_a_cache_counts_the_steps_that_run(both: tuple[Any, Any]) -> None:
    """Half of the steps: a mask has their number, exact where it computes, and the record tells them, not num_steps."""
    model, _ = both

    def masked(*mask: bool) -> Any:
        return make_spec(model, denoising_strength=0.5, cache={"method": "fixed", "mask": mask})

    plain = wanlab.generate(model, make_spec(model, denoising_strength=0.5))
    exact = wanlab.generate(model, masked(*[True] * 4))
    assert torch.equal(exact.latents, plain.latents)
    reused = wanlab.generate(model, masked(True, False, True, False))
    assert not torch.equal(reused.latents, plain.latents)
    assert reused.skipped_forwards == 4, "two steps, two branches"
    assert f"{STEPS // 2} steps" in reused._repr_html_()
    words = rf"{STEPS} entries for 4 steps of {STEPS} that denoising_strength = 0\.5 leaves"
    with pytest.raises(WanlabError, match=words):
        wanlab.generate(model, masked(*[True] * STEPS))


def test_guidance_counts_the_steps_that_run(both: tuple[Any, Any]) -> None:
    """All four steps that run are zero steps: no forward, and no negative prompt is encoded for those left out."""
    model, _ = both
    zeroed = {"method": "cfg_zero", "zero_steps": 4}
    assert "negative_prompt" in wanlab.encode_text(model, make_spec(model, guidance=zeroed))
    spec = make_spec(model, guidance=zeroed, denoising_strength=0.5)
    assert set(wanlab.encode_text(model, spec)) == {"prompt"}
    assert wanlab.generate(model, spec).ran["forwards"] == {}


def test_a_forms_first_mask_has_the_steps_that_run(both: tuple[Any, Any]) -> None:
    model, _ = both
    form = SpecForm(make_spec(model, denoising_strength=0.5), model.offers)
    form.field("cache.method").write("fixed")
    assert form.spec.cache.options["mask"] == (True,) * 4
