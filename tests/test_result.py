"""Saving and opening results that no model made: folders, damaged files, prompts left out, no permission."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.files import atomic_write
from wanlab.result import Result, open_result
from wanlab.spec import GenerationSpec


def make(num_frames: int = 3, **changes: Any) -> Result:
    spec = GenerationSpec.of({"model": "wan_tiny"}, **{"prompt": "a kite", "fps": 8, **changes})
    resolved = {"spec": spec.with_(dtype="float32").to_dict(), "ran": {"attention": "sdpa"}}
    record = runs.RunRecord(id="0123456789ab", status="ok", spec=spec.to_dict(), resolved=resolved)
    frames = np.zeros((num_frames, 16, 16, 3), np.uint8)
    return Result(frames, torch.ones(1, 4, 1, 2, 2), spec, record, 8.0)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("path", [None, "", "  ", 7, "a\0b.mp4", b"x.mp4"])
def test_what_is_no_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WanlabError, match="is no path"):
        make().save(path)
    with pytest.raises(WanlabError, match="is no path"):
        open_result(path)
    assert names(tmp_path) == []


def test_an_image_over_a_clip_leaves_no_clip(tmp_path: Path) -> None:
    make().save(tmp_path / "run")
    folder = make(num_frames=1).save(tmp_path / "run")
    assert names(folder) == ["image.png", "latents.safetensors", "run.json"]
    assert open_result(folder).frames.shape == (1, 16, 16, 3)


def test_a_stripped_prompt_is_nowhere_in_the_folder(tmp_path: Path) -> None:
    secret = make(strip_prompt=True, negative_prompt="no rain")
    folder = secret.save(tmp_path / "run")
    for file in folder.iterdir():
        assert b"a kite" not in file.read_bytes(), file
        assert b"no rain" not in file.read_bytes(), file
    opened = open_result(folder)
    assert opened.spec == secret.spec.with_(prompt="", negative_prompt="")
    assert (opened.ran, opened.resolved.weights.dtype) == (secret.ran, "float32")
    assert secret.record.spec["text"]["prompt"] == "a kite"
    assert open_result(opened.save(tmp_path / "again")).spec == opened.spec
    assert open_result(open_result(secret.save(tmp_path / "x.mp4")).save(tmp_path / "third")).spec == opened.spec


def test_the_record_opens_its_folder(tmp_path: Path) -> None:
    folder = make().save(tmp_path / "run")
    assert open_result(str(folder / "run.json")).spec == open_result(folder).spec == make().spec
    assert open_result(folder / "run.json").path == folder
    with pytest.raises(WanlabError, match="no run folder"):
        open_result(tmp_path / "run.json")


def test_damaged_latents_are_named(tmp_path: Path) -> None:
    """Whatever the record says of them: files may come from elsewhere."""
    folder = make().save(tmp_path / "run")
    file = folder / "latents.safetensors"
    whole = file.read_bytes()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    for content in (flipped, b"\0" * len(whole), whole[:8] + b"[" + whole[9:]):
        file.write_bytes(content)
        with pytest.raises(WanlabError, match="changed"):
            open_result(folder)
    table = b'{"latents": {"dtype": "F6_E2M3", "shape": [1, 1, 1, 1, 4], "data_offsets": [0, 3]}}'
    for content, words in {
        b"": "is empty",
        b"\0" * 99: "not a safetensors file",
        whole[:-1]: "truncated",
        save({"latents": torch.ones(2, 2)}): "no latents",
        save({"other": torch.ones(1, 4, 1, 2, 2)}): "no latents",
        len(table).to_bytes(8, "little") + table + b"xyz": "cannot be read",
    }.items():
        artifacts = {"video.mp4": folder / "video.mp4", "latents.safetensors": content}
        runs.write_run(folder, runs.read_run(folder), artifacts)
        with pytest.raises(WanlabError, match=words):
            open_result(folder)


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may write anywhere, so it becomes nobody meanwhile."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_place_that_cannot_be_written_or_read_is_named() -> None:
    clip = make()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "locked")
        run = clip.save(folder / "run")
        kept = {p: p.read_bytes() for p in run.iterdir()}
        modes = [(run, 0o555), (folder, 0o555), (Path(root), 0o755)]
        for path, mode in modes:
            path.chmod(mode)
        with without_rights():
            if not os.access(run, os.R_OK, effective_ids=True):
                pytest.skip("the folder of temporary files is private")
            for name in ("x.mp4", "new", "deep/er/x.mp4", "run"):
                with pytest.raises(WanlabError, match=r"Cannot write.*Permission denied.*another folder"):
                    clip.save(folder / name)
            with pytest.raises(WanlabError, match="Permission denied"):
                atomic_write(folder / "x.json", "{}")
            assert open_result(run).spec == clip.spec
        assert {p: p.read_bytes() for p in run.iterdir()} == kept
        folder.chmod(0)
        with without_rights():
            for name in ("run", "run/video.mp4", "run/run.json"):
                with pytest.raises(WanlabError, match=r"cannot be read|Cannot read"):
                    open_result(folder / name)
        folder.chmod(0o755)


def test_media_are_named_in_labels() -> None:
    from wanlab.details import in_words
    from wanlab.spec import MediaRef

    named = MediaRef(sha256="ab" * 32, name="kite.png", kind="image")
    assert in_words({"media.image": named}) == "image kite.png"
    assert in_words({"media.mask": MediaRef(sha256="ab" * 32, kind="mask")}) == "mask abababab"
