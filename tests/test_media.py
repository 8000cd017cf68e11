"""Media given to a spec are stored by content, found again, and travel with the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import wanlab
from tests.test_jobs import SPEC
from tests.tiny import tiny_wan
from tests.tiny_video import tiny_i2v
from wanlab import media, runs, video
from wanlab.audio import Audio, write_wav
from wanlab.cli._settings import read_spec, request
from wanlab.errors import WanlabError
from wanlab.media import MediaStore, read_image, read_mask, read_video
from wanlab.spec import GenerationSpec, MediaRef

ROOT = Path(__file__).parent.parent


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that is the current folder."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "wanlab.toml").write_text("")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def spec() -> GenerationSpec:
    return GenerationSpec.of({"model": "m", "fps": 16.0})


def picture(seed: int = 0, height: int = 8, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def kite(folder: Path) -> Path:
    return video.write_image(folder / "kite.png", picture())


# Given to a spec


def test_whatever_a_picture_is_given_as(workspace: Path, spec: GenerationSpec) -> None:
    """A path, text, a PIL image and an array are one content, whose reference the spec holds."""
    path = kite(workspace)
    sha256 = MediaStore(workspace / "elsewhere").put(path).sha256
    for given in (path, "kite.png", os.fspath(path), Image.fromarray(picture()), picture()):
        for changes in ({"image": given}, {"media.image": given}, {"media__image": given}, {"media": {"image": given}}):
            ref = spec.with_(**changes).media.image
            assert ref is not None
            assert (ref.sha256, ref.kind) == (sha256, "image")
    assert [p.name for p in (workspace / "media").iterdir()] == [f"{sha256}.png"], "stored once"
    assert spec.with_(image=path).media.image.name == "kite.png"
    assert GenerationSpec.of({"model": "m"}, image=path).media.image == spec.with_(image="kite.png").media.image
    assert spec.with_(image=path).id == spec.with_(image=picture()).id, "a name changes no result"
    ref = spec.with_(image=path).media.image
    assert spec.with_(image=ref).media.image == spec.with_(image=ref.model_dump()).media.image == ref
    assert spec.with_(image=ref).with_(image=None) == spec
    assert np.array_equal(read_image(ref), picture())


def test_a_model_makes_a_spec_with_a_picture(workspace: Path, model: Any) -> None:
    assert np.array_equal(read_image(model.spec(image=picture(3)).media.image), picture(3))


def test_lists_videos_masks_and_sound(workspace: Path, spec: GenerationSpec) -> None:
    path = kite(workspace)
    many = spec.with_(
        references=[path, picture(1), spec.with_(image=path).media.image], keyframes=path, keyframe_positions=[-1]
    )
    assert [
        np.array_equal(read_image(ref), picture(n)) for ref, n in zip(many.media.references, (0, 1, 0), strict=True)
    ]
    assert many.media.keyframes == (many.media.references[0],)
    frames = np.stack([picture(n) for n in range(3)])
    moving = spec.with_(video=frames, fps=24).media.video
    assert moving.kind == "video"
    assert video.read_video(media.find(moving))[1] == 24
    assert np.array_equal(read_video(moving, fps=24), frames)
    assert video.read_video(media.find(spec.with_(size={"fps": 8}, video_2=frames).media.video_2))[1] == 8
    assert video.read_video(media.find(spec.with_(video=frames).media.video))[1] == 16
    write_wav(workspace / "a.wav", Audio(np.zeros((1, 800), np.float32), 8000))
    assert spec.with_(audio="a.wav").media.audio.kind == "audio"
    soft = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)
    for given in (soft, soft > 0.5, np.rint(soft * 255).astype(np.uint8), np.stack([soft] * 4), path, frames):
        ref = spec.with_(mask=given).media.mask
        assert ref.kind == "mask"
        if isinstance(given, np.ndarray) and given.shape[-1] != 3:
            wanted = given / 255 if given.dtype == np.uint8 else given
            assert np.abs(read_mask(ref) - wanted).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("leaf", ["video", "video_2", "pose_video", "face_video"])
def test_a_still_picture_is_no_video_nor_a_video_a_picture(leaf: str, workspace: Path, spec: GenerationSpec) -> None:
    path = kite(workspace)
    for given in (path, spec.with_(image=path).media.image):
        with pytest.raises(WanlabError, match=rf"media\.{leaf}: kite.png is a picture, not a video.*image=.*array of"):
            spec.with_(**{leaf: given})
    moving = spec.with_(**{leaf: np.stack([picture(n) for n in range(3)])})
    for wrong in ({"image": getattr(moving.media, leaf)}, {"references": [getattr(moving.media, leaf)]}):
        with pytest.raises(WanlabError, match="is a video, not a picture"):
            spec.with_(**wrong)


def test_a_list_for_one_picture_is_named(workspace: Path, spec: GenerationSpec) -> None:
    with pytest.raises(WanlabError, match="image takes one picture, not a list"):
        spec.with_(image=[str(kite(workspace))])
    with pytest.raises(WanlabError, match="mask_2 takes one mask, not a list"):
        spec.with_(media={"mask_2": [kite(workspace)]})


def test_what_is_no_media_is_named_and_leaves_nothing(
    workspace: Path, spec: GenerationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "folder").mkdir()
    (workspace / "text.png").write_text("<html>")
    (workspace / "art.txt").write_text("\x1b[31m a picture for terminals")
    (workspace / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/hostname\n")
    (workspace / "live.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    (workspace / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (workspace / "nothing.png").write_bytes(b"")
    (workspace / "bomb.png").write_bytes(bomb())
    (workspace / "half.png").write_bytes(kite(workspace).read_bytes()[:150])
    with av.open(str(workspace / "empty.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    write_wav(workspace / "a.wav", Audio(np.zeros((1, 800), np.float32), 8000))
    video.write_lossless(workspace / "clip.mp4", picture()[None].repeat(3, 0), 16)
    for name in ("absent.png", "", "x" * 5000, "a\0b", "~nobody-here/x.png", "folder", "text.png", "art.txt"):
        assert name[:40] in refusal(spec, image=name).replace("\\x00", "\0")
    for name in ("list.mp4", "live.m3u8", "page.eps", "nothing.png", "bomb.png", "half.png", "empty.mp4"):
        assert name in refusal(spec, references=[picture(), name])
        assert "media.references[1]" in refusal(spec, references=[picture(), name])
    assert "178956970 pixels" in refusal(spec, image="bomb.png")
    assert "clip.mp4 is a video, not a picture" in refusal(spec, image="clip.mp4")
    assert "a.wav is sound, not a video" in refusal(spec, video="a.wav")
    assert "a.wav is sound, not a mask" in refusal(spec, mask="a.wav")
    assert "is a picture, not sound" in refusal(spec, audio=picture())
    assert "float64 (8, 12, 3) is no media" in refusal(spec, image=picture() / 255)
    assert "not 0 to 1" in refusal(spec, mask=np.full((4, 4), 2.0))
    assert {p.suffix for p in (workspace / "media").iterdir()} <= {".png", ".mp4", ".wav"}
    assert not list((workspace / "media").glob(".part-*"))


def refusal(spec: GenerationSpec, **changes: Any) -> str:
    with pytest.raises(WanlabError) as caught:
        spec.with_(**changes)
    assert len(str(caught.value)) < 700
    assert caught.value.remedy
    return str(caught.value)


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header says 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (40_000).to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size * 2 + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )


def test_documents_never_make_us_read_paths(workspace: Path, spec: GenerationSpec) -> None:
    """A spec that was read names media by content; a path in it is an error that says how to give one."""
    kite(workspace)
    document = spec.to_dict()
    for leaf, value in (("image", "kite.png"), ("references", ["kite.png"])):
        document["media"] = {**spec.to_dict()["media"], leaf: value}
        for read in (GenerationSpec.from_json, lambda d: GenerationSpec.of(d), lambda d: GenerationSpec(**d)):
            with pytest.raises(WanlabError, match=r"'kite\.png'.*Give a MediaRef: spec\.with_\(\.\.\.\)"):
                read(document)
    with pytest.raises(WanlabError, match=r"not a MediaRef.*Give a MediaRef: spec\.with_"):
        GenerationSpec(model="m", image=Image.fromarray(picture()))
    assert not (workspace / "media").exists()


def test_a_spec_without_media_imports_no_decoder(workspace: Path) -> None:
    code = """
