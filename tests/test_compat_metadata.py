"""WanGP's metadata in video and picture files: read, written without touching a pixel, refused where hostile."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from wanlab.audio import Audio
from wanlab.compat.metadata import MAX_TEXT, form_of, read_texts, write_text
from wanlab.errors import WanlabError
from wanlab.video import read_video, write_video

PLAIN = {"type": "WanGP v8.6 by DeepBeepMeep - Wan", "prompt": "a kite", "seed": 7}
WIDE = {**PLAIN, "prompt": "ein Drachen über der Düne, 风筝 🪁"}
STILL = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc`\0\0\0\2\0\1H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82"
)
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)


def picture(path: Path, **options: Any) -> Path:
    Image.fromarray(FRAMES[0]).save(path, **options)
    return path


def mkv(path: Path) -> Path:
    """A Matroska file with sound, a tag and an attachment."""
    with av.open(str(path), "w", format="matroska") as out:
        out.metadata["title"] = "kept"
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        sound = out.add_stream("aac", rate=8000)
        out.add_attachment("first.png", "image/png", STILL)
        out.add_attachment("note.bin", "application/octet-stream", b"a note")
        for picture in FRAMES:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return path


def mov(path: Path) -> Path:
    with av.open(str(path), "w", format="mov") as out:
        out.metadata["comment"] = "QuickTime's own"
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in FRAMES:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def mp4(path: Path, comment: str = "") -> Path:
    """An index before the pictures, whose offsets move."""
    samples = np.zeros((1, 1600), np.float32)
    return write_video(path, FRAMES, 16, comment=comment, audio=Audio(samples, 16_000))


def mp4_behind(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in FRAMES:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "a.mp4": mp4,
    "behind.mp4": mp4_behind,
    "commented.mp4": lambda path: mp4(path, comment="an older text " * 300),
    "a.mov": mov,
    "a.mkv": mkv,
    "a.png": picture,
    "a.jpg": lambda path: picture(path, quality=90),
    "exif.jpg": lambda path: picture(path, exif=_artist()),
    "a.webp": picture,
    "lossless.webp": lambda path: picture(path, lossless=True),
    "exif.webp": lambda path: picture(path, exif=_artist()),
}


def _artist() -> Image.Exif:
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    return exif


def decoded(path: Path) -> list[bytes]:
    """Every decoded picture and sample of a file."""
    if path.suffix not in (".mp4", ".mov", ".mkv"):
        with Image.open(path) as image:
            return [np.asarray(image.convert("RGB")).tobytes()]
    with av.open(str(path)) as container:
        return [
            f.to_ndarray().tobytes()
            for f in container.decode(*(s for s in container.streams if s.type in "videoaudio"))
        ]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("settings", [PLAIN, WIDE], ids=["ascii", "unicode"])
def test_settings_go_in_and_come_out_and_no_pixel_changes(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    path = MAKERS[name](tmp_path / name)
    before = decoded(path)
    for given in ({**settings, "prompt": "longer " * 2000}, settings):  # the second replaces the first
        assert write_text(path, given) == path
        assert json.loads(read_texts(path)["comment"]) == given
    assert decoded(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [name], "something is left over"


def test_what_else_is_in_a_file_stays(tmp_path: Path) -> None:
    path = mkv(tmp_path / "a.mkv")
    write_text(path, PLAIN)
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "kept"
        assert [s.metadata.get("filename") for s in container.streams] == [None, None, "first.png", "note.bin"]
        assert bytes(container.streams[3].data) == b"a note"
        assert next(bytes(p) for p in container.demux(container.streams[2])) == STILL
    for name in ("exif.jpg", "exif.webp"):
        path = MAKERS[name](tmp_path / name)
        write_text(path, WIDE)
        with Image.open(path) as image:
            assert image.getexif()[0x013B] == "somebody"
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "kept")
    info.add_itxt("wanlab", "ours")
    path = picture(tmp_path / "a.png", pnginfo=info)
    write_text(path, WIDE)
    with Image.open(path) as image:
        assert image.text["Title"] == "kept"
        assert json.loads(image.text["comment"]) == WIDE
    assert read_texts(path)["wanlab"] == "ours"


def test_other_readers_see_what_was_written(tmp_path: Path) -> None:
    """FFmpeg reads mp4 and mkv, Pillow the rest: the places are those of the formats."""
    for name in ("a.mp4", "a.mov", "a.mkv"):
        path = MAKERS[name](tmp_path / name)
        write_text(path, WIDE)
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
        assert json.loads(tags["comment"]) == WIDE
    assert json.loads(read_video(write_text(mp4(tmp_path / "b.mp4"), WIDE))[2]) == WIDE
    for name in ("a.jpg", "a.webp"):
        path = write_text(MAKERS[name](tmp_path / name), WIDE)
        with Image.open(path) as image:
            value = image.getexif().get_ifd(0x8769)[0x9286]
        assert value.startswith(b"UNICODE\0")
        assert path.read_bytes().count(b"\x92\x86\0\7") + path.read_bytes().count(b"\x86\x92\7\0") == 1, "type 7"
        assert json.loads(value[8:].decode("utf-16-le")) == WIDE


def test_other_writers_are_read(tmp_path: Path) -> None:
    text = json.dumps(WIDE, ensure_ascii=False)
    for kind, add in {
        "iTXt": lambda info: info.add_itxt("comment", text),
        "zipped iTXt": lambda info: info.add_itxt("comment", text, zip=True),
        "tEXt": lambda info: info.add_text("comment", json.dumps(PLAIN)),
        "zTXt": lambda info: info.add_text("comment", json.dumps(PLAIN), zip=True),
    }.items():
        info = PngImagePlugin.PngInfo()
        add(info)
        found = json.loads(read_texts(picture(tmp_path / "a.png", pnginfo=info))["comment"])
        assert found == (WIDE if "iTXt" in kind else PLAIN), kind
    for form in ("jpg", "webp"):
        for code, raw in {
            "ascii": b"ASCII\0\0\0" + json.dumps(PLAIN).encode(),
            "unicode": b"UNICODE\0" + text.encode("utf-16-le"),
            "big-endian": b"UNICODE\0" + json.dumps(PLAIN).encode("utf-16-be"),
            "bare": text.encode(),
        }.items():
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9286] = raw
            path = picture(tmp_path / f"a.{form}", exif=exif)
            assert json.loads(read_texts(path)["comment"]) in (PLAIN, WIDE), (form, code)
    path = picture(tmp_path / "b.jpg", comment=json.dumps(PLAIN).encode())
    assert json.loads(read_texts(path)["comment"]) == PLAIN
    with av.open(str(tmp_path / "d.mkv"), "w") as out:
        out.metadata["DESCRIPTION"] = text
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], format="rgb24")))
        out.mux(stream.encode())
    assert json.loads(read_texts(tmp_path / "d.mkv")["comment"]) == WIDE
    assert json.loads(read_texts(mp4(tmp_path / "c.mp4", comment=text))["comment"]) == WIDE
    assert read_texts(mov(tmp_path / "c.mov"))["comment"] == "QuickTime's own"


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_without_settings_has_none(tmp_path: Path, name: str) -> None:
    if name not in ("commented.mp4", "a.mov"):
        assert read_texts(MAKERS[name](tmp_path / name)) == {}


def texts_or_named(path: Path) -> dict[str, str]:
    """The texts, or nothing where an error of ours names the file."""
    try:
        return read_texts(path)
    except WanlabError as error:
        if str(path) not in error.problem:
            raise AssertionError("the error does not name the file") from error
        return {}


@pytest.mark.parametrize("name", MAKERS)
def test_truncated_files_are_named_or_read_no_text(tmp_path: Path, name: str) -> None:
    path = write_text(MAKERS[name](tmp_path / name), PLAIN)
    data = path.read_bytes()
    for size in {1, 3, 9, 13, 20, 40, 100, len(data) // 3, len(data) // 2, len(data) - 1} - set(range(len(data), 200)):
        path.write_bytes(data[:size])
        found = texts_or_named(path)  # what is read before the cut is whole
        assert found == {} or json.loads(found["comment"]) == PLAIN


@pytest.mark.parametrize("name", MAKERS)
def test_flipped_bytes_raise_nothing_else(tmp_path: Path, name: str) -> None:
    path = write_text(MAKERS[name](tmp_path / name), PLAIN)
    data, random = path.read_bytes(), np.random.default_rng(1)
    for _ in range(60 if path.suffix != ".mkv" else 20):
        broken = bytearray(data)
        for place in random.integers(0, min(len(data), 1500), 3):
            broken[place] = random.integers(256)
        path.write_bytes(broken)
        texts_or_named(path)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def test_bombs_are_refused(tmp_path: Path) -> None:
    bomb = zlib.compress(b"[" * (MAX_TEXT + 9))
    files = {
        "zipped.png": _png((b"zTXt", b"comment\0\0" + bomb), (b"IEND", b"")),
        "itxt.png": _png((b"iTXt", b"comment\0\1\0\0\0" + bomb), (b"IEND", b"")),
        "long.png": _png((b"tEXt", b"comment\0" + b"x" * (MAX_TEXT + 1)), (b"IEND", b"")),
        "box.mp4": _box(b"ftyp", b"isom") + struct.pack(">I", 2**31) + b"moov",
        "wide.mp4": _box(b"ftyp", b"isom") + struct.pack(">I", 1) + b"moov" + struct.pack(">Q", 2**62),
        "none.mp4": _box(b"ftyp", b"isom") + _box(b"mdat", bytes(64)),
        "loop.mp4": _box(b"ftyp", b"isom") + struct.pack(">I", 4) + b"free" + bytes(8),
        "size.webp": b"RIFF" + struct.pack("<I", 2**31) + b"WEBP",
        "text.mp4": b"just a text",
        "empty.png": b"",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(WanlabError, match=name):
            read_texts(path)


def test_what_does_not_fit_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    before = path.read_bytes()
    with pytest.raises(WanlabError, match="room"):
        write_text(path, {**PLAIN, "prompt": "x" * 70_000})
    with pytest.raises(WanlabError, match="At most"):
        write_text(path, {**PLAIN, "prompt": "x" * (MAX_TEXT + 1)})
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="JSON"):
        write_text(path, {"seed": float("nan")})
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(WanlabError, match=r"note\.txt"):
        write_text(tmp_path / "note.txt", PLAIN)
    with pytest.raises(WanlabError, match="Cannot read"):
        read_texts(tmp_path / "missing.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "note.txt"]


def test_fragments_are_read_and_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as out:
        out.metadata["comment"] = json.dumps(PLAIN)
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], format="rgb24")))
        out.mux(stream.encode())
    assert json.loads(read_texts(path)["comment"]) == PLAIN
    with pytest.raises(WanlabError, match="fragments"):
        write_text(path, WIDE)


def test_a_form_is_known_by_its_content(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    wrong = path.rename(tmp_path / "a.png")
    assert form_of(wrong) == "jpeg"
    assert json.loads(read_texts(write_text(wrong, PLAIN))["comment"]) == PLAIN
    buffer = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(buffer, "bmp")
    (tmp_path / "b.png").write_bytes(buffer.getvalue())
    assert form_of(tmp_path / "b.png") == "text"
