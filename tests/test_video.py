"""mp4 and PNG files: same bytes twice, text that survives, odd sizes, nothing half-written, content-addressed media."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from wanlab import video
from wanlab.errors import WanlabError
from wanlab.media import MediaStore
from wanlab.metrics import psnr

TEXTS = {
    "plain": "a red circle",
    "unicode": "日本語 ünïcödé 😀 色调艳丽 \u2028",
    "quotes": "\"double\" 'single' `back` \\ = ; # %s {} <b>",
    "newlines": "first\nsecond\r\n\tthird",
    "json": json.dumps({"wanlab": {"spec": {"prompt": 'say "hi"\n'}, "run": "0123456789ab"}}, ensure_ascii=False),
    "long": 'z"\\\n' * 262_144,
}


def clip(num_frames: int = 5, height: int = 55, width: int = 97) -> np.ndarray:
    """Smooth colours, so that a lossy codec keeps them."""
    t, y, x = np.mgrid[0:num_frames, 0:height, 0:width]
    return np.stack([40 + x + 3 * t, 200 - 2 * y, 30 * t + y], axis=-1).clip(0, 255).astype(np.uint8)


def test_same_frames_make_the_same_bytes(tmp_path: Path) -> None:
    first = video.write_video(tmp_path / "a.mp4", clip(), 16, comment="x").read_bytes()
    assert video.write_video(tmp_path / "b.mp4", clip(), 16, comment="x").read_bytes() == first
    assert video.write_video(tmp_path / "c.mp4", clip(), 16, comment="x", crf=30).read_bytes() != first
    assert first.find(b"moov") < first.find(b"mdat"), "the index comes first, so that a page plays before it has all"
    picture = video.write_image(tmp_path / "a.png", clip()[0], comment="x").read_bytes()
    assert video.write_image(tmp_path / "b.png", clip()[0], comment="x").read_bytes() == picture


@pytest.mark.parametrize("lossless", [False, True])
def test_bytes_do_not_depend_on_memory_never_written(tmp_path: Path, lossless: bool) -> None:
    """glibc fills fresh memory with another byte in each process; x264's AVX-512 code let such bytes into the file."""
    code = "import sys, numpy; from wanlab.video import write_lossless, write_video; frames = numpy.load('f.npy')\n"
    write = "write_lossless" if lossless else "write_video"
    code += f"sys.stdout.buffer.write({write}(sys.argv[1], frames, 16).read_bytes())"
    np.save(tmp_path / "f.npy", clip(9))
    here = str(Path(video.__file__).parents[1])
    written = set()
    for fill in ("0", "1", "170", "255"):
        environment = os.environ | {"MALLOC_PERTURB_": fill, "PYTHONPATH": here}
        command = [sys.executable, "-c", code, f"{fill}.mp4"]
        written.add(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True).stdout)
    assert len(written) == 1


@pytest.mark.parametrize("name", TEXTS)
def test_comment_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    path = video.write_video(tmp_path / "a.mp4", clip(1, 16, 16), 16, comment=TEXTS[name])
    assert video.read_video(path)[2] == TEXTS[name]
    assert video.read_comment(path) == TEXTS[name]
    picture = video.write_image(tmp_path / "a.png", clip(1, 16, 16)[0], comment=TEXTS[name])
    assert video.read_image(picture)[1] == TEXTS[name]
    assert video.read_comment(picture) == TEXTS[name]


def test_comment_that_files_cannot_hold_is_refused(tmp_path: Path) -> None:
    for comment in ("a\0b", "\ud800"):
        with pytest.raises(WanlabError, match=r"NUL|surrogate"):
            video.write_video(tmp_path / "a.mp4", clip(1, 16, 16), 16, comment=comment)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("height", "width"), [(55, 97), (54, 97), (55, 96), (64, 96), (1, 1), (3, 33)])
def test_odd_sizes_are_padded_in_the_file_and_restored(tmp_path: Path, height: int, width: int) -> None:
    frames = clip(3, height, width)
    path = video.write_video(tmp_path / "a.mp4", frames, 16, crf=0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.height % 2, stream.width % 2, stream.pix_fmt) == (0, 0, "yuv420p")
        assert stream.codec_context.name == "h264"
    back, fps, comment = video.read_video(path)
    assert back.shape == frames.shape
    assert (fps, comment) == (16.0, "")
    assert np.abs(back.astype(int) - frames).mean() < 4


