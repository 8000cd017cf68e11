"""What would be ignored, or run as something else, is refused: settings, conditions and latents of every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import wanlab
from tests.tiny_relatives import tiny_animate, tiny_phantom, tiny_skyreels, tiny_skyreels_plain
from tests.tiny_video import film, frames_of, picture, tiny_i2v, tiny_v2v, tiny_vace
from wanlab.errors import WanlabError
from wanlab.sampling import sample
from wanlab.sites import NO_CONDITIONS
from wanlab.stages import make_sampler, velocity_of

VIDEO = frames_of(film(1))
FAMILIES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "i2v": (lambda f: tiny_i2v(f, "2.1"), {"image": picture(5)}),
    "a14b": (lambda f: tiny_i2v(f, "2.2"), {"image": picture(5)}),
    "5b": (lambda f: tiny_i2v(f, "5b"), {"image": picture(5, 64, 32)}),
    "v2v": (tiny_v2v, {"video": VIDEO, "denoising_strength": 0.5}),
    "vace": (tiny_vace, {"video": VIDEO, "references": [picture(5)]}),
    "phantom": (tiny_phantom, {"references": [picture(5)]}),
    "animate": (
        tiny_animate,
        {"image": picture(5), "pose_video": VIDEO, "face_video": frames_of(film(7, width=16, height=16))},
    ),
    "skyreels_df": (tiny_skyreels, {"image": picture(5)}),
    "skyreels": (lambda f: tiny_skyreels_plain(f, "text"), {}),
    "skyreels_i2v": (lambda f: tiny_skyreels_plain(f, "image"), {"image": picture(5)}),
}
TWO = {"prompt": "a red fox", "num_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tiny model of a name, made once."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = wanlab.load(FAMILIES[name][0](tmp_path_factory.mktemp(name))[1], device="cpu")
        return made[name]

    return get


def stages(model: Any, spec: Any) -> tuple[Any, Any]:
    return wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "skyreels"])
def test_media_without_their_conditions_are_refused(name: str, of: Callable[[str], Any]) -> None:
    model = of(name)
    spec = model.spec(**TWO, **FAMILIES[name][1])
    text = wanlab.encode_text(model, spec)
    with pytest.raises(WanlabError, match="its conditions were not encoded"):
        wanlab.denoise(model, spec, text, NO_CONDITIONS)


def test_text_alone_needs_no_conditions(of: Callable[[str], Any]) -> None:
    for name in ("v2v", "5b", "skyreels"):
        model = of(name)
        spec = model.spec(**TWO)
        text, conditions = stages(model, spec)
        assert conditions is NO_CONDITIONS
        assert wanlab.denoise(model, spec, text, NO_CONDITIONS).isfinite().all()
        stretched = spec.with_(riflex="on")
        assert model.needs_conditions(stretched.resolve(model))


def test_conditions_and_latents_of_another_size_are_refused(of: Callable[[str], Any]) -> None:
    """A clip of one latent frame would be spread over all of them."""
    model = of("v2v")
    spec = model.spec(**TWO, video=VIDEO, denoising_strength=0.5)
    text, _ = stages(model, spec)
    _, short = stages(model, spec.with_(num_frames=1))
    with pytest.raises(WanlabError, match=r"conditions are for latents of \(1, 4, 6\), and the spec makes \(3, 4, 6\)"):
        wanlab.denoise(model, spec, text, short)
    with pytest.raises(WanlabError, match="were encoded without it"):
        wanlab.denoise(model, spec, text, replace(short, known=None, riflex=3))
    plain = spec.with_(video=None, denoising_strength=1.0)
    noise = torch.zeros(1, 16, 2, 4, 6)
    for latents in (noise, make_sampler(model, plain.resolve(model)).init(noise)):
        with pytest.raises(WanlabError, match=r"latents are \(1, 16, 2, 4, 6\), and the spec makes \(B, 16, 3, 4, 6\)"):
            wanlab.denoise(model, plain, text, NO_CONDITIONS, latents)


@pytest.mark.parametrize("name", ["v2v", "5b", "vace"])
def test_a_resumed_state_is_not_started_again(name: str, of: Callable[[str], Any]) -> None:
    """A saved state goes on to the same bits, what is kept or mixed in included."""
    model = of(name)
    spec = model.spec(**{**TWO, "num_steps": 4}, **FAMILIES[name][1])
    text, conditions = stages(model, spec)
    whole = wanlab.denoise(model, spec, text, conditions)
    resolved = spec.resolve(model)
    sampler = make_sampler(model, resolved)
    state = sampler.init(model.start(resolved, conditions, model.initial_noise(resolved)))
    with torch.no_grad():
        state = sample(sampler, velocity_of(model, resolved, sampler, text, conditions), state, stop=1)
    assert torch.equal(wanlab.denoise(model, spec, text, conditions, state), whole)


@pytest.mark.parametrize("name", ["vace", "animate", "skyreels_df", "phantom"])
def test_a_video_that_is_followed_is_no_start(name: str, of: Callable[[str], Any]) -> None:
    """Pure noise at a level of 0.5 would be taken for half clean."""
    model, media = of(name), FAMILIES[name][1]
    with pytest.raises(WanlabError, match="a generation starts from pure noise"):
        model.check_start(model.spec(**media, sigmas=[0.5, 0.2, 0.0]))


def test_dual_guidance_is_for_references_among_the_frames(of: Callable[[str], Any]) -> None:
    """VACE's control blocks read references, which no branch can leave out."""
    assert "dual" in of("phantom").offers.choices["guidance.method"]
    model = of("vace")
    assert "dual" not in model.offers.choices["guidance.method"]
    with pytest.raises(WanlabError, match="'dual' does not fit vace_random_1, whose network sees no references"):
        model.resolve(model.spec(references=[picture(5)], guidance="dual"))


