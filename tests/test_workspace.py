"""The workspace: which folder is found, what it names, and that looking makes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanlab.errors import WanlabError
from wanlab.workspace import Workspace, find_workspace


def test_the_nearest_marked_parent_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wanlab.toml").touch()
    inner = tmp_path / "project"
    deep = inner / "notebooks" / "a"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_workspace().root == tmp_path
    (inner / "wanlab.toml").touch()
    assert find_workspace().root == inner
    assert find_workspace(tmp_path / "other").root == tmp_path / "other"
    (deep / "wanlab.toml").mkdir()  # a folder is no marker
    assert find_workspace().root == inner


def test_without_a_marker_it_is_the_users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert find_workspace().root == tmp_path / "data" / "wanlab"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert find_workspace().root == tmp_path / "home" / ".local" / "share" / "wanlab"


def test_looking_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    workspace = find_workspace()
    found = [workspace.finetunes, workspace.configs, workspace.loras, workspace.profiles, workspace.runs]
    assert [p.name for p in found] == ["finetunes", "configs", "loras", "profiles", "runs"]
    assert workspace.checkpoints == [workspace.root / "checkpoints"]
    assert list(tmp_path.iterdir()) == []


def test_an_explicit_folder_may_not_exist_but_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_workspace("new").root == tmp_path / "new"
    assert find_workspace("~/lab").root == tmp_path / "lab"
    (tmp_path / "file").touch()
    with pytest.raises(WanlabError, match="is a file"):
        find_workspace("file")


def test_checkpoint_folders_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/researcher")
    (tmp_path / "wanlab.toml").write_text(
        '[checkpoints]\npaths = ["/big/models", "~/ComfyUI/models", "../é"]\n', "utf-8"
    )
    assert Workspace(tmp_path).checkpoints == [
        tmp_path / "checkpoints",
        Path("/big/models"),
        Path("/home/researcher/ComfyUI/models"),
        tmp_path / "../é",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[checkpoint]\npaths = []", "Did you mean 'checkpoints'?"),
        ("[checkpoints]\npath = []", "Did you mean 'paths'?"),
        ("[checkpoints]\npaths = 'a'", "Give a list"),
        ("[checkpoints]\npaths = [1]", "Give a list"),
        ("[checkpoints]\npaths = ['']", "Give a list"),
        ("checkpoints = 3", "Make it a section"),
        ("[checkpoints", "not valid TOML"),
        ("\udcff", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_when_it_is_read(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "wanlab.toml").write_bytes(text.encode(errors="surrogateescape"))
    workspace = Workspace(tmp_path)
    assert workspace.runs == tmp_path / "runs"
    with pytest.raises(WanlabError) as caught:
        _ = workspace.checkpoints
    assert words in str(caught.value)