import sys, wanlab
from wanlab.spec import GenerationSpec
spec = GenerationSpec.of({"model": "m"}, prompt="a").with_(seed=7)
spec = spec.with_(image={"sha256": "0" * 64, "kind": "image"})
assert not {"PIL", "av", "wanlab.media", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_command_line_takes_paths(workspace: Path) -> None:
    kite(workspace)
    _, spec = request(["wan_tiny", "image=kite.png", "media.fit=pad", 'references=["kite.png"]'], None)
    assert np.array_equal(read_image(spec.media.image), picture())
    assert spec.media.fit == "pad"
    assert spec.media.references == (spec.media.image,)
    with pytest.raises(WanlabError, match=r"media\.image: 'kit\.png' does not exist"):
        request(["wan_tiny", "image=kit.png"], None)


# Results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture
def follower(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that starts from the picture's mean instead of pure noise: the picture decides the outcome."""
    noise = type(model).initial_noise

    def initial_noise(self: Any, spec: GenerationSpec, batch: int = 1) -> Any:
        start = noise(self, spec, batch)
        return start if spec.media.image is None else start + float(read_image(spec.media.image).mean()) / 64

    monkeypatch.setattr(type(model), "accepts", ("image", "references"))
    monkeypatch.setattr(type(model), "initial_noise", initial_noise)
    return model


def move(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder in another workspace, the first one gone, as in another process."""
    other = tmp_path / "two"
    other.mkdir(exist_ok=True)
    (other / "wanlab.toml").write_text("")
    moved = Path(shutil.move(folder, other / "taken"))
    shutil.rmtree(tmp_path / "one" / "media")
    monkeypatch.chdir(other)
    monkeypatch.setattr(media._find, "_runs", {})
    return moved


def test_a_result_folder_is_self_contained(
    follower: Any, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = wanlab.generate(follower, **SPEC, image=kite(workspace), references=[picture(1)])
    assert not np.array_equal(result.frames, wanlab.generate(follower, **SPEC).frames)
    folder = result.save(workspace / "run")
    inside = sorted(p.name for p in (folder / "media").iterdir())
    assert inside == sorted(f"{ref.sha256}.png" for ref in media.references(result.spec.media))
    stored = workspace / "media" / inside[0]
    assert (folder / "media" / inside[0]).samefile(stored), "no second copy on one disk"
    assert {a.path for a in runs.read_run(folder).artifacts} >= {f"media/{name}" for name in inside}
    again = result.save(folder)
    assert sorted(p.name for p in (again / "media").iterdir()) == inside
    assert stored.is_file()

    moved = move(folder, tmp_path, monkeypatch)
    with pytest.raises(WanlabError, match=r"kite\.png .*is not stored in .*two"):
        wanlab.generate(follower, result.spec)
    opened = wanlab.open_result(moved)
    assert np.array_equal(wanlab.generate(follower, opened.spec).frames, result.frames)
    assert opened.save(tmp_path / "two" / "second").joinpath("media", inside[0]).is_file()


def test_jobs_keep_media_too(follower: Any, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = wanlab.submit(follower, **SPEC, image=kite(workspace), folder=workspace / "run")
    frames = job.result().frames
    with pytest.raises(WanlabError, match="not stored"):
        wanlab.submit(follower, **SPEC, image=MediaRef(sha256="0" * 64, kind="image"), folder=workspace / "no")
    assert not (workspace / "no").exists()
    moved = move(workspace / "run", tmp_path, monkeypatch)
    spec = read_spec(moved)
    assert np.array_equal(wanlab.generate(follower, spec).frames, frames)


def test_a_picture_goes_with_its_run_by_every_way(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a model that starts from a picture: the run's folder, its JSON and its clip give the spec and the file."""
    model = wanlab.load(tiny_i2v(tmp_path_factory.mktemp("i2v"))[1], device="cpu")
    result = wanlab.generate(model, prompt="a kite", num_steps=2, num_frames=5, image=kite(workspace))
    assert result.record.resolved["spec"]["weights"]["stored_as"] == model.stored_as == "float"
    moved = move(result.save(workspace / "run"), tmp_path, monkeypatch)
    ways = {"settings": lambda path: wanlab.open_settings(path).spec, "cli": read_spec}
    ways["result"] = lambda path: wanlab.open_result(path).spec
    for name, way in ways.items():
        for place in (moved, moved / "run.json", moved / "video.mp4"):
            monkeypatch.setattr(media._find, "_runs", {})
            spec = way(place)
            assert spec == result.spec, (name, place)
            assert np.array_equal(read_image(spec.media.image), picture()), (name, place)
    again = wanlab.generate(model, spec)
    assert np.array_equal(again.frames, result.frames)
    resolved = GenerationSpec.from_json(runs.read_run(moved).resolved["spec"])
    assert np.array_equal(wanlab.generate(model, resolved).frames, result.frames)


def test_a_failed_run_can_be_made_again_from_its_folder(
    follower: Any, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no more")

    job = wanlab.submit(follower, **SPEC, image=kite(workspace), folder=workspace / "run", on_step=fail)
    with pytest.raises(RuntimeError, match="no more"):
        job.result()
    moved = move(workspace / "run", tmp_path, monkeypatch)
    assert runs.read_run(moved).status == "failed"
    assert np.array_equal(read_image(read_spec(moved).media.image), picture())


def test_the_clip_inside_a_folder_knows_its_media(
    follower: Any, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wanlab.generate(follower, **SPEC, image=kite(workspace)).save(workspace / "run")
    moved = move(folder, tmp_path, monkeypatch)
    assert np.array_equal(read_image(wanlab.open_result(moved / "video.mp4").spec.media.image), picture())


def test_without_links_media_are_copied(follower: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = wanlab.generate(follower, **SPEC, image=kite(workspace)).save(workspace / "run")
    [copied] = (folder / "media").iterdir()
    assert not copied.samefile(workspace / "media" / copied.name)
    assert copied.read_bytes() == (workspace / "media" / copied.name).read_bytes()


def test_changed_media_are_refused(follower: Any, workspace: Path) -> None:
    spec = follower.spec(**SPEC, image=kite(workspace))
    media.find(spec.media.image).write_bytes(b"something else")
    with pytest.raises(WanlabError, match="has changed since it was stored"):
        wanlab.generate(follower, spec)
