"""Media as arrays: orientation, transparency, depth, pace and parts of videos, limits, and fitting."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from wanlab import media, video
from wanlab.errors import WanlabError
from wanlab.media import MediaStore, fit, fit_mask, read_image, read_mask, read_video
from wanlab.media import _read as reader
from wanlab.spec import MediaRef


def numbered(num: int, height: int = 8, width: int = 12) -> np.ndarray:
    """Frames of one grey each, its number."""
    return np.repeat(np.arange(num, dtype=np.uint8), height * width * 3).reshape(num, height, width, 3)


def numbers(frames: np.ndarray) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def gradient(height: int = 24, width: int = 36) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """9 numbered frames at 16 a second, without loss."""
    return video.write_lossless(tmp_path / "film.mp4", numbered(9), 16)


# Pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture(tmp_path: Path, orientation: int) -> None:
    upright = gradient()
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png"), upright)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = 10, 20, 30, 255
    pixels[1, 1] = 0, 0, 0, 51
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read[0, 0].tolist() == [10, 20, 30]
    assert read[0, 1].tolist() == [255, 255, 255]
    assert read[1, 1].tolist() == [204, 204, 204]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert read_image(tmp_path / "p.png").tolist() == [[[200, 0, 0], [255, 255, 255]]]
    stored = MediaStore(tmp_path / "store").put(Image.fromarray(pixels))
    assert np.array_equal(read_image(MediaStore(tmp_path / "store").get(stored)), read)


def test_depths_and_modes(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 1].tolist() == [0, 1, 128, 255]
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").tolist() == [[[0] * 3, [255] * 3]]
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").shape == (2, 2, 3)
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(WanlabError, match="floating-point"):
        read_image(tmp_path / "f.tif")


def test_masks_are_grey_values(tmp_path: Path, film: Path) -> None:
    Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert (mask.dtype, mask.shape) == (np.float32, (1, 3))
    assert mask.tolist() == [[0.0, np.float32(0.2), 1.0]]
    Image.new("RGB", (1, 1), (255, 0, 0)).save(tmp_path / "red.png")
    assert read_mask(tmp_path / "red.png")[0, 0] == np.float32(0.299)
    moving = read_mask(film, fps=8)
    assert moving.shape == (5, 8, 12)
    assert np.allclose(moving[:, 0, 0] * 255, [0, 2, 4, 6, 8])


# Videos


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, list(range(9))),
        ({"fps": 16}, list(range(9))),
        ({"fps": 8}, [0, 2, 4, 6, 8]),
        ({"fps": 24}, [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8, 8]),
        ({"fps": 32, "num_frames": 5}, [0, 0, 1, 1, 2]),
        ({"num_frames": 4}, [0, 1, 2, 3]),
        ({"num_frames": 40}, list(range(9))),
        ({"start": 0.25}, [4, 5, 6, 7, 8]),
        ({"start": 0.25, "end": 0.375}, [4, 5]),
        ({"end": 0.125, "fps": 16}, [0, 1]),
        ({"start": 0.25, "fps": 4}, [4, 8]),
        ({"ref_fps": 4, "fps": 16}, [0, 4, 8]),
        ({"start": 0.03, "fps": 16, "num_frames": 2}, [0, 1]),
    ],
)
def test_pace_and_part(film: Path, wanted: dict[str, Any], expected: list[int]) -> None:
    ref = media.default_store().put(film)
    ref = ref.with_(start=wanted.get("start"), end=wanted.get("end"), fps=wanted.get("ref_fps"))
    frames = read_video(ref, wanted.get("fps"), wanted.get("num_frames"))
    assert frames.dtype == np.uint8
    assert numbers(frames) == expected


def test_a_pace_of_a_file_with_rounded_times(tmp_path: Path) -> None:
    """Matroska counts milliseconds, so frames at 24 a second come at 0, 42, 83 ..; each is read once."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        for number in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16), number, np.uint8), format="gray")))
        container.mux(stream.encode())
    whole = read_video(tmp_path / "a.mkv")
    assert np.array_equal(read_video(tmp_path / "a.mkv", fps=24), whole)
    assert numbers(whole) == numbers(numbered(25))
    assert np.array_equal(read_video(tmp_path / "a.mkv", fps=12), whole[::2])


