"""The gate that every weight file passes: what it refuses, in which words, how fast."""

from __future__ import annotations

import json
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanlab.errors import WanlabError
from wanlab.files import header_gate


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
