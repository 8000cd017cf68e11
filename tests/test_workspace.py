"""The workspace: which folder is found, what it names, and that looking makes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wanlab.errors import WanlabError
from wanlab.workspace import Root, Workspace, find_workspace


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
        ("[checkpoints]\nwangp = ['a']", "Give a folder"),
        ("[checkpoints]\ncomfyui = ''", "Give a folder"),
        ("[checkpoints]\nhubs = 'a'", "Did you mean 'hub'?"),
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


def test_roots_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WanGP's own configuration says where its checkpoints are; the hub's cache is where its environment says."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    wangp = tmp_path / "Wan2GP"
    wangp.mkdir()
    (tmp_path / "wanlab.toml").write_text(f'[checkpoints]\nwangp = "Wan2GP"\ncomfyui = "{tmp_path}/ComfyUI"\n')
    own, cache = Root(tmp_path / "checkpoints"), Root(tmp_path / "cache", "hub")
    comfyui = Root(tmp_path / "ComfyUI" / "models", "comfyui")
    usual = [Root(wangp / "ckpts", "wangp"), Root(wangp, "wangp")]
    assert Workspace(tmp_path).roots == [own, *usual, comfyui, cache]
    (wangp / "wgp_config.json").write_text(json.dumps({"checkpoints_paths": ["models", "/big"], "profile": 4}))
    named = [Root(wangp / "models", "wangp"), Root(Path("/big"), "wangp")]
    assert Workspace(tmp_path).roots == [own, *named, comfyui, cache]
    for wrong in ('{"checkpoints_paths": 3}', "[1]", "{"):
        (wangp / "wgp_config.json").write_text(wrong)
        with pytest.raises(WanlabError, match=r"wgp_config\.json"):
            _ = Workspace(tmp_path).roots


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_where_its_library_looks(environment: dict[str, str], place: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "XDG_"))}
    code = "from huggingface_hub.constants import HF_HUB_CACHE; from wanlab.workspace import hub_cache; "
    code += "print(HF_HUB_CACHE, hub_cache())"
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)
    assert done.stdout.split() == [place, place], done.stderr
