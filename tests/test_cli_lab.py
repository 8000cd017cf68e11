"""`wanlab lab`: which JupyterLab it becomes, that no notebook is overwritten, and that strangers stay out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from wanlab.cli import main
from wanlab.cli._lab import command_line, copy_notebooks
from wanlab.errors import WanlabError
from wanlab.files import resource

ROOT = Path(__file__).resolve().parent.parent
NAMES = {path.name for path in resource("notebooks").glob("*.ipynb")}


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that would have replaced this process, of a user who is not root."""
    found: list[list[str]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "execve", lambda program, line, environment: found.append(line))
    return found


def test_the_line_is_for_this_machine_and_keeps_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = command_line(tmp_path)
    assert line[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--ip=127.0.0.1" in line
    assert f"--ServerApp.root_dir={tmp_path}" in line
    assert "--LabApp.default_url=/lab/tree/notebooks/quickstart.ipynb" in line
    assert not [word for word in line if "token" in word or "password" in word or "port" in word]
    more = command_line(tmp_path, "0.0.0.0", port=8899, browser=False, extra=["--debug"])
    assert {"--ip=0.0.0.0", "--port=8899", "--no-browser"} <= set(more)
    assert more[-1] == "--debug"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--", "--ServerApp.token="], "always asks for its token"),
        (["--", "--IdentityProvider.token", ""], "always asks for its token"),
        (["--", "--PasswordIdentityProvider.hashed_password="], "always asks"),
        (["--", "--ip=0.0.0.0"], "Use --listen"),
        (["--", "--ServerApp.ip", "0.0.0.0"], "Use --listen"),
        (["--listen", ""], "--listen is empty"),
        (["--port", "70000"], "no port 70000"),
        (["--port", "x"], "invalid int value"),
        (["file"], "is a file"),
        (["--tokn"], "--tokn"),
    ],
)
def test_what_would_open_the_lab_is_refused(
    words: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["lab", *words]) == 2
    assert match in capsys.readouterr().err
    assert executed == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_root_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(WanlabError, match="-- --allow-root"):
        command_line(tmp_path)
    assert command_line(tmp_path, extra=["--allow-root"])[-1] == "--allow-root"


def test_missing_notebooks_are_copied_and_none_is_overwritten(tmp_path: Path) -> None:
    copied = copy_notebooks(tmp_path)
    assert {path.name for path in copied} == NAMES
    assert copied[0].read_bytes() == (resource("notebooks") / copied[0].name).read_bytes()
    copied[0].write_text("mine")
    assert copy_notebooks(tmp_path) == []
    assert copied[0].read_text() == "mine"
    assert {path.name for path in (tmp_path / "notebooks").iterdir()} == NAMES
    assert copy_notebooks(ROOT) == []


def test_listening_to_others_is_said(
    tmp_path: Path, executed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", str(tmp_path / "typo"), "--no-browser"]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
    (tmp_path / "new").mkdir()
    main(["lab", str(tmp_path / "new"), "--no-browser"])
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == len(NAMES)
    for address in ("localhost", "127.0.0.2", "::1"):
        main(["lab", str(tmp_path), "--listen", address])
        assert capsys.readouterr().err == ""
    main(["lab", str(tmp_path), "--listen", "0.0.0.0"])
    err = capsys.readouterr().err
    assert "Listening on 0.0.0.0" in err
    assert "token stays on" in err
    assert "--ip=0.0.0.0" in executed[-1]


def listening(port: int) -> set[str]:
    """Local addresses, as the kernel writes them, on which something listens at a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


def status(address: str) -> int:
    """The answer's status; waits until somebody listens, as Jupyter prints its address shortly before it does."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="reads Linux's table of sockets")
def test_a_real_lab_answers_only_here_and_only_with_its_token(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JUPYTER_")}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    words = ["lab", str(tmp_path / "lab"), "--port", "0", "--no-browser", "--", "--allow-root"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wanlab.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)/\S*token=(\w+)", s) for s in process.stderr)))
        port, token = int(found[1]), found[2]
        assert len(token) >= 32
        address = f"http://127.0.0.1:{port}"
        assert status(f"{address}/api/status?token={token}") == 200
        assert status(f"{address}/api/status") == 403
        assert status(f"{address}/api/contents/notebooks/quickstart.ipynb?token={token}") == 200
        assert listening(port) == {"0100007F"}  # 127.0.0.1, lowest byte first
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()
