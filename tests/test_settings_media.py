"""Pictures on the way to and from WanGP's settings, which name files and hold none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wanlab
from tests.tiny_video import picture
from wanlab import media
from wanlab.settings import Settings, open_settings

I2V = {"type": "WanGP v8.6", "model_type": "i2v", "settings_version": 2.74, "prompt": "a kite", "seed": 7}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wanlab.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spec_of(**changes: Any) -> wanlab.GenerationSpec:
    return Settings.of(I2V).spec.with_(**changes)


def test_pictures_are_to_be_chosen_in_wangp_and_it_asks_for_them(workspace: Path) -> None:
    picture(1).save("kite.png")
    saved = Settings(spec_of(image="kite.png", model="wan_flf2v_720p_14b", last_image=picture(2)))
    for given, letters in ((Settings(spec_of(image="kite.png")), "S"), (saved, "SE")):
        for _ in range(2):  # not once a process
            with pytest.warns(UserWarning, match=r"not written, choose them in WanGP: image \(kite.png\)") as caught:
                given.save(workspace / "a.json", form="wangp")
            assert len(caught) == 1
            assert caught[0].filename == __file__
        assert json.loads((workspace / "a.json").read_text())["image_prompt_type"] == letters
    changed = Settings.of(I2V).with_(image="kite.png")
    with pytest.warns(UserWarning, match="choose them in WanGP"):
        assert changed.to_wangp()["image_prompt_type"] == "S"


def test_a_first_frame_beside_the_settings_is_taken(workspace: Path) -> None:
    (workspace / "other").mkdir()
    picture(1).save(workspace / "other" / "kite.png")
    document = {**I2V, "image_prompt_type": "S", "image_start": ["kite.png"]}
    (workspace / "other" / "a.json").write_text(json.dumps(document))
    found = open_settings("other/a.json")  # without a warning
    assert found.spec.media.image is not None
    assert np.array_equal(media.read_image(found.spec.media.image), np.asarray(picture(1)))
    assert not {"image_start", "image_prompt_type"} & set(found.not_yet)
    assert not {"image_start", "image_prompt_type"} & set(found.with_(seed=8).not_yet)
    assert found.to_wangp() == Settings.of(document).to_wangp()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "kite.png is not beside the settings, give image"), (b"x", "is no picture")]
)
def test_a_first_frame_that_cannot_be_read_is_told(content: bytes | None, words: str, workspace: Path) -> None:
    if content is not None:
        (workspace / "kite.png").write_bytes(content)
    (workspace / "a.json").write_text(json.dumps({**I2V, "image_prompt_type": "S", "image_start": "kite.png"}))
    with pytest.warns(UserWarning, match="kite.png"):
        found = open_settings("a.json")
    assert found.spec.media.image is None
    assert words in found.not_yet["image_start"]
    assert "image_prompt_type" in found.not_yet


def test_a_file_outside_the_settings_folder_is_never_taken(workspace: Path) -> None:
    """A document of somebody else's must not put a picture of this machine into the runs made from it."""
    from PIL import Image

    private, there = workspace / "private.png", workspace / "there"
    there.mkdir()
    Image.new("RGB", (8, 8)).save(private)
    for name in (str(private), "../private.png"):
        document = {"type": "WanGP v8", "model_type": "i2v", "image_prompt_type": "S", "image_start": [name]}
        (there / "s.json").write_text(json.dumps({**document, "settings_version": 2.35, "prompt": "a kite"}))
        with pytest.warns(UserWarning, match="beside the settings"):
            settings = wanlab.open_settings(there / "s.json")
        assert settings.spec.media.image is None
        assert "beside the settings" in settings.not_yet["image_start"]
