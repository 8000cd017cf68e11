"""Sound: exact as WAV and in a run folder, in time and in tune as AAC, the same bytes twice."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.test_result import make, names
from wanlab import audio, video
from wanlab.audio import Audio, read_audio, write_wav
from wanlab.errors import WanlabError
from wanlab.result import open_result

FRAMES = np.zeros((17, 16, 16, 3), np.uint8)


def sine(seconds: float = 1.0, rate: int = 48_000, channels: int = 2, hertz: float = 440.0) -> Audio:
    """A tone; the second channel an octave higher."""
    turns = hertz * np.arange(round(seconds * rate)) / rate
    samples = np.stack([0.8 * np.sin(2 * np.pi * turns), 0.4 * np.sin(4 * np.pi * turns)])
    return Audio(samples[:channels].astype(np.float32), rate)


def pitch(samples: np.ndarray, rate: int) -> float:
    """The loudest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * rate / len(samples)


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        ([[0.0]], 8000, "list"),
        (np.zeros((1, 4)), 8000, "float64"),
        (np.zeros(4, np.float32), 8000, "float32"),
        (np.zeros((3, 4), np.float32), 8000, "shape"),
        (np.zeros((2, 0), np.float32), 8000, "shape"),
        (np.full((1, 4), 1.01, np.float32), 8000, r"\[-1, 1\]"),
        (np.full((1, 4), np.nan, np.float32), 8000, r"\[-1, 1\]"),
        (np.zeros((1, 4), np.float32), 0, "rate"),
        (np.zeros((1, 4), np.float32), 44100.0, "rate"),
        (np.zeros((1, 4), np.float32), 400_000, "rate"),
    ],
)
def test_what_is_no_sound_is_refused(samples: object, rate: object, words: str) -> None:
    with pytest.raises(WanlabError, match=words):
        Audio(samples, rate)  # type: ignore[arg-type]


