"""One file from a server to the disk: resumed where it stopped, checked, and under its name only when it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from wanlab.errors import WanlabError
from wanlab.files import read_json, sync_folder, writing
from wanlab.weights._header import read_header

_PIECE = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_BROKEN = (OSError, http.client.HTTPException)  # of a connection; URLError and timeouts are OSErrors


@dataclass(frozen=True)
class Transfer:
    """How far a download is: the file, its bytes so far and in all (None: the server does not say), seconds."""

    stage: str
    done: int
    total: int | None
    seconds: float

    @property
    def fraction(self) -> float:
        """0..1; 0 where the size is unknown."""
        return self.done / self.total if self.total else 0.0

    def __str__(self) -> str:
        total = f" of {self.total / 1e6:,.1f}" if self.total else ""
        return f"{self.stage}: {self.done / 1e6:,.1f}{total} MB, {self.seconds:.0f} s"


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what is known of it. A hub's server tells size and hash itself."""

    url: str
    target: Path
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent to the address's own host, and to no other that it redirects to."""

    @property
    def part(self) -> Path:
        """The unfinished file; `<part>.json` beside it says of which version of the remote file it is."""
        return self.target.with_name(f"{self.target.name}.part")


def fetch(remote: Remote, progress: Callable[[Transfer], None], check: Callable[[], None]) -> Path:
    """Bring `remote` to its target; a part that an earlier call left is continued.

    A connection that breaks is tried again as long as each try brings bytes. `check` is called for each piece and may
    raise to stop; the part stays. Raises WanlabError for addresses that are not https, refusals, another size or hash
    than is known (the part is removed), a full disk, and a file that another process is fetching.
    """
    _check_address(remote.url)
    with writing(remote.target):
        remote.target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(remote):
        while True:
            before = _size(remote.part)
            try:
                digest = _Attempt(remote, progress, check).run()
                break
            except _BROKEN as error:
                if isinstance(error, WanlabError) or _size(remote.part) <= before:
                    raise _interrupted(remote, error) from error
        _finish(remote, *digest)
    return remote.target


class _Attempt:
    """One connection: from the bytes that are there to the end, or until it breaks."""

    def __init__(self, remote: Remote, progress: Callable[[Transfer], None], check: Callable[[], None]) -> None:
        self._remote, self._progress, self._check = remote, progress, check
        self._start = time.monotonic()

    def run(self) -> tuple[str, str | None]:
        """(SHA-256 of the whole part, the one that the server names or None)."""
        remote = self._remote
        have, etag = self._resumable()
        response, linked = _open(remote, have, etag)
        with response:
            if response.status != 206 or _range_start(response) != have:
                have = 0
            total = _total(response, have)
            self._check_size(total, linked)
            self._check_room(total, have)
            _write_note(remote, response.headers.get("ETag"))
            digest = self._receive(response, have, total)
        return digest, linked.get("sha256")

    def _resumable(self) -> tuple[int, str | None]:
        """Bytes that are worth keeping, and the version they are of. Without a version or a hash, none are."""
        have = _size(self._remote.part)
        note = _read_note(self._remote)
        etag = note.get("etag") if note.get("url") == self._remote.url else None
        return (have, etag) if etag or (have and self._remote.sha256) else (0, None)

    def _check_size(self, total: int | None, linked: Mapping[str, str]) -> None:
        for known in (self._remote.size, int(linked["size"]) if "size" in linked else None):
            if known is not None and total is not None and known != total:
                raise WanlabError(
                    f"{self._remote.url} has {total:,} bytes, and {known:,} are expected",
                    remedy="The file was replaced: update the definition",
                )

    def _check_room(self, total: int | None, have: int) -> None:
        free = shutil.disk_usage(self._remote.target.parent).free
        if total is not None and total - have > free:
            raise WanlabError(
                f"The disk of {self._remote.target.parent} has {free / 1e9:.1f} GB free, and "
                f"{(total - have) / 1e9:.1f} GB are to come",
                remedy="Free some space, or put a folder on another disk first among the checkpoint paths",
            )

    def _receive(self, response: Any, have: int, total: int | None) -> str:
        remote = self._remote
        with writing_part(remote), open(remote.part, "r+b" if have else "wb") as file:
            digest, done = _hash_of(file, have), have
            file.truncate(have)
            while piece := response.read(_PIECE):
                self._check()
                file.write(piece)
                digest.update(piece)
                done += len(piece)
                self._progress(Transfer(remote.target.name, done, total, time.monotonic() - self._start))
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done < total:
            raise http.client.IncompleteRead(b"", total - done)
        return digest.hexdigest()


def _hash_of(file: BinaryIO, size: int) -> Any:
    """The hash of the first `size` bytes, and the file's place after them."""
    digest, left = hashlib.sha256(), size
    while left and (piece := file.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)
    return digest


