"""VACE equals diffusers' WanVACEPipeline with the same weights, and every input matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wanlab
from tests.tiny_video import film, frames_of, picture, quiet, tiny_vace

STEPS = 5
SETTINGS = {"prompt": "a red fox runs", "negative_prompt": "ugly thing xyz", "guidance_scale": 5.0}


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def half(first: int = 0, last: int = 24) -> Image.Image:
    """A mask that is white between two columns."""
    grey = np.zeros((32, 48), np.uint8)
    grey[:, first:last] = 255
    return Image.fromarray(grey)


@pytest.fixture(scope="module", params=[1, 2], ids=["one_expert", "two_experts"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, int]:
    import diffusers

    folder, definition = tiny_vace(tmp_path_factory.mktemp("vace"), request.param)
    pipe = quiet(diffusers.WanVACEPipeline.from_pretrained(folder))
    return wanlab.load(definition, device="cpu"), pipe, request.param


def reference(pipe: Any, seed: int = 3, **changes: Any) -> Tensor:
    settings = {
        **SETTINGS,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "num_frames": 9,
        "width": 48,
        "height": 32,
        **changes,
    }
    if "mask" in settings:
        settings["mask"] = [settings["mask"]] * 9
    references = settings.get("reference_images", [])
    if references:  # diffusers puts the last one first, and leaves them in the latents
        settings["reference_images"] = references[::-1]
    return pipe(generator=torch.Generator().manual_seed(seed), **settings).frames[:, :, len(references) :]


def ours(model: Any, batch: int = 1, **changes: Any) -> Tensor:
    spec = model.spec(**{**SETTINGS, "num_steps": STEPS, "seed": 3, **changes})
    noise = model.initial_noise(spec, batch)
    return wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec), noise)


def test_control_equals_diffusers_and_every_input_matters(both: tuple[Any, Any, int]) -> None:
    model, pipe, experts = both
    second = {"guidance_scale_2": 3.0} if experts == 2 else {}
    base: dict[str, Any] = {
        "video": film(1),
        "mask": half(),
        "reference_images": [picture(5), picture(6)],
        "conditioning_scale": [1.0, 0.7],
        **second,
    }
    expected = reference(pipe, **base)
    media = {"video": frames_of(base["video"]), "mask": half(), "references": base["reference_images"]}
    found = ours(model, **media, control_scale=[1.0, 0.7], **second)
    assert found.shape == expected.shape == (1, 16, 3, 4, 6)
    assert rel(found, expected) <= 1e-5

    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": "quiet water at night"},
        "negative_prompt": {"negative_prompt": "bright and calm"},
        "guidance_scale": {"guidance_scale": 5.5},
        "seed": {"seed": 4},
        "video": {"video": film(2)},
        "mask": {"mask": half(24, 48)},
        "first reference": {"reference_images": [picture(7), picture(6)]},
        "last reference": {"reference_images": [picture(5), picture(7)]},
        "scale of the first layer": {"conditioning_scale": [0.5, 0.7]},
        "scale of the last layer": {"conditioning_scale": [1.0, 0.0]},
    }
    if second:
        variants["guidance_scale_2"] = {"guidance_scale_2": 3.5}
        assert set(model.experts(model.spec(num_steps=STEPS))) == {"transformer", "transformer_2"}
    moved = {name: rel(reference(pipe, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved


def test_text_alone_equals_diffusers(both: tuple[Any, Any, int]) -> None:
    model, pipe, _ = both
    assert rel(ours(model), reference(pipe)) <= 1e-5


def test_a_batch_is_its_samples(both: tuple[Any, Any, int]) -> None:
    """diffusers makes one sample at a time, so each sample of ours is compared with a run of its noise."""
    model, pipe, _ = both
    spec = model.spec(**SETTINGS, num_steps=STEPS, seed=3, video=frames_of(film(1)), references=[picture(5)])
    noise = model.initial_noise(spec, 2)
    found = wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec), noise)
    for i in range(2):
        one = reference(pipe, video=film(1), reference_images=[picture(5)], latents=noise[i : i + 1])
        assert rel(found[i : i + 1], one) <= 1e-5
    assert rel(found[:1], found[1:]) >= 1e-2


def test_keyframes_are_frames_of_the_control_video_that_are_kept(both: tuple[Any, Any, int]) -> None:
    model, pipe, _ = both
    video, grey = film(1), Image.new("L", (48, 32), 255)
    kept = Image.new("L", (48, 32), 0)
    video[0], video[-1] = picture(8), picture(9)
    masks = [kept, *[grey] * 7, kept]
    settings = {"video": video, "num_frames": 9, "width": 48, "height": 32}
    expected = pipe(
        **SETTINGS, **settings, mask=masks, num_inference_steps=STEPS, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames  # fmt: skip
    media = {"video": frames_of(film(1)), "keyframes": [picture(8), picture(9)], "keyframe_positions": [0, -1]}
    assert rel(ours(model, **media), expected) <= 1e-5


def test_two_controls_add_their_hints(both: tuple[Any, Any, int]) -> None:
    """Both at half strength with the same video are the one at full strength; another second video is another clip."""
    model, _, _ = both
    one = ours(model, video=frames_of(film(1)))
    halves = {"control_scale": [0.5], "control_scale_2": [0.5]}
    assert rel(ours(model, video=frames_of(film(1)), video_2=frames_of(film(1)), **halves), one) <= 1e-5
    assert rel(ours(model, video=frames_of(film(1)), video_2=frames_of(film(2)), **halves), one) >= 1e-2


def test_a_short_control_video_is_followed_by_free_grey(both: tuple[Any, Any, int]) -> None:
    model, pipe, _ = both
    video = torch.full((9, 3, 32, 48), 0.5)
    video[:5] = torch.from_numpy(frames_of(film(1)[:5])).permute(0, 3, 1, 2) / 255
    assert rel(ours(model, video=frames_of(film(1)[:5])), reference(pipe, video=video[None])) <= 1e-5


@pytest.mark.parametrize(
    ("media", "words"),
    [
        ({"control_scale": [1.0, 0.5, 0.2]}, "3 numbers, and .* has 2 control layers"),
        ({"keyframes": [picture(8)], "keyframe_positions": [9]}, "no frame 9 in a video of 9"),
        ({"video_2": frames_of(film(1))}, "there is no first"),
        ({"video": frames_of(film(1)), "mask_2": half()}, "mask_2 belongs to video_2"),
        ({"video": frames_of(film(1)), "denoising_strength": 0.5}, "does not start from a video"),
    ],
)
def test_media_that_do_not_fit_are_refused(both: tuple[Any, Any, int], media: dict[str, Any], words: str) -> None:
    model, _, _ = both
    with pytest.raises(wanlab.WanlabError, match=words):
        wanlab.encode_conditions(model, model.spec(**media))


def test_hints_survive_compilation(both: tuple[Any, Any, int]) -> None:
    model, _, _ = both
    plain = ours(model, video=frames_of(film(1)))
    assert rel(ours(model, video=frames_of(film(1)), compile_mode="blocks"), plain) <= 1e-5