def test_a_part_far_from_the_beginning_is_exact(tmp_path: Path) -> None:
    film = video.write_lossless(tmp_path / "long.mp4", numbered(200), 16)
    ref = media.default_store().put(film).with_(start=7.5)
    assert numbers(read_video(ref, num_frames=3)) == [120, 121, 122]
    assert numbers(read_video(ref.with_(fps=8), num_frames=3)) == [120, 122, 124]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_videos(tmp_path: Path, form: str) -> None:
    path = tmp_path / "moving.bin"
    pictures = [Image.fromarray(frame) for frame in numbered(4) * 60]
    pictures[0].save(path, format=form, save_all=True, append_images=pictures[1:], duration=125, lossless=True)
    assert numbers(read_video(path)) == [0, 60, 120, 180]
    assert (
        numbers(read_video(path, fps=16))
        == [0, 0, 60, 60, 120, 120, 180, 180][:1] + numbers(read_video(path, fps=16))[1:]
    )
    assert len(read_video(path, fps=16)) == 8
    assert numbers(read_video(path, fps=4)) == [0, 120]
    assert MediaStore(tmp_path / "store").put(path).kind == "video"
    with pytest.raises(WanlabError, match=r"moving\.bin is no single picture"):
        read_image(path)


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "still.png")
    assert np.array_equal(read_video(tmp_path / "still.png"), gradient()[None])


def test_what_wanlab_padded_is_cut_off_again(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "odd.mp4", np.repeat(gradient(15, 21)[None], 3, axis=0), 16)
    assert np.array_equal(read_video(path), video.read_video(path)[0])
    assert read_video(path).shape == (3, 15, 21, 3)


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    """A telephone's: the matrix in the track's header says how to turn the frames."""
    path = video.write_lossless(tmp_path / "turned.mp4", np.repeat(gradient()[None], 2, axis=0), 16)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    assert data[matrix : matrix + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # a quarter, clockwise
    path.write_bytes(data)
    assert np.array_equal(read_video(path)[0], np.rot90(gradient(), -1))


def test_a_long_video_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = video.write_lossless(tmp_path / "long.mp4", numbered(160, 128, 128), 16)
    monkeypatch.setattr(reader, "MAX_BYTES", 20 * 128 * 128 * 3)
    tracemalloc.start()
    with pytest.raises(WanlabError, match=r"long\.mp4 is too long.*160 frames of 128x128 pixels are 0\.0 GB"):
        read_video(film)
    with pytest.raises(WanlabError, match="80 frames"):
        read_video(film, fps=8)
    assert tracemalloc.get_traced_memory()[1] < 10 * 128 * 128 * 3
    tracemalloc.stop()
    assert len(read_video(film, num_frames=20)) == 20
    ref = media.default_store().put(film)
    assert len(read_video(ref.with_(start=1, end=2))) == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"start": 3.0}, "no frame from 3 s to the end"), ({"start": 0.2, "end": 0.1}, "no frame from 0.2 s to 0.1 s")],
)
def test_a_part_without_frames_is_named(film: Path, changes: dict[str, float], words: str) -> None:
    ref = media.default_store().put(film).with_(**changes)
    for fps in (None, 16):
        with pytest.raises(WanlabError, match=rf"film\.mp4 has {words}.*0\.56"):
            read_video(ref, fps)


