"""Phantom equals an independent loop over diffusers' network and solver, and every input matters.

The loop follows Phantom-video/Phantom 7e2997d5 (generate.py, phantom_wan/subject2video.py): references on white after
the video's frames, clean at every step, zeros in the branch without them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wanlab
from tests.tiny_relatives import tiny_phantom
from tests.tiny_video import picture

STEPS = 5
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"
TALL = (40, 64)


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(our model, diffusers' parts from the same folder)."""
    import diffusers

    folder, definition = tiny_phantom(tmp_path_factory.mktemp("phantom"))
    return wanlab.load(definition, device="cpu"), diffusers.WanPipeline.from_pretrained(folder)


def on_white(image: Image.Image, width: int = 48, height: int = 32) -> Image.Image:
    """The whole picture in the middle of a white one."""
    scale = min(width / image.width, height / image.height)
    small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (width, height), (255, 255, 255))
    page.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return page


@torch.no_grad()
def reference(
    pipe: Any,
    prompt: list[str],
    references: list[Image.Image],
    negative_prompt: str = NEGATIVE,
    guidance_scale: float = 7.5,
    image_scale: float | None = None,
    seed: int = 3,
) -> Tensor:
    """Latents of the video; `image_scale` adds the third branch."""
    latents_mean = torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    latents_std = torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    encoded = []
    for image in references:
        pixels = torch.from_numpy(np.array(on_white(image))).permute(2, 0, 1)[None, :, None] / 127.5 - 1
        encoded.append((pipe.vae.encode(pixels).latent_dist.mode() - latents_mean) / latents_std)
    batch, count = len(prompt), len(references)
    pictures = torch.cat(encoded, 2).expand(batch, -1, -1, -1, -1)
    text, negative = pipe.encode_prompt(prompt, [negative_prompt] * batch, max_sequence_length=512)
    latents = torch.randn(batch, 16, 3 + count, 4, 6, generator=torch.Generator().manual_seed(seed))
    pipe.scheduler.set_timesteps(STEPS)
    for t in pipe.scheduler.timesteps:

        def ask(end: Tensor, words: Tensor, t: Tensor = t) -> Tensor:
            joined = torch.cat([latents[:, :, :-count], end], 2)  # noqa: B023
            return pipe.transformer(joined, t.expand(batch), words, return_dict=False)[0]

        with_text, with_pictures = ask(pictures, text), ask(pictures, negative)
        velocity = with_pictures + guidance_scale * (with_text - with_pictures)
        if image_scale is not None:
            bare = ask(torch.zeros_like(pictures), negative)
            velocity = bare + image_scale * (with_pictures - bare) + guidance_scale * (with_text - with_pictures)
        latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents[:, :, :-count]


def ours(model: Any, spec: Any, prompts: list[str]) -> Tensor:
    """The stages by hand, since a batch of different prompts is no spec."""
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in prompts]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    noise = model.initial_noise(spec, batch=len(prompts))
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), noise)


@pytest.mark.parametrize("rule", ["cfg", "dual"])
def test_phantom_equals_the_published_procedure_and_every_input_matters(both: tuple[Any, Any], rule: str) -> None:
    model, pipe = both
    pictures = [picture(1, *TALL), picture(2)]
    base: dict[str, Any] = {"prompt": PROMPTS[:1], "references": pictures}
    if rule == "dual":
        base["image_scale"] = 4.0
    guidance = {"guidance": rule, "guidance_scale": 7.5} | ({"guidance__image_scale": 4.0} if rule == "dual" else {})
    spec = model.spec(
        prompt=PROMPTS[0], negative_prompt=NEGATIVE, num_steps=STEPS, seed=3, references=pictures, **guidance
    )
    for batch in (2, 1):
        expected = reference(pipe, **{**base, "prompt": PROMPTS[:batch]})
        assert rel(ours(model, spec, PROMPTS[:batch]), expected) <= 1e-5

    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": ["quiet water at night"]},
        "negative_prompt": {"negative_prompt": "bright and calm"},
        "guidance_scale": {"guidance_scale": 8.0},
        "seed": {"seed": 4},
        "first reference": {"references": [picture(11, *TALL), pictures[1]]},
        "second reference": {"references": [pictures[0], picture(12)]},
        "order": {"references": pictures[::-1]},
    }
    if rule == "dual":
        variants["image_scale"] = {"image_scale": 5.0}
    moved = {name: rel(reference(pipe, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved


def test_generate_gives_the_video_alone(both: tuple[Any, Any]) -> None:
    model, pipe = both
    seen = []
    spec = model.spec(prompt=PROMPTS[0], negative_prompt=NEGATIVE, seed=3, num_steps=STEPS, references=[picture(1)])
    result = wanlab.generate(model, spec, on_step=lambda step, sigma, latents, denoised: seen.append(denoised.shape[2]))
    assert result.frames.shape == (9, 32, 48, 3)
    assert rel(result.latents, reference(pipe, PROMPTS[:1], [picture(1)], guidance_scale=5.0)) <= 1e-5
    assert seen == [3] * STEPS


def test_without_references_it_says_what_it_needs(both: tuple[Any, Any]) -> None:
    model, _ = both
    with pytest.raises(wanlab.WanlabError, match="needs references"):
        wanlab.generate(model, model.spec(prompt="a fox"))
    with pytest.raises(wanlab.WanlabError, match="takes no image"):
        wanlab.generate(model, model.spec(prompt="a fox", references=[picture(1)], image=picture(2)))
