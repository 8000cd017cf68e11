"""What an executed notebook keeps of its outputs: all that a reader wants, and never more than 5 MB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wanlab.files import writing

CELL_TEXT = 200_000  # characters of one stream of one cell, half from its start and half from its end
MOST_PRINTED = 32 << 20  # characters that all cells of a point may print
MOST_BYTES = 5_000_000  # of an executed notebook
_TARGET = 4_800_000  # bytes it is shrunk to: banners and metadata come on top
MOST_OUTPUTS = 1000  # of a cell
_DISPLAYS = 16 << 20  # bytes of displays that are held until the end, where the largest are left out
_LOG_HEAD, _LOG_TAIL = 2_000_000, 100_000  # characters
_LINE = 20_000  # characters of a line of a traceback


class Text:
    """A stream that is kept up to `most` characters: its start, a note of how much is left out, and its end."""

    def __init__(self, most: int = CELL_TEXT) -> None:
        self._half = most // 2
        self._head, self._tail = "", ""
        self._cut = 0

    def add(self, text: str) -> int:
        """Append; returns by how many characters the stream grew, as a line that "\\r" rewrites does not grow."""
        before = len(self._head) + len(self._tail)
        if self._cut or self._tail:
            self._tail = _rewritten(self._tail, text)
        else:
            self._head = _rewritten(self._head, text)
            self._head, self._tail = self._head[: self._half], self._head[self._half :]
        grown = len(self._head) + len(self._tail) - before
        if len(self._tail) > self._half:
            self._cut += len(self._tail) - self._half
            self._tail = self._tail[-self._half :]
        return max(0, grown)

    def __str__(self) -> str:
        note = f"\n[... {self._cut:,} characters left out ...]\n" if self._cut else ""
        return f"{self._head}{note}{self._tail}"


def _rewritten(text: str, more: str) -> str:
    """`text` and `more`, in which a carriage return starts the last line anew."""
    if "\r" not in more and not text.endswith("\r"):
        return text + more
    start = text.rfind("\n") + 1
    return text[:start] + _shown(text[start:] + more)


def _shown(text: str) -> str:
    """What a terminal shows of lines that carriage returns start anew."""
    lines = []
    for line in text.split("\n"):
        whole = line.rstrip("\r")
        lines.append(whole.rpartition("\r")[2] + line[len(whole) :])
    return "\n".join(lines)


class Log:
    """`log.txt`: what a point prints, as it is printed; its start and its end where that is long."""

    def __init__(self, path: Path) -> None:
        mode = "ab" if path.is_file() and path.stat().st_size < _LOG_HEAD else "wb"
        self._path = path
        with writing(path):
            self._file = open(path, mode, buffering=0)  # noqa: SIM115 - closed by `close`
        self._left = _LOG_HEAD
        self._late = Text(_LOG_TAIL)

    def fileno(self) -> int:
        """For what the kernel writes before it listens and while it dies."""
        return self._file.fileno()

    def size(self) -> int:
        """Bytes in the file."""
        return self._file.seek(0, 2)

    def write(self, text: str) -> None:
        """Append to the file, or once 2 MB are there to the end that `close` writes."""
        now, later = text[: self._left], text[self._left :]
        self._left -= len(now)
        if now:
            with writing(self._path):
                self._file.write(now.encode(errors="backslashreplace"))
        if later:
            self._late.add(later)

    def close(self) -> None:
        """Write the end and close the file."""
        try:
            if late := str(self._late):
                self._file.write(f"\n[... the end of what was printed ...]\n{late}".encode(errors="backslashreplace"))
        finally:
            self._file.close()


class Outputs:
    """The outputs of a running notebook, held to their limits as they arrive."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.printed = 0
        self.line = ""
        """The last line that was printed."""
        self._texts: dict[str, Text] = {}
        self._displays = 0

    def begin_cell(self) -> None:
        """A cell starts, or forgets what it has shown."""
        self._texts = {}

    def take(self, out: Any, outs: list[Any]) -> Any | None:
        """What is to be appended to a cell's outputs for `out`; None if an earlier one has it now or 1000 are there."""
        if out.output_type == "stream":
            return self._stream(out, outs)
        if len(outs) >= MOST_OUTPUTS and out.output_type != "error":
            return None
        if out.output_type == "error":
            out.evalue = _short(out.evalue, _LINE)
            out.traceback = [_short(line, _LINE) for line in out.traceback[-100:]]
            return out
        if out.data.get("text/plain"):
            out.data["text/plain"] = _short(out.data["text/plain"], CELL_TEXT)
        size = weight(out)
        if self._displays + size > _DISPLAYS:
            leave_out(out, "the notebook would be too large")
        self._displays += weight(out)
        return out

    def _stream(self, out: Any, outs: list[Any]) -> Any | None:
        new = out.name not in self._texts
        text = self._texts.setdefault(out.name, Text())
        self.printed += text.add(out.text)
        self.log.write(out.text)
        lines = _shown(out.text[-_LINE:]).split("\n")
        self.line = next((line for line in map(str.strip, reversed(lines)) if line), self.line)[:200]
        if new:
            out.text = str(text)
            return out
        for earlier in outs:
            if earlier.output_type == "stream" and earlier.name == out.name:
                earlier.text = str(text)
        return None


def _short(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most:,} characters left out ...]\n{text[-(most // 2) :]}"


def weight(out: Any) -> int:
    """Bytes of an output in the file."""
    return len(json.dumps(out))


def leave_out(out: Any, why: str) -> None:
    """Replace what a display shows by a line that says what it was."""
    kinds = ", ".join(f"{kind} of {len(json.dumps(data)):,} bytes" for kind, data in out.data.items())
    text = out.data.get("text/plain", "")
    note = f"[left out, as {why}: {kinds}]"
    out.data = {"text/plain": f"{text}\n{note}" if 0 < len(text) < 2000 else note}
    out.metadata = {}


def shrink(node: Any, files: list[str]) -> bytes:
    """An executed notebook as a file below 5 MB: the largest displays are left out, then text is cut.

    files: what lies beside it, named where something is left out.
    """
    import nbformat

    text = nbformat.v4.writes(node)
    if len(text.encode()) <= _TARGET:
        return text.encode()
    outs = [out for cell in node.cells for out in cell.get("outputs", [])]
    why = "a notebook keeps 5 MB" + (f"; see {', '.join(files[:8])}" if files else "")
    excess = len(text.encode()) - _TARGET
    for out in sorted(outs, key=weight, reverse=True):
        if excess <= 0:
            break
        before = weight(out)
        if out.output_type == "stream":
            out.text = _short(out.text, 4000)
        elif out.output_type == "error":
            out.traceback = [_short(line, 1000) for line in out.traceback[-10:]]
        else:
            leave_out(out, why)
        excess -= before - weight(out)
    data: bytes = nbformat.v4.writes(node).encode()
    if len(data) >= MOST_BYTES:  # thousands of small outputs
        for cell in node.cells:
            if cell.get("outputs"):
                note = nbformat.v4.new_output("stream", text=f"[{len(cell.outputs)} outputs left out, as {why}]\n")
                cell.outputs = [out for out in cell.outputs if out.output_type == "error"][:1] or [note]
        data = nbformat.v4.writes(node).encode()
    assert len(data) < MOST_BYTES, "the source is checked to be below 4 MB"
    return data
