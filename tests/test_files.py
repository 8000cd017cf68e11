"""Files: whole or absent, names that stay inside, strict JSON, and the gate that weights pass."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.files import (
    atomic_write,
    read_json,
    resource,
    safe_path,
    sha256_file,
    writing,
)

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Writing


def test_atomic_write_replaces_whole_files_and_makes_folders(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "x.txt"
    assert atomic_write(file, "é\n") == file
    assert file.read_bytes() == "é\n".encode()
    atomic_write(str(file), b"\x00\x01")
    assert file.read_bytes() == b"\x00\x01"
    assert names(file.parent) == ["x.txt"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    file = atomic_write(tmp_path / "x.json", "old")

    def full(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WanlabError, match=r"Disk full while writing .*x\.json.*Free some space"):
        atomic_write(file, "new")
    assert names(tmp_path) == ["x.json"]
    assert file.read_text() == "old"


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from wanlab.files import atomic_write
from wanlab.errors import WanlabError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write({folder!r} + "/x.json", b"n" * 5000)
except WanlabError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE is POSIX")
def test_a_real_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x.json", "old")
    code = LIMITED.format(root=str(ROOT), folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Disk full") == 1
    assert names(tmp_path) == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "old"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupt_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def interrupt(*_args: Any) -> None:
        raise stop

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(stop):
        atomic_write(tmp_path / "x", "new")
    assert names(tmp_path) == []


WRITE_FOREVER = """
import sys
sys.path.insert(0, {root!r})
from wanlab.files import atomic_write
for n in range(10**9):
    atomic_write({file!r}, bytes([n % 256]) * 300_000)
    if n == 0: print("started", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    code = WRITE_FOREVER.format(root=str(ROOT), file=str(file))
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "started"
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        data = file.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    assert all(name == "x.bin" or name.startswith(files.PART) for name in names(tmp_path))


def test_other_failures_to_write_are_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for wrong in (tmp_path / "folder", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(WanlabError, match="Cannot write"):
            atomic_write(wrong, "x")
    with pytest.raises(WanlabError, match="Permission denied"), writing("x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert names(tmp_path) == ["file", "folder"]


# Names


@pytest.mark.parametrize("name", ["a.mp4", "clips/a b.mp4", "é/🪁.png", "a..b", "%2e%2e/x", ".hidden", "a" * 200])
def test_plain_names_are_accepted(tmp_path: Path, name: str) -> None:
    assert safe_path(tmp_path, name) == tmp_path.resolve() / name


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "..", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/", "....//x", "a\\b", "..\\x",
        "C:\\x", "C:x", "a\0b", "a\nb", "\u202eevil", "con", "NUL.txt", "a/com1", "lpt9.x.y", "x.", "x ", " x", "~/x",
        "~root", "a" * 201, "é" * 101, "\ud800", "a?b", "a*b", 'a"b', "a|b", "<a>",
    ],
)  # fmt: skip
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WanlabError, match="is refused"):
        safe_path(tmp_path, name)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "inside")
    with pytest.raises(WanlabError, match="through a link"):
        safe_path(root, "out/x")
    assert safe_path(root, "in/x")


PIECES = st.sampled_from(
    ["..", "....", ".", "/", "//", "\\", "~", "%2e", "\0", "a", "\u2024", "．．", "C:", " ", "nul", "é"]
)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=12))
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    try:
        found = safe_path(tmp_path, name)
    except WanlabError:
        return
    assert found.resolve().is_relative_to(tmp_path.resolve())
    assert found != tmp_path.resolve()


# JSON


def test_json_is_read_from_files_and_text(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('\ufeff{"a": [1, 2.5, null, "é"]}', encoding="utf-8")
    assert (
        read_json(file)
        == read_json(str(file))
        == read_json(' {"a": [1, 2.5, null, "é"]}')
        == {"a": [1, 2.5, None, "é"]}
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"b": {"a": 1, "a": 1}}', "given twice"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested deeper than 64"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested deeper than 64"),
        ('{"a": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"\\ud800": 1}', "lone surrogate"),
        ('{"a": "\ud800"}', "not valid JSON"),
        ('{"a": 1} x', "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ("[" + "1," * 3_000_000 + "1]", "larger than"),
    ],
    ids=lambda v: v[:12],
)
def test_traps_of_json_are_refused(text: str, words: str) -> None:
    with pytest.raises(WanlabError, match=words) as caught:
        read_json(text)
    assert len(str(caught.value)) < 1000


def test_unreadable_json_files_are_named(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none.json", tmp_path, "a\0b", "/no/such"):
        with pytest.raises(WanlabError, match="Cannot read"):
            read_json(wrong)
    (tmp_path / "x").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(WanlabError, match="not valid JSON"):
        read_json(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"")
    with pytest.raises(WanlabError, match="not valid JSON"):
        read_json(tmp_path / "y")
    with pytest.raises(WanlabError, match="larger than 3 bytes"):
        read_json('{"a": 1}', max_bytes=3)


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 400), junk=st.binary(max_size=4))
def test_damaged_definitions_give_only_our_error(cut: int, junk: bytes) -> None:
    whole = (Path(__file__).parent / "golden" / "spec_v1.json").read_bytes()[:400]
    text = (whole[:cut] + junk + whole[cut:]).decode(errors="surrogateescape")
    with contextlib.suppress(WanlabError):
        read_json("{" + text)


# Resources


def test_hashes_and_resources(tmp_path: Path) -> None:
    file = atomic_write(tmp_path / "x", b"abc")
    assert sha256_file(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert resource("defaults").is_dir()
    assert resource("notebooks").is_dir()
    with pytest.raises(WanlabError, match=r"comes without defaults/none\.json"):
        resource("defaults", "none.json")


def test_an_installed_package_does_not_look_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "wanlab"
    (package / "_data" / "defaults").mkdir(parents=True)
    (tmp_path / "site-packages" / "notebooks").mkdir()
    monkeypatch.setattr("wanlab.files._paths._PACKAGE", package)
    assert resource("defaults") == package / "_data" / "defaults"
    with pytest.raises(WanlabError, match="comes without notebooks"):
        resource("notebooks")
