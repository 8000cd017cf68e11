"""generate and Result: the same bytes twice, the stages by hand, saving and opening, a small display."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import inline
from wanlab.audio import Audio
from wanlab.errors import WanlabError
from wanlab.stages import make_sampler

SPEC = {"prompt": "a red fox", "num_steps": 4, "width": 48, "height": 32, "num_frames": 5, "seed": 1}


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"), experts=2)[1]


@pytest.fixture(scope="module")
def model(definition: dict[str, Any]) -> Any:
    return wanlab.load(definition, device="cpu")


@pytest.fixture(scope="module")
def clip(model: Any) -> Any:
    return wanlab.generate(model, **SPEC)


def test_the_same_spec_gives_the_same_bytes(model: Any, clip: Any, definition: dict[str, Any], tmp_path: Path) -> None:
    again = wanlab.generate(model, clip.spec)
    fresh = wanlab.generate(wanlab.load(definition, device="cpu"), **SPEC)
    files = []
    for i, sample in enumerate((clip, again, fresh)):
        assert torch.equal(sample.latents, clip.latents)
        assert np.array_equal(sample.frames, clip.frames)
        files.append(sample.save(tmp_path / f"{i}.mp4").read_bytes())
    assert files[0] == files[1] == files[2]
    assert clip.run_id == fresh.run_id != wanlab.generate(model, clip.spec, seed=2).run_id


def test_generate_is_the_stages(model: Any, clip: Any) -> None:
    seen: list[tuple[int, float]] = []
    spec = model.spec(**SPEC)
    text = wanlab.encode_text(model, spec)
    conditions = wanlab.encode_conditions(model, spec)
    latents = wanlab.denoise(model, spec, text, conditions, on_step=lambda i, sigma, x, x0: seen.append((i, sigma)))
    media = wanlab.post(spec, wanlab.decode(model, spec, latents))
    assert torch.equal(latents, clip.latents)
    assert np.array_equal(media.frames, clip.frames)
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert [s for _, s in seen] == pytest.approx(model.sigmas(spec)[:-1].tolist(), abs=2e-6)


def test_what_a_result_knows(model: Any, clip: Any) -> None:
    assert clip.frames.shape == (5, 32, 48, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.latents.shape == (1, *model.latent_shape(clip.spec))
    assert set(clip.seconds) == {"text", "conditions", "denoise", "decode", "post", "total"}
    assert clip.seconds["total"] >= clip.seconds["denoise"] > 0
    assert clip.peak_bytes > 1 << 20
    assert clip.versions["torch"] == torch.__version__
    assert clip.spec.attention.method == "auto"
    assert clip.resolved.attention.method == clip.ran["attention"] == "sdpa"
    assert clip.resolved.weights.dtype == "float32"
    assert clip.ran["text_tokens"]["prompt"] < clip.ran["text_tokens"]["limit"] == 512
    assert clip.ran["attachments"] == []
    assert len(repr(clip)) < 400


def test_a_batch_shares_one_text(model: Any) -> None:
    spec = model.spec(**SPEC)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    both = wanlab.denoise(model, spec, text, conditions, model.initial_noise(spec, batch=2))
    one = wanlab.denoise(model, spec, text, conditions, model.initial_noise(spec, batch=2)[:1])
    assert both.shape[0] == 2
    assert float((both[:1] - one).norm() / one.norm()) < 1e-5


@pytest.mark.parametrize("sampler", ["unipc", "lcm"])
def test_a_saved_state_goes_on_to_the_same_bytes(model: Any, sampler: str, tmp_path: Path) -> None:
    from wanlab.sampling import load_state, sample, save_state
    from wanlab.stages import velocity_of

    spec = model.spec(**SPEC, sampler=sampler)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    whole = wanlab.denoise(model, spec, text, conditions)
    solver = make_sampler(model, spec)
    velocity = velocity_of(model, spec, solver, text, conditions)
    with torch.no_grad():
        state = sample(solver, velocity, solver.init(model.initial_noise(spec)), stop=2)
    save_state(state, tmp_path / "state.safetensors")
    resumed = wanlab.denoise(model, spec, text, conditions, load_state(tmp_path / "state.safetensors"))
    assert torch.equal(resumed, whole)


def test_mp4_and_folder_restore_the_spec(clip: Any, tmp_path: Path) -> None:
    path = clip.save(tmp_path / "x.mp4")
    opened = wanlab.open_result(path)
    assert opened.spec == clip.spec
    assert opened.spec.id == clip.spec.id
    assert opened.run_id == clip.run_id
    assert opened.fps == clip.fps
    assert opened.latents is None
    assert np.abs(opened.frames.astype(int) - clip.frames).mean() < 10  # H.264

    folder = clip.save(tmp_path / "run")
    assert {p.name for p in folder.iterdir()} == {"run.json", "video.mp4", "latents.safetensors"}
    assert (folder / "video.mp4").read_bytes() == path.read_bytes()
    opened = wanlab.open_result(folder)
    assert opened.spec == clip.spec
    assert opened.resolved == clip.resolved
    assert torch.equal(opened.latents, clip.latents)
    assert opened.seconds == clip.seconds
    assert opened.versions == clip.versions
    assert json.loads((folder / "run.json").read_text())["schema"] == 2


def test_prompts_survive_and_can_be_left_out(model: Any, clip: Any, tmp_path: Path) -> None:
    prompt = 'a "cat" — 猫 = ; # \\ \n <b>'
    named = wanlab.generate(model, clip.spec, prompt=prompt, num_steps=1)
    assert wanlab.open_result(named.save(tmp_path / "a.mp4")).spec.text.prompt == prompt
    secret = wanlab.generate(model, named.spec, strip_prompt=True, prompt="topsecret", num_steps=1)
    path = secret.save(tmp_path / "b.mp4")
    assert b"topsecret" not in path.read_bytes()
    assert wanlab.open_result(path).spec == secret.spec.with_(prompt="", negative_prompt="")


def test_an_image(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, definition = tiny_flux(tmp_path_factory.mktemp("flux"))
    image = wanlab.generate(wanlab.load(definition, device="cpu"), prompt="a red fox", seed=2)
    assert image.frames.shape == (1, 32, 48, 3)
    opened = wanlab.open_result(image.save(tmp_path / "x.png"))
    assert opened.spec == image.spec
    assert np.array_equal(opened.frames, image.frames)
    folder = wanlab.open_result(image.save(tmp_path / "run"))
    assert np.array_equal(folder.frames, image.frames)
    page = image._repr_html_()
    assert page.count("<img") == 1
    assert 'width="288" height="192"' in page  # 48x32, enlarged by the browser


def test_other_endings_and_other_files_are_refused(clip: Any, tmp_path: Path) -> None:
    with pytest.raises(wanlab.WanlabError, match=r"\.mp4"):
        clip.save(tmp_path / "x.gif")
    with pytest.raises(wanlab.WanlabError, match="one image"):
        clip.save(tmp_path / "x.png")
    from wanlab.video import write_video

    for comment in (
        "",
        "hello",
        '{"a": 1}',
        '{"wanlab": {"spec": {"model": "x", "nonsense": 1}, "run": ""}}',
        "/etc/passwd",
    ):
        foreign = write_video(tmp_path / "foreign.mp4", clip.frames, 8, comment=comment)
        with pytest.raises(wanlab.WanlabError, match="no spec"):
            wanlab.open_result(foreign)
    with pytest.raises(wanlab.WanlabError, match="nowhere"):
        wanlab.open_result(tmp_path / "nowhere.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["foreign.mp4"]


def test_the_display_is_small_and_escaped(model: Any) -> None:
    named = wanlab.generate(model, **{**SPEC, "prompt": "<script>alert('x')</script>", "num_steps": 1})
    page = named._repr_html_()
    assert "<script" not in page
    assert page.count("<video") == 1
    assert "image-rendering:pixelated" in page
    assert "color:" not in page
    assert len(page) < 100_000


@pytest.mark.parametrize(
    ("size", "shown"), [((96, 96), (288, 288)), ((32, 48), (192, 288)), ((160, 160), (320, 320)), ((162, 8), (162, 8))]
)
def test_small_pictures_are_shown_enlarged(size: tuple[int, int], shown: tuple[int, int]) -> None:
    for num_frames in (1, 2):
        page = inline.player(np.zeros((num_frames, *size, 3), np.uint8), 16, "black")
        assert f'width="{shown[1]}" height="{shown[0]}"' in page
        assert ("pixelated" in page) == (size != shown)


@pytest.mark.parametrize(
    ("limit", "tag", "link"), [(1_000_000, "<video", False), (30_000, "<video", False), (1000, "<img", True)]
)
def test_a_large_clip_is_shown_smaller(monkeypatch: pytest.MonkeyPatch, limit: int, tag: str, link: bool) -> None:
    """Noise that does not fit: a copy of 320 pixels in height, and if that is too large a picture and a link."""
    monkeypatch.setattr(inline, "EMBED_BYTES", limit)
    monkeypatch.setattr(inline, "_PROXY_HEIGHT", 32)
    noise = np.random.default_rng(0).integers(0, 256, (4, 120, 160, 3), dtype=np.uint8)
    page = inline.player(noise, 16, "noise", Path("runs/<x>.mp4"))
    assert tag in page
    assert ('href="runs/&lt;x&gt;.mp4"' in page) == link
    sources = [base64.b64decode(s) for s in re.findall(r'src="data:[^,]*,([^"]*)"', page)]
    assert len(sources) == 1
    assert link or len(sources[0]) <= limit


def test_a_generation_inside_another_is_refused(model: Any, clip: Any) -> None:
    """Its cache and kernel would be the outer one's; the next run is as if nothing had happened."""
    outer = clip.spec.with_(cache={"method": "fixed", "mask": [True, False, True, False]}, attention="math")
    with pytest.raises(WanlabError, match="in the middle of generate"):
        wanlab.generate(model, outer, on_step=lambda *_: wanlab.generate(model, clip.spec))
    assert torch.equal(wanlab.generate(model, clip.spec).latents, clip.latents)