@contextlib.contextmanager
def writing_part(remote: Remote) -> Iterator[None]:
    """Say what the disk refuses; the part stays for another try. The connection's own faults pass."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, (ConnectionError, TimeoutError)) and error.errno is not None:
            with writing(remote.part):
                raise
        raise


def _finish(remote: Remote, digest: str, told: str | None) -> None:
    """Check the part and give it its name."""
    size = _size(remote.part)
    problem = ""
    if remote.size is not None and size != remote.size:
        problem = f"has {size:,} bytes, not {remote.size:,}"
    for known in (remote.sha256, told):
        if known and digest != known.lower():
            problem = f"has the SHA-256 {digest}, not {known}"
    if not problem and remote.target.suffix in (".safetensors", ".gguf"):
        try:
            read_header(remote.part)
        except WanlabError as error:
            problem = error.problem.partition(".part ")[2] or error.problem
    if problem:
        remote.part.unlink(missing_ok=True)
        _note(remote).unlink(missing_ok=True)
        raise WanlabError(f"What {remote.url} sent {problem}; it is removed", remedy="Download it again")
    os.replace(remote.part, remote.target)
    _note(remote).unlink(missing_ok=True)
    sync_folder(remote.target.parent)


def _open(remote: Remote, have: int, etag: str | None) -> tuple[Any, dict[str, str]]:
    """The response, and what the hub's own server said of the file on the way to it."""
    request = urllib.request.Request(remote.url, headers=dict(remote.headers))
    if have:
        request.add_header("Range", f"bytes={have}-")
        if etag:
            request.add_header("If-Range", etag)
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # no bytes after these: the part is whole, or of another version
            remote.part.unlink(missing_ok=True)
            _note(remote).unlink(missing_ok=True)
            return _open(remote, 0, None)
        if error.code in (301, 302, 303, 307, 308):  # urllib itself refuses what is no web address
            raise WanlabError(f"{remote.url} leads to what is not https", remedy="Check the source") from error
        remedy = "Sign in to the hub and accept the model's terms" if error.code in (401, 403) else "Check the source"
        raise WanlabError(f"{remote.url} is refused: {error.code} {error.reason}", remedy=remedy) from error
    return response, redirects.told | _linked(response.headers)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows https only, keeps what the hub says of the file, and leaves headers for its host behind."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl, of=req.full_url)
        self.told |= _linked(headers)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and request.host != req.host:
            for name in ("Authorization", "Cookie"):
                request.remove_header(name)
        return request


def _linked(headers: Any) -> dict[str, str]:
    """Size and SHA-256 of a large file, in the headers of the hub's first answer."""
    told = {}
    if (size := headers.get("X-Linked-Size", "")).isdigit():
        told["size"] = size
    tag = headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
    if len(tag) == 64 and all(c in "0123456789abcdef" for c in tag):
        told["sha256"] = tag
    return told


def _check_address(url: str, of: str = "") -> None:
    parts = urllib.parse.urlsplit(url)
    is_test = parts.scheme == "http" and parts.hostname in _LOOPBACK  # a server of this machine, asked for by itself
    if parts.scheme == "https" or (is_test and (not of or urllib.parse.urlsplit(of).hostname in _LOOPBACK)):
        return
    came = f" (where {of} leads)" if of else ""
    raise WanlabError(f"The address {url}{came} is not https", remedy="Give an https address")


def _range_start(response: Any) -> int:
    """First byte of a partial answer, -1 if it does not say."""
    text = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(text) if text.isdigit() else -1


def _total(response: Any, have: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _note(remote: Remote) -> Path:
    return remote.part.with_name(f"{remote.part.name}.json")


def _read_note(remote: Remote) -> dict[str, Any]:
    try:
        note = read_json(_note(remote), 1 << 16)
    except WanlabError:
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(remote: Remote, etag: str | None) -> None:
    """Before the first byte: a part without a note is started over."""
    strong = etag if etag and not etag.startswith("W/") else None
    with writing(_note(remote)):
        _note(remote).write_text(json.dumps({"url": remote.url, "etag": strong}))


def _interrupted(remote: Remote, error: BaseException) -> WanlabError:
    if isinstance(error, WanlabError):
        return error
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    kept = f"; {_size(remote.part):,} bytes are kept in {remote.part}" if _size(remote.part) else ""
    return WanlabError(
        f"The download of {remote.url} broke off ({reason}){kept}",
        remedy=f"Try again, which continues, or put the file at {remote.target} yourself",
    )


@contextlib.contextmanager
def _alone(remote: Remote) -> Iterator[None]:
    """Hold the part for this process, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = remote.part.with_name(f"{remote.part.name}.lock")
    with writing(lock), open(lock, "wb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WanlabError(
                f"Another process is downloading {remote.target}", remedy="Wait for it, or stop it"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