def test_damaged_files_are_named(tmp_path: Path, film: Path) -> None:
    whole = video.write_video(
        tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8), 16
    )
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 3])
    picture = video.write_image(tmp_path / "p.png", gradient())
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:-90])
    for name, read in (("cut.mp4", read_video), ("cut.png", read_image), ("cut.png", read_mask)):
        with pytest.raises(WanlabError, match=name):
            read(tmp_path / name)
    with pytest.raises(WanlabError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")
    for fps in (0, -1, float("inf")):
        with pytest.raises(WanlabError, match="fps"):
            read_video(film, fps)


# Fitting


def test_the_right_size_is_left_alone() -> None:
    frames, mask = numbered(3), np.zeros((3, 8, 12), dtype=np.float32)
    for how in ("crop", "pad", "stretch"):
        assert fit(frames, 8, 12, how) is frames
        assert np.shares_memory(fit(frames[0], 8, 12, how), frames)
        assert fit_mask(mask, 8, 12, how) is mask


@pytest.mark.parametrize("size", [(16, 16), (48, 20), (9, 50), (100, 100), (1, 1)])
def test_crop_keeps_aspect_and_middle(size: tuple[int, int]) -> None:
    """As Pillow's own ImageOps.fit, which crops the middle and resizes."""
    from PIL import ImageOps

    picture = gradient()
    expected = np.asarray(ImageOps.fit(Image.fromarray(picture), size[::-1], Image.Resampling.LANCZOS))
    assert np.abs(fit(picture, *size, "crop").astype(int) - expected).max() <= 1
    assert np.array_equal(fit(picture[None], *size, "crop")[0], fit(picture, *size, "crop"))


def test_pad_keeps_the_whole_picture_centred() -> None:
    picture = gradient(24, 36)
    wide = fit(picture, 24, 60, "pad", pad=(1, 2, 3))
    assert np.array_equal(wide[:, 12:48], picture)
    assert (wide[:, :12] == (1, 2, 3)).all()
    assert (wide[:, 48:] == (1, 2, 3)).all()
    half = fit(picture, 40, 18, "pad", pad=255)
    assert (half[:14] == 255).all()
    assert (half[26:] == 255).all()
    assert np.array_equal(half[14:26], fit(picture, 12, 18, "stretch"))


def test_stretch_is_pillows_resize() -> None:
    picture = gradient()
    expected = np.asarray(Image.fromarray(picture).resize((17, 31), Image.Resampling.LANCZOS))
    assert np.array_equal(fit(np.stack([picture, picture]), 31, 17, "stretch")[1], expected)


def test_masks_are_fitted_like_their_pictures() -> None:
    mask = np.zeros((24, 36), dtype=np.float32)
    mask[:, 18:] = 1
    for how in ("crop", "pad", "stretch"):
        for size in ((16, 16), (48, 60), (100, 30)):
            fitted = fit_mask(mask, *size, how, pad=0.25)
            pictured = fit(np.repeat(np.uint8(mask * 255)[..., None], 3, -1), *size, how, pad=64)[..., 0] / 255
            assert fitted.dtype == np.float32
            assert fitted.shape == size
            assert 0 <= fitted.min() <= fitted.max() <= 1
            assert np.abs(fitted - pictured).mean() < 0.03
    assert fit_mask(mask, 12, 6, "stretch")[0, 2:4].tolist() != [0, 1], "edges are soft"
    assert fit_mask(mask[None], 48, 60, "pad", pad=1.0)[0, 0, 0] == 1


def test_what_cannot_be_fitted_is_named() -> None:
    with pytest.raises(WanlabError, match=r"way to fit 'crops'.*crop, pad, stretch.*Did you mean 'crop'"):
        fit(numbered(1), 4, 4, "crops")  # type: ignore[arg-type]
    with pytest.raises(WanlabError, match="0x4 pixels"):
        fit(numbered(1), 4, 0)
    with pytest.raises(WanlabError, match="Give uint8"):
        fit(np.zeros((4, 4, 3)), 2, 2)
    with pytest.raises(WanlabError, match="Give float32"):
        fit_mask(np.zeros((4, 4), dtype=np.uint8), 2, 2)


def test_what_is_stored_nowhere_says_where_it_looked() -> None:
    ref = MediaRef(sha256="ab" * 32, name="kite.png", kind="image")
    with pytest.raises(WanlabError, match=r"kite\.png \(abababababab\) is not stored in .*media.*with_\(\.\.\.\)"):
        read_image(ref)
