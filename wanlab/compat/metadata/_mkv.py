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
        pictures = _pictures(path)
        with _opened(path) as source, av.open(os.path.abspath(target), "w", format="matroska") as out:
            tags = {name: tag for name, tag in source.metadata.items() if name.lower() not in (*_NAMES, "encoder")}
            out.metadata.update({**tags, "comment": text})
            copies = {}
            for stream in source.streams:
                if stream.index in pictures:
                    _attach(out, stream, pictures[stream.index])
                elif stream.type == "attachment":
                    _attach(out, stream, bytes(stream.data))
                else:
                    copies[stream.index] = _copied(path, out, stream)
            for packet in source.demux([s for s in source.streams if s.index in copies]):
                if packet.size:  # an empty one says that a stream ends
                    packet.stream = copies[packet.stream.index]
                    out.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from None


def _pictures(path: Path) -> dict[int, bytes]:
    """Attached pictures by stream: FFmpeg shows them as videos of one frame, and WanGP attaches what a video is of."""
    from av.stream import Disposition

    with _opened(path) as source:
        streams = [s for s in source.streams if s.type == "video" and s.disposition & Disposition.attached_pic]
        found: dict[int, bytes] = {}
        for packet in source.demux(streams) if streams else ():
            if packet.size:
                found.setdefault(packet.stream.index, bytes(packet))
            if len(found) == len(streams):
                break
        return found


def _attach(out: Any, stream: Any, data: bytes) -> None:
    tags = stream.metadata
    out.add_attachment(tags.get("filename", "attachment"), tags.get("mimetype", "application/octet-stream"), data)


def _copied(path: Path, out: Any, stream: Any) -> Any:
    if stream.type not in ("video", "audio", "subtitle"):
        raise WanlabError(f"{path} has a {stream.type} stream, which cannot be copied", remedy="Write a sidecar .json.")
    copy = out.add_stream_from_template(stream)
    copy.metadata.update(stream.metadata)
    return copy
