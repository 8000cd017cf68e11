"""Sound of a clip: samples with their rate, kept exactly as WAV, as AAC inside an mp4."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError

_LAYOUTS = {1: "mono", 2: "stereo"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_MAX_RATE = 384_000
_BLOCK = 1024  # samples that AAC encodes at once


@dataclass(frozen=True, eq=False)
class Audio:
    """Sound: `samples` (channels, N) float32 in [-1, 1], one channel or two; `rate` in samples a second.

    Raises WanlabError for other shapes and types, and for samples that are not finite or beyond [-1, 1].
    """

    samples: NDArray[np.float32]
    rate: int

    def __post_init__(self) -> None:
        samples, rate = self.samples, self.rate
        if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 2:
            have = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else type(samples).__name__
            raise WanlabError(f"Audio samples are {have}", remedy="Give a float32 array of shape (channels, N)")
        if len(samples) not in _LAYOUTS or samples.shape[1] == 0:
            raise WanlabError(f"Audio samples have shape {samples.shape}", remedy="Give (1, N) or (2, N), N at least 1")
        if isinstance(rate, bool) or not isinstance(rate, int) or not 0 < rate <= _MAX_RATE:
            raise WanlabError(f"Audio rate = {rate!r}", remedy=f"Give samples a second, from 1 to {_MAX_RATE}")
        if not bool(np.abs(samples).max() <= 1):
            raise WanlabError("Audio samples are not all in [-1, 1]", remedy="Clip or scale them: loud parts distort")

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return self.samples.shape[1] / self.rate

    def __repr__(self) -> str:
        return f"Audio({self.seconds:.2f} s, {_LAYOUTS[len(self.samples)]}, {self.rate} Hz)"


def write_wav(path: Path, audio: Audio) -> Path:
    """Write 32-bit float WAV, which keeps every sample exactly; equal samples give equal bytes."""
    import av

    layout = _LAYOUTS[len(audio.samples)]
    with av.open(os.path.abspath(path), "w", format="wav", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("pcm_f32le", rate=audio.rate, layout=layout)
        container.mux(stream.encode(_frame(audio.samples, audio.rate)))
        container.mux(stream.encode())
    return path


def read_audio(path: Path) -> Audio | None:
    """The first sound stream of a file; None if there is none. Exact for WAV of 32-bit float.

    Raises WanlabError for a file that cannot be read and for more than two channels.
    """
    import av

    try:
        with av.open(os.path.abspath(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            if stream.channels not in _LAYOUTS:
                raise WanlabError(f"The sound of {path} has {stream.channels} channels", choices=_LAYOUTS)
            to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            pieces = [f.to_ndarray() for frame in container.decode(stream) for f in to_float.resample(frame)]
            pieces += [f.to_ndarray() for f in to_float.resample(None)]
            rate, length = int(stream.rate), _length(stream)
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WanlabError(f"The sound of {path} cannot be read: {reason}", remedy="Give a complete file") from None
    if not pieces:
        raise WanlabError(f"The sound of {path} cannot be read: it is empty", remedy="Give a complete file")
    # AAC comes in blocks of 1024 samples, the last one filled up, and overshoots by a little.
    return Audio(np.concatenate(pieces, axis=1)[:, :length].clip(-1, 1), rate)


def _length(stream: Any) -> int | None:
    """Samples that a stream says it has; None if it does not say."""
    return None if stream.duration is None else round(stream.duration * stream.time_base * stream.rate)


class AacTrack:
    """The sound stream of an mp4 that is being written; `mux` is called with each picture, so that both alternate.

    A rate that AAC does not know becomes the next one that it does.
    """

    def __init__(self, container: Any, audio: Audio) -> None:
        import av

        rate = next((known for known in _AAC_RATES if known >= audio.rate), _AAC_RATES[-1])
        layout = _LAYOUTS[len(audio.samples)]
        self._container, self._audio, self._done = container, audio, 0
        self._stream = container.add_stream("aac", rate=rate, layout=layout, options={"flags": "+bitexact"})
        self._stream.bit_rate = min(96_000, 4 * rate) * len(audio.samples)  # a low rate cannot hold more
        self._blocks = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=_BLOCK)

    def mux(self, seconds: float) -> None:
        """Write the sound up to this time."""
        samples = self._audio.samples
        stop = min(int(seconds * self._audio.rate), samples.shape[1])
        if stop > self._done:
            piece = np.ascontiguousarray(samples[:, self._done : stop])
            self._write(_frame(piece, self._audio.rate, self._done))
            self._done = stop

    def finish(self) -> None:
        """Write the rest."""
        self.mux(self._audio.seconds + 1)
        self._write(None)
        self._container.mux(self._stream.encode())

    def _write(self, frame: Any) -> None:
        for block in self._blocks.resample(frame):
            self._container.mux(self._stream.encode(block))


def _frame(samples: NDArray[np.float32], rate: int, start: int = 0) -> Any:
    import av

    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=_LAYOUTS[len(samples)])
    frame.rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start
    return frame
