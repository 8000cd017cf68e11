"""The form's media inputs: what is uploaded or named is stored, shown small, refused in words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wanlab
from tests.tiny import tiny_wan
from wanlab import media, video
from wanlab.audio import Audio, write_wav
from wanlab.errors import WanlabError
from wanlab.widgets import GeneratePanel, SpecForm, _media

TAKES = ("image", "video", "mask", "audio", "references", "keyframes", "keyframe_positions", "fit")


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture
def model(plain_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A model that takes media, in an empty workspace."""
    (tmp_path / "wanlab.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(plain_model), "accepts", TAKES)
    return plain_model


@pytest.fixture
def form(model: Any) -> SpecForm:
    return SpecForm(model.spec(), model.offers)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (80, 120, 3), np.uint8)


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, format="PNG")
    return file.getvalue()


def upload(form: SpecForm, name: str, **files: bytes) -> None:
    """As the page sends files: their names, with a dot for the last underscore, and their bytes."""
    sent = [
        {"name": ".".join(n.rsplit("_", 1)), "type": "", "size": len(b), "content": memoryview(b), "last_modified": 0}
        for n, b in files.items()
    ]
    form.field(name).widget.upload.set_state({"value": sent})


def thumbnails(form: SpecForm, name: str) -> list[Image.Image]:
    boxes = form.field(name).widget.shown.children
    return [Image.open(io.BytesIO(box.children[0].value)) for box in boxes if len(box.children) == 2]


def texts(form: SpecForm, name: str) -> str:
    return " ".join(box.children[-1].value for box in form.field(name).widget.shown.children)


def test_an_upload_is_stored_at_once_and_shown(form: SpecForm, model: Any, tmp_path: Path) -> None:
    calls: list[int] = []
    form.on_change(lambda: calls.append(1))
    upload(form, "media.image", kite_png=png())
    assert calls
    assert form.spec == model.spec(image=form.spec.media.image)
    ref = form.spec.media.image
    assert (ref.name, ref.kind) == ("kite.png", "image")
    assert np.array_equal(media.read_image(ref), picture())
    assert len(list((tmp_path / "media").iterdir())) == 1
    assert form.field("media.image").widget.upload.value == (), "the bytes do not stay in memory"
    [small] = thumbnails(form, "media.image")
    assert small.size == (108, 72)
    assert "kite.png" in texts(form, "media.image")
    upload(form, "media.image", fox_png=png(1))
    assert form.spec.media.image.name == "fox.png"
    assert "media · image fox.png" in form._groups["media"].titles[0]
    form.field("media.image").widget.clear.click()
    assert form.spec == model.spec()
    assert not thumbnails(form, "media.image")


def test_lists_grow_and_keyframes_have_positions(form: SpecForm) -> None:
    assert form.field("media.references").widget.upload.multiple
    assert not form.field("media.image").widget.upload.multiple
    upload(form, "media.references", a_png=png(1), b_png=png(2))
    upload(form, "media.references", c_png=png(3))
    assert [ref.name for ref in form.spec.media.references] == ["a.png", "b.png", "c.png"]
    assert len(thumbnails(form, "media.references")) == 3
    upload(form, "media.keyframes", a_png=png(1), b_png=png(2))
    with pytest.raises(WanlabError, match="2 keyframes and 0 keyframe_positions"):
        _ = form.spec
    form.field("media.keyframe_positions").widget.value = "[0, -1]"
    assert form.spec.media.keyframe_positions == (0, -1)


def test_videos_show_their_first_frame_and_sound_its_name(form: SpecForm, tmp_path: Path) -> None:
    frames = np.stack([picture(n) for n in range(3)])
    video.write_lossless(tmp_path / "clip.mp4", frames, 16)
    form.field("media.video").widget.path.value = str(tmp_path / "clip.mp4")
    assert np.array_equal(media.read_video(form.spec.media.video), frames)
    [poster] = thumbnails(form, "media.video")
    expected = Image.fromarray(frames[0])
    expected.thumbnail((144, 72))
    assert np.array_equal(np.asarray(poster), np.asarray(expected))
    assert form.field("media.video").widget.path.value == ""
    write_wav(tmp_path / "a.wav", Audio(np.zeros((1, 800), np.float32), 8000))
    upload(form, "media.audio", a_wav=(tmp_path / "a.wav").read_bytes())
    assert form.spec.media.audio.kind == "audio"
    assert not thumbnails(form, "media.audio")
    assert "a.wav" in texts(form, "media.audio")
    upload(form, "media.mask", m_png=png(4))
    assert form.spec.media.mask.kind == "mask"
    assert form.field("media.mask").widget.upload.accept == "image/*,video/*"


def test_what_is_refused_stands_in_the_form(form: SpecForm, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(form, "media.references", a_png=png(1))
    before = form.spec
    for files, words in (
        ({"b_png": png(2), "text_png": b"<html>"}, r"media\.references: text\.png is no picture"),
        ({"nothing_png": b""}, r"nothing\.png is empty"),
    ):
        upload(form, "media.references", **files)
        with pytest.raises(WanlabError, match=words):
            _ = form.spec
    form.field("media.references").widget.path.value = "absent.png"
    with pytest.raises(WanlabError, match=r"'absent\.png' does not exist"):
        _ = form.spec
    upload(form, "media.references", c_png=png(3))
    assert form.spec.media.references[:-1] == before.media.references, "what was refused left nothing"
    monkeypatch.setattr(_media, "MAX_UPLOAD", 1 << 20)
    upload(form, "media.references", big_png=bytes(2 << 20))
    with pytest.raises(WanlabError, match=r"big\.png has 2 MB, and a page sends at most 1 MB\. Write its path"):
        _ = form.spec
    form.field("media.references").widget.clear.click()
    assert form.spec.media.references == ()


def test_the_panel_says_what_is_wrong(model: Any) -> None:
    panel = GeneratePanel(model)
    upload(panel._form, "media.image", text_png=b"<html>")
    assert panel._generate.disabled
    assert "text.png is no picture" in panel._message.value
    upload(panel._form, "media.image", kite_png=png())
    assert not panel._generate.disabled
    assert panel._message.value == ""


def test_only_media_that_the_model_takes_are_shown(form: SpecForm, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(form: SpecForm) -> set[str]:
        return {n for n, row in form._rows.items() if n.startswith("media.") and row.layout.display != "none"}

    assert shown(form) == {f"media.{leaf}" for leaf in TAKES}
    assert shown(SpecForm(model.spec())) == set(), "until a model says what it takes"
    monkeypatch.setattr(type(model), "accepts", ())
    assert shown(SpecForm(model.spec(), model.offers)) == set()


def test_media_pass_through_a_form_and_missing_ones_are_named(model: Any) -> None:
    spec = model.spec(image=picture(), references=[picture(1), picture(2)], mask=picture(3))
    assert SpecForm(spec, model.offers).spec == spec
    assert SpecForm(spec).spec == spec
    gone = spec.with_(image={"sha256": "0" * 64, "kind": "image", "name": "gone.png", "start": 1.5})
    form = SpecForm(gone, model.offers)
    assert form.spec == gone
    assert "gone.png (000000000000) is not stored in" in texts(form, "media.image")
    assert not thumbnails(form, "media.image")
