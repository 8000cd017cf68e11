"""The comment of a Matroska file, through PyAV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wanlab.compat.metadata._limits import checked, damaged
from wanlab.errors import WanlabError

_NAMES = ("comment", "description")


def recognises(start: bytes) -> bool:
    """Whether a file starts as Matroska or WebM."""
    return start.startswith(b"\x1a\x45\xdf\xa3")


def read(path: Path) -> dict[str, str]:
    """The tag `comment`, else `description`."""
    import av

    try:
        with _opened(path) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
    except (av.FFmpegError, OSError, ValueError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from None
    text = next((tags[name] for name in _NAMES if tags.get(name)), "")
    checked(path, len(text))
    return {"comment": text}


def _opened(path: Path) -> Any:
    import av

    # absolute: "a:b.mkv" is no protocol
    return av.open(os.path.abspath(path), format="matroska", metadata_errors="replace")


def write(path: Path, target: Path, text: str) -> None:
    """The same packets, tags and attachments with another comment."""
    import av

    try:
        with (
            _opened(path) as source,
            av.open(os.path.abspath(target), "w", format="matroska") as out,
        ):
            tags = {name: tag for name, tag in source.metadata.items() if name.lower() not in (*_NAMES, "encoder")}
            out.metadata.update({**tags, "comment": text})
            streams = {stream.index: _copied(path, out, stream) for stream in source.streams}
            for packet in source.demux([s for s in source.streams if s.type != "attachment"]):
                if packet.dts is None and packet.size == 0:  # the end of a stream
                    continue
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from None


def _copied(path: Path, out: Any, stream: Any) -> Any:
    if stream.type == "attachment":
        return out.add_attachment(stream.name, stream.mimetype, stream.data)
    if stream.type not in ("video", "audio", "subtitle"):
        raise WanlabError(f"{path} has a {stream.type} stream, which cannot be copied", remedy="Write a sidecar .json.")
    copied = out.add_stream_from_template(stream)
    copied.metadata.update(stream.metadata)
    return copied