@pytest.mark.parametrize("wrong", ["a prompt", {"prompt": "a fox"}, 7])
def test_anything_but_a_spec_is_refused(model: Any, clip: Any, wrong: Any) -> None:
    with pytest.raises(WanlabError, match="not a spec"):
        wanlab.generate(model, wrong)
    with pytest.raises(WanlabError, match="not a loaded model"):
        wanlab.submit("wan_tiny", clip.spec)


def test_flat_settings_are_accepted_as_they_are(model: Any, clip: Any) -> None:
    assert wanlab.generate(model, **clip.spec.flat()).spec == clip.spec


def test_sound_that_a_model_makes_reaches_the_result(model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Audio(np.zeros((1, 800), np.float32), 8000)
    decode = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda *args, **named: replace(decode(*args, **named), audio=sound))
    assert wanlab.generate(model, clip.spec, num_steps=1).audio is sound
    assert clip.audio is None


def test_what_was_attached_by_hand_is_recorded(model: Any, clip: Any) -> None:
    linear = model.stacks["transformer"][1].linears["attn1.to_q"]
    with linear.wrap(lambda call, x: 0.5 * call(x), "edit"):
        edited = wanlab.generate(model, clip.spec)
    assert [text for text in edited.ran["attachments"] if "attn1.to_q" in text and "edit" in text]
    assert not torch.equal(edited.latents, clip.latents)
    assert torch.equal(wanlab.generate(model, clip.spec).latents, clip.latents)


def test_an_alias_names_the_same_generation(definition: dict[str, Any], clip: Any) -> None:
    model = wanlab.load({**definition, "aliases": ["fox"]}, device="cpu")
    spec = model.spec(**SPEC)
    assert wanlab.generate(model, spec.with_(model="fox")).run_id == clip.run_id
