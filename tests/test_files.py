"""Files: whole or absent, names that stay inside, strict JSON, and the gate that weights pass."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.files import (
    atomic_folder,
    atomic_write,
    header_gate,
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
    with pytest.raises(WanlabError, match="Disk full"), atomic_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path) == ["x.json"]
    assert file.read_text() == "old"


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from wanlab.files import atomic_write, atomic_folder
from wanlab.errors import WanlabError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda: atomic_write({folder!r} + "/x.json", b"n" * 5000), ):
    try:
        write()
    except WanlabError as error:
        print(error)
try:
    with atomic_folder({folder!r} + "/run") as inside:
        (inside / "a").write_bytes(b"n" * 5000)
except WanlabError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE is POSIX")
def test_a_real_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x.json", "old")
    code = LIMITED.format(root=str(ROOT), folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Disk full") == 2
    assert names(tmp_path) == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "old"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupt_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def fail_half_way() -> None:
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "a").write_text("half")
            raise stop

    pytest.raises(stop, fail_half_way)
    assert names(tmp_path) == []

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


def test_atomic_folder_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "a"
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("x")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "deep" / "x").read_text() == "x"
    assert names(target.parent) == ["a"]
    with pytest.raises(WanlabError, match="exists already"), atomic_folder(target):
        pytest.fail("must not start")


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


# The gate


def safetensors_bytes(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int, end: int, dtype: str = "F32", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}


def lots(count: int) -> bytes:
    inside = ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    return safetensors_bytes(b"{" + inside.encode() + b"}")


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"\x08\0\0", "not a safetensors file"),
    "only a length": (struct.pack("<Q", 0), "not a safetensors file"),
    "html": (b"<!DOCTYPE html><html><head><title>401</title>", "HTML page"),
    "html after spaces": (b"\n\n  <html lang='en'>" + b"x" * 200, "HTML page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "HTML page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git-lfs pointer"),
    "json error": (b'{"error": "Repository not found"}' + b" " * 100, "JSON text"),
    "pickle": (pickle.dumps({"weight": [0.0] * 20}), "is a pickle"),
    "old pickle": (pickle.dumps({"weight": [0.0] * 20}, protocol=2), "is a pickle"),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08" + b"\0" * 64, "zip archive"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + b"\0" * 64, "GGUF"),
    "zeros": (b"\0" * 64, "not a safetensors file"),
    "truncated header": (safetensors_bytes(GOOD, b"\0" * 16)[:40], "truncated"),
    "truncated data": (safetensors_bytes(GOOD, b"\0" * 15), "truncated: 15 of 16"),
    "no data": (safetensors_bytes(GOOD), "truncated: 0 of 16"),
    "trailing bytes": (safetensors_bytes(GOOD, b"\0" * 17), "1 bytes after"),
    "huge length": (safetensors_bytes(GOOD, b"\0" * 16, length=2**63), "damaged"),
    "length of 1 GB": (safetensors_bytes(GOOD, b"\0" * 16, length=2**30), "damaged"),
    "duplicate tensors": (
        safetensors_bytes(
            b'{"a":' + json.dumps(entry(0, 8)).encode() + b',"a":' + json.dumps(entry(8, 16)).encode() + b"}",
            b"\0" * 16,
        ),
        "given twice",
    ),
    "duplicate key inside": (
        safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "given twice",
    ),
    "overlap": (safetensors_bytes({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "overlaps"),
    "same place": (safetensors_bytes({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8), "overlaps"),
    "other order": (safetensors_bytes({"a": entry(8, 16), "b": entry(0, 8)}, b"\0" * 16), "header order"),
    "gap": (safetensors_bytes({"a": entry(0, 8), "b": entry(12, 20)}, b"\0" * 20), "gap"),
    "backwards": (safetensors_bytes({"a": entry(8, 0, shape=[2])}, b"\0" * 8), "gap|damaged"),
    "negative offset": (safetensors_bytes({"a": entry(-4, 4, shape=[2])}, b"\0" * 8), "not counts"),
    "float offset": (safetensors_bytes({"a": {**entry(0, 8), "data_offsets": [0, 8.0]}}, b"\0" * 8), "not counts"),
    "boolean shape": (safetensors_bytes({"a": entry(0, 4, shape=[True])}, b"\0" * 4), "not counts"),
    "wrong size": (safetensors_bytes({"a": entry(0, 8, shape=[3])}, b"\0" * 8), "has 8 bytes, not 12"),
    "unknown dtype": (safetensors_bytes({"a": entry(0, 8, dtype="F99")}, b"\0" * 8), "unknown dtype"),
    "missing key": (safetensors_bytes({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "lacks dtype"),
    "extra key": (safetensors_bytes({"a": {**entry(0, 8), "x": 1}}, b"\0" * 8), "lacks dtype"),
    "entry is a list": (safetensors_bytes({"a": [1]}, b"\0" * 8), "lacks dtype"),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}, **GOOD}, b"\0" * 16), "damaged metadata"),
    "header is not JSON": (safetensors_bytes(b"{" + b"x" * 30), "not JSON"),
    "header is not UTF-8": (safetensors_bytes(b'{"\xff": 1}' + b" " * 20), "not JSON"),
    "NaN in the header": (safetensors_bytes(b'{"a": NaN}' + b" " * 20), "not a number"),
    "deep header": (safetensors_bytes(b'{"a":' + b"[" * 100_000), "not JSON"),
    "100,000 tensors": (lots(100_000), "more than 50,000 tensors"),
    "huge shape": (safetensors_bytes({"a": entry(0, 8, shape=[2**62] * 40)}, b"\0" * 8), "impossible"),
    "half a byte": (safetensors_bytes({"a": entry(0, 1, dtype="F4", shape=[1])}, b"\0"), "inside a byte"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_gate_refuses(case: str, tmp_path: Path) -> None:
    data, words = BAD[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    start = time.process_time()
    with pytest.raises(WanlabError, match=words) as caught:
        header_gate(file)
    assert time.process_time() - start < 0.1
    assert str(file) in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


def test_the_gate_refuses_what_torch_save_writes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    with pytest.raises(WanlabError, match="pickles can run code"):
        header_gate(tmp_path / "model.safetensors")
    for wrong in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WanlabError, match="cannot be read"):
            header_gate(wrong)


def test_the_gate_lets_sound_files_through(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    file = tmp_path / "a.safetensors"
    arrays = {
        "w": numpy.ones((3, 5), "float32"),
        "h": numpy.ones(7, "float16"),
        "s": numpy.array(1.0),
        "e": numpy.ones((0, 4)),
    }
    save_file(arrays, file, metadata={"format": "pt", "note": "é"})
    header = header_gate(file)
    assert header["w"]["shape"] == [3, 5]
    assert header["__metadata__"]["note"] == "é"
    assert set(header) == {*arrays, "__metadata__"}
    file.write_bytes(safetensors_bytes({}))
    assert header_gate(file) == {}


def test_the_gate_is_quick_on_the_largest_headers(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(lots(5_000))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        assert len(header_gate(file)) == 5_000
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 140), junk=st.binary(min_size=1, max_size=3), cut=st.integers(0, 3))
def test_what_the_gate_accepts_the_reader_accepts(tmp_path: Path, position: int, junk: bytes, cut: int) -> None:
    from safetensors import safe_open

    file = tmp_path / "a.safetensors"
    whole = safetensors_bytes(GOOD, b"\0" * 16)
    file.write_bytes(whole[:position] + junk + whole[position + cut :])
    try:
        header = header_gate(file)
    except WanlabError:
        return
    with safe_open(file, "numpy") as reader:
        assert set(reader.keys()) == set(header) - {"__metadata__"}


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
