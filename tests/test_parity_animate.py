"""Animate equals diffusers' WanAnimatePipeline with the same weights, and every input matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wanlab
from tests.tiny_relatives import FACE, tiny_animate
from tests.tiny_video import film, frames_of, picture, quiet
from wanlab.sites import Branch, StepContext

STEPS = 4
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(our model, diffusers' pipeline from the same folder)."""
    import diffusers

    folder, definition = tiny_animate(tmp_path_factory.mktemp("animate"))
    return wanlab.load(definition, device="cpu"), quiet(diffusers.WanAnimatePipeline.from_pretrained(folder))


def faces(seed: int, num_frames: int = 9) -> list[Image.Image]:
    return film(seed, num_frames, FACE, FACE)


def masks(first: int, last: int, num_frames: int = 9) -> list[Image.Image]:
    """Masks that are white between two columns, which move by 2 a frame."""
    grey = np.zeros((num_frames, 32, 48), np.uint8)
    for i in range(num_frames):
        grey[i, :, first + 2 * i : last + 2 * i] = 255
    return [Image.fromarray(g) for g in grey]


def reference(pipe: Any, seed: int = 3, **changes: Any) -> Tensor:
    """Latents of the video: diffusers returns them denormalised, with the person's frame before them."""
    settings = {
        "prompt": PROMPTS[:1],
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "segment_frame_length": 9,
        "width": 48,
        "height": 32,
        **changes,
    }
    settings["negative_prompt"] = [settings["negative_prompt"]] * len(settings["prompt"])
    kept = {}

    def keep(pipe: Any, step: int, t: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
        kept["latents"] = found["latents"]
        return found

    pipe(generator=torch.Generator().manual_seed(seed), callback_on_step_end=keep, **settings)
    return kept["latents"][:, :, 1:]


def spec_of(model: Any, **changes: Any) -> Any:
    base = {"prompt": PROMPTS[0], "negative_prompt": NEGATIVE, "num_steps": STEPS, "seed": 3, "guidance_scale": 3.0}
    return model.spec(**{**base, **changes})


def ours(model: Any, spec: Any, prompts: list[str]) -> Tensor:
    """The stages by hand, since a batch of different prompts is no spec."""
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in prompts]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    noise = model.initial_noise(spec, batch=len(prompts))
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), noise)


@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_animate_equals_diffusers_and_every_input_matters(both: tuple[Any, Any], mode: str) -> None:
    model, pipe = both
    base: dict[str, Any] = {"image": picture(1), "pose_video": film(2), "face_video": faces(3)}
    media = {name: frames_of(value) if isinstance(value, list) else value for name, value in base.items()}
    if mode == "replace":
        base |= {"background_video": film(4), "mask_video": masks(0, 16), "mode": mode}
        media |= {"video": frames_of(film(4)), "mask": frames_of(masks(0, 16))}
    for batch in (2, 1):
        expected = reference(pipe, prompt=PROMPTS[:batch], **base)
        assert rel(ours(model, spec_of(model, **media), PROMPTS[:batch]), expected) <= 1e-5

    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": ["quiet water at night"]},
        "negative_prompt": {"negative_prompt": "bright and calm"},
        "guidance_scale": {"guidance_scale": 3.5},
        "seed": {"seed": 4},
        "image": {"image": picture(11)},
        "pose_video": {"pose_video": film(12)},
        "face_video": {"face_video": faces(13)},
    }
    if mode == "replace":
        variants["background_video"] = {"background_video": film(14)}
        variants["mask_video"] = {"mask_video": masks(16, 32)}
        variants["mode"] = {"mode": "animate"}
    moved = {name: rel(reference(pipe, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved


def test_the_split_is_bit_equal_to_the_network(both: tuple[Any, Any]) -> None:
    """With the face read once for all steps, of the branch with the prompt and of the one without."""
    model, pipe = both
    spec = spec_of(model, image=picture(1), pose_video=frames_of(film(2)), face_video=frames_of(faces(3)))
    conditions, text = wanlab.encode_conditions(model, spec), wanlab.encode_text(model, spec)
    latents = model.initial_noise(spec)
    pixels = torch.from_numpy(frames_of(faces(3))).permute(3, 0, 1, 2)[None].contiguous().float() / 255 * 2 - 1
    for name, prompt, face in (("cond", "prompt", pixels), ("uncond", "negative_prompt", torch.full_like(pixels, -1))):
        branch = Branch(name, text[prompt], conditions)
        found = model.velocity(latents, StepContext(0, 1, 0.7, timestep=700), branch)
        with torch.no_grad():
            expected = pipe.transformer(
                torch.cat([latents, conditions.channels], 1),
                torch.tensor([700]),
                text[prompt]["embeds"],
                conditions.tokens["image"],
                conditions.control[0],
                face,
                return_dict=False,
            )[0]
        assert torch.equal(found, expected), name


def test_branches_as_one_batch_see_their_own_faces(both: tuple[Any, Any]) -> None:
    model, _ = both
    media = {"image": picture(1), "pose_video": frames_of(film(2)), "face_video": frames_of(faces(3))}
    spec = spec_of(model, **media)
    apart = ours(model, spec, PROMPTS)
    assert rel(ours(model, spec.with_(batch_branches=True), PROMPTS), apart) <= 1e-5


def test_face_blocks_are_entries_of_the_stack(both: tuple[Any, Any]) -> None:
    model, _ = both
    stack = model.stacks["transformer"]
    assert [entry.kind for entry in stack] == ["block", "face", "block", "block", "face", "block"]
    assert stack.main(1).name == "blocks.1"
    assert [site.name for site in stack.attentions(["face"])] == ["face_adapter.0", "face_adapter.1"]
    assert set(stack[1].linears) == {"to_q", "to_k", "to_v", "to_out"}


def test_generate_cuts_the_persons_frame_off(both: tuple[Any, Any]) -> None:
    model, pipe = both
    seen = []
    media = {"image": picture(1), "pose_video": film(2), "face_video": faces(3)}
    spec = spec_of(model, **{k: frames_of(v) if isinstance(v, list) else v for k, v in media.items()})
    result = wanlab.generate(model, spec, on_step=lambda step, sigma, latents, denoised: seen.append(denoised.shape[2]))
    assert result.frames.shape == (9, 32, 48, 3)
    assert seen == [3] * STEPS
    expected = pipe(
        **media, prompt=PROMPTS[0], negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=3.0,
        segment_frame_length=9, width=48, height=32, generator=torch.Generator().manual_seed(3), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(result.frames - np.round(expected * 255)).max() <= 1


def test_what_cannot_be_made_says_so(both: tuple[Any, Any]) -> None:
    model, _ = both
    media = {"image": picture(1), "pose_video": frames_of(film(2)), "face_video": frames_of(faces(3))}
    for changes, words in (
        ({"num_frames": 17}, "num_frames = 17, and one window of wan_animate_random has 13"),
        ({"num_frames": 13}, "face_video has 9 frames at 16 fps, and the result has 13"),
        ({"num_frames": 1}, "does not move"),
        ({"video": frames_of(film(4))}, "no mask says where"),
        ({"face_video": None}, "needs face_video"),
    ):
        with pytest.raises(wanlab.WanlabError, match=words):
            wanlab.generate(model, spec_of(model, **{**media, **changes}))