def test_a_wav_is_exact_and_the_same_twice(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for rate in (8000, 22_051, 192_000):
        for channels in (1, 2):
            samples = random.uniform(-1, 1, (channels, 5001)).astype(np.float32)
            samples[0, :3] = 1, -1, 1e-30
            path = write_wav(tmp_path / "a.wav", Audio(samples, rate))
            back = read_audio(path)
            assert back is not None
            assert back.rate == rate
            assert np.array_equal(back.samples, samples)
            assert write_wav(tmp_path / "b.wav", Audio(samples, rate)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"), [(48_000, 2, 1.0), (44_100, 1, 1.0), (16_000, 1, 3.3), (8000, 2, 0.7)]
)
def test_aac_keeps_time_and_tune(tmp_path: Path, rate: int, channels: int, seconds: float) -> None:
    """Also of sound that is shorter or longer than its 17 frames of 1/16 s."""
    sound = sine(seconds, rate, channels)
    path = video.write_video(tmp_path / "a.mp4", FRAMES, 16, audio=sound)
    back = read_audio(path)
    assert back is not None
    assert (back.rate, back.samples.shape) == (rate, sound.samples.shape)
    for channel in range(channels):
        assert pitch(back.samples[channel], rate) == pytest.approx(440 * (channel + 1), abs=1 / seconds)
    middle = slice(rate // 4, -rate // 4)
    assert np.abs(back.samples - sound.samples)[:, middle].max() < 0.05, "not shifted"
    frames, fps, _ = video.read_video(path)
    assert (frames.shape, fps) == (FRAMES.shape, 16)


def test_a_rate_that_aac_lacks_becomes_the_next(tmp_path: Path) -> None:
    for given, found in ((22_051, 24_000), (4000, 8000), (192_000, 96_000)):
        back = read_audio(video.write_video(tmp_path / "a.mp4", FRAMES, 16, audio=sine(0.5, given)))
        assert back is not None
        assert back.rate == found
        assert back.seconds == pytest.approx(0.5, abs=0.01)
        assert pitch(back.samples[0], found) == pytest.approx(440, abs=4)


def test_sound_and_pictures_alternate(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "a.mp4", np.zeros((64, 16, 16, 3), np.uint8), 16, audio=sine(4.0))
    with av.open(str(path)) as container:
        order = "".join(packet.stream.type[0] for packet in container.demux() if packet.size)
    assert set(order) == {"a", "v"}
    assert max(map(len, order.split("v"))) < 64, "a player need not read far ahead"


def test_bytes_do_not_depend_on_memory_never_written(tmp_path: Path) -> None:
    code = "import sys, numpy; from wanlab.video import write_video; from wanlab.audio import Audio\n"
    code += "sound = Audio(numpy.load('s.npy'), 22051); frames = numpy.zeros((5, 16, 16, 3), numpy.uint8)\n"
    code += "sys.stdout.buffer.write(write_video(sys.argv[1], frames, 16, audio=sound).read_bytes())"
    np.save(tmp_path / "s.npy", sine(0.5, 22_051).samples)
    here, written = str(Path(video.__file__).parents[1]), set()
    for fill in ("0", "85", "255"):
        environment = os.environ | {"MALLOC_PERTURB_": fill, "PYTHONPATH": here}
        command = [sys.executable, "-c", code, f"{fill}.mp4"]
        written.add(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True).stdout)
    assert len(written) == 1


def test_a_silent_clip_has_no_sound_stream(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "a.mp4", FRAMES, 16)
    assert read_audio(path) is None
    assert path.read_bytes() == video.write_video(tmp_path / "b.mp4", FRAMES, 16, audio=None).read_bytes()
    for content in (b"", b"<html>", write_wav(tmp_path / "a.wav", sine(0.1)).read_bytes()[:20]):
        (tmp_path / "broken.wav").write_bytes(content)
        with pytest.raises(WanlabError, match=r"broken\.wav"):
            read_audio(tmp_path / "broken.wav")
    with pytest.raises(WanlabError, match=r"absent\.wav"):
        read_audio(tmp_path / "absent.wav")


def test_more_than_two_channels_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="5.1")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 6 * 80), np.int16), format="s16", layout="5.1")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(WanlabError, match="6 channels"):
        audio.read_audio(tmp_path / "a.wav")


def test_a_result_keeps_its_sound(tmp_path: Path) -> None:
    """Exactly in the folder, as AAC in a bare mp4; not at all in a picture."""
    sound = sine(0.4)
    clip = replace(make(), audio=sound)
    folder = clip.save(tmp_path / "run")
    assert names(folder) == ["audio.wav", "latents.safetensors", "run.json", "video.mp4"]
    opened = open_result(folder)
    assert opened.audio is not None
    assert opened.audio.rate == sound.rate
    assert np.array_equal(opened.audio.samples, sound.samples)
    bare = open_result(clip.save(tmp_path / "x.mp4"))
    assert bare.audio is not None
    assert bare.audio.seconds == pytest.approx(0.4, abs=0.001)
    still = replace(make(num_frames=1), audio=sound)
    with pytest.raises(WanlabError, match="has sound"):
        still.save(tmp_path / "x.png")
    assert open_result(still.save(tmp_path / "still")).frames.shape == (1, 16, 16, 3)
    assert make().save(tmp_path / "run") == folder
    assert names(folder) == ["latents.safetensors", "run.json", "video.mp4"]
    assert open_result(folder).audio is None


def test_a_player_with_sound_waits_for_a_click() -> None:
    page = replace(make(), audio=sine(0.4)).show().page
    tag = page[page.index("<video") : page.index("src=")]
    assert "controls" in tag
    assert "muted" not in tag
    assert "autoplay" not in tag
    assert "sound of 0.4 s" in page
    silent = make().show().page
    assert "autoplay muted" in silent[: silent.index("src=")]