def test_colours_survive(tmp_path: Path) -> None:
    """Colour matrices that differ between writing and reading shift saturated colours by 10 levels and more."""
    colours = [(230, 20, 20), (20, 200, 40), (30, 40, 220), (230, 220, 20), (240, 240, 240), (8, 8, 8)]
    frames = np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (6, 32, 32, 3)).copy()
    back = video.read_video(video.write_video(tmp_path / "a.mp4", frames, 8))[0]
    difference = back.astype(int) - frames
    assert np.abs(difference).max() <= 3
    assert abs(difference.mean()) < 0.3, "neither darker nor brighter"
    smooth = clip(9, 64, 96)
    assert psnr(smooth, video.read_video(video.write_video(tmp_path / "b.mp4", smooth, 8))[0]) > 38


def test_lossless_video_and_png_are_exact(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 33, 47, 3), dtype=np.uint8)
    assert np.array_equal(video.read_video(video.write_lossless(tmp_path / "a.mp4", noise, 16))[0], noise)
    assert np.array_equal(video.read_image(video.write_image(tmp_path / "a.png", noise[0]))[0], noise[0])


@pytest.mark.parametrize("fps", [1, 8, 16, 23.976, 24, 29.97, 60])
def test_frame_rate_and_count_survive(tmp_path: Path, fps: float) -> None:
    frames, back, _ = video.read_video(video.write_video(tmp_path / "a.mp4", clip(7, 16, 16), fps))
    assert len(frames) == 7
    assert back == pytest.approx(fps, abs=1e-3)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8), [[1]]],
    ids=["float", "no time", "none", "list"],
)
def test_other_arrays_are_refused(tmp_path: Path, frames: object) -> None:
    with pytest.raises(WanlabError, match="rames"):
        video.write_video(tmp_path / "a.mp4", frames, 16)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_video_are_named(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "a.mp4", clip(9), 16)
    broken = {"html.mp4": b"<html>not found</html>", "empty.mp4": b"", "half.mp4": path.read_bytes()[:700]}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WanlabError, match=name):
            video.read_video(tmp_path / name)
    for call in (video.read_video, video.read_image, video.read_comment):
        with pytest.raises(WanlabError, match=r"absent\.mp4"):
            call(tmp_path / "absent.mp4")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(WanlabError, match=r"bad\.png"):
        video.read_image(tmp_path / "bad.png")


def test_interrupt_while_encoding_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video.write_video(tmp_path / "a.mp4", clip(), 16)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(video.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        video.write_video(path, clip(2), 16)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "a.mp4", clip(1, 16, 16), 16)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(WanlabError, match="Disk full"):
            video.write_video(path, noise, 16)
        with pytest.raises(WanlabError, match="Disk full"):
            video.write_image(tmp_path / "a.png", noise.reshape(-1, 128, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_look_like_protocols_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "seed %03d.mp4", "日本.mp4"):
        assert video.read_video(video.write_video(name, clip(2, 16, 16), 16))[0].shape == (2, 16, 16, 3)


def test_media_are_stored_once_under_their_hash(tmp_path: Path) -> None:
    store = MediaStore(tmp_path / "media")
    assert not store.root.exists(), "a store makes no folder before something is put"
    frame = clip(1)[0]
    first = store.put(frame)
    assert store.put(Image.fromarray(frame)).sha256 == first.sha256
    assert store.put(video.write_image(tmp_path / "cat.png", frame), kind="mask").sha256 == first.sha256
    assert [p.name for p in store.root.iterdir()] == [f"{first.sha256}.png"]
    assert np.array_equal(video.read_image(store.get(first))[0], frame)
    moving = store.put(clip(4), fps=12)
    assert (first.kind, moving.kind, store.get(moving).suffix) == ("image", "video", ".mp4")
    frames, fps, _ = video.read_video(store.get(moving))
    assert np.array_equal(frames, clip(4))
    assert fps == 12


def test_media_are_known_by_content_and_checked(tmp_path: Path) -> None:
    store = MediaStore(tmp_path / "media")
    Image.fromarray(clip(1)[0]).save(tmp_path / "photo.txt", format="JPEG")
    ref = store.put(tmp_path / "photo.txt")
    assert (ref.kind, ref.name, store.get(ref).suffix) == ("image", "photo.txt", ".jpg")
    (tmp_path / "x.png").write_text("<html>")
    for bad in (tmp_path / "x.png", tmp_path / "absent.png", 7, np.zeros((4, 4, 3))):
        with pytest.raises(WanlabError):
            store.put(bad)
    assert len(list(store.root.iterdir())) == 1, "nothing of a refused file stays"
    with pytest.raises(WanlabError, match=r"not stored.*MediaStore\(folder\).put"):
        MediaStore(tmp_path / "other").get(ref)
    store.get(ref).write_bytes(b"changed")
    with pytest.raises(WanlabError, match="changed"):
        store.get(ref)