@pytest.mark.parametrize("name", ["v2v", "5b", "vace", "phantom", "skyreels", "skyreels_df"])
def test_fit_without_anything_to_fit_is_refused(name: str, of: Callable[[str], Any]) -> None:
    model, media = of(name), {k: v for k, v in FAMILIES[name][1].items() if k == "references"}
    with pytest.raises(WanlabError, match="fit"):
        model.check_media(model.resolve(model.spec(**media, fit="pad")))


@pytest.mark.parametrize("changes", [{}, {"num_steps": 2, "sigmas": [1.0, 0.4, 0.0]}, {"mask": 0}])
def test_a_video_that_noise_would_cover_is_refused(changes: dict[str, Any], of: Callable[[str], Any]) -> None:
    if "mask" in changes:
        changes = {"mask": Image.new("L", (48, 32)), "masking_strength": 0.0}
    model = of("v2v")
    with pytest.raises(WanlabError, match=r"video has no effect: .*denoising_strength below 1"):
        wanlab.encode_conditions(model, model.spec(video=VIDEO, **changes))


def test_media_that_are_needed_are_named_with_their_kind(of: Callable[[str], Any]) -> None:
    for name, given, words in (
        ("animate", {"image": picture(5)}, "Give them: pose_video='path', face_video='path'."),
        ("i2v", {}, "Give it: image='path' or a PIL image."),
        ("phantom", {}, "Give it: references=['path']."),
    ):
        with pytest.raises(WanlabError) as caught:
            of(name).check_media(of(name).spec(**given))
        assert str(caught.value).endswith(words)


def test_channels_of_another_purpose_are_refused(tmp_path: Path) -> None:
    """Fun-Control's network reads 16 channels more than image-to-video's."""
    model = wanlab.load(tiny_v2v(tmp_path)[1], device="cpu")
    model.__dict__["_network"] = {**model._network, "in_channels": 52}
    with pytest.raises(WanlabError, match=r"reads 52 channels, and latents have 16.*makes 0 or 20"):
        model.resolve(model.spec(video=VIDEO))


def test_frames_of_one_block_cannot_lag(of: Callable[[str], Any]) -> None:
    model = of("skyreels_df")
    with pytest.raises(WanlabError, match="ar_step = 2 has no effect: the 3 latent frames are one block"):
        model.resolve(model.spec(ar_step=2, causal_block_size=3))


@pytest.mark.parametrize(
    ("media", "words"),
    [
        ({"control_scale_2": [0.5]}, "control_scale_2 is the strength of video_2"),
        ({"keyframes": [picture(8), picture(9)], "keyframe_positions": [-1, 8]}, "Two keyframes are for frame 8"),
    ],
)
def test_vace_refuses_what_it_would_ignore(media: dict[str, Any], words: str, of: Callable[[str], Any]) -> None:
    model = of("vace")
    with pytest.raises(WanlabError, match=words):
        wanlab.encode_conditions(model, model.spec(video=VIDEO, **media))


def test_scales_that_phases_replace_are_refused(of: Callable[[str], Any]) -> None:
    model = of("a14b")
    phases = {"phase_scales": [4.0, 2.0], "phase_boundaries": [0.7]}
    for name, value in {"guidance_scale": 7.0, "guidance_scale_2": 9.0}.items():
        with pytest.raises(WanlabError, match=rf"{name} = {value:g} has no effect: phase_scales \[4.0, 2.0\]"):
            model.resolve(model.spec(**phases, **{name: value}))
    model.resolve(model.spec(**phases, guidance_scale=4.0))  # as WanGP's settings say it
