"""Settings of every test: no network, no user folder, and the markers that leave tests out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "JUPYTER_PLATFORM_DIRS": "1",
}.items():
    os.environ.setdefault(name, value)


_LEFT_OUT = {
    "gpu": "needs a CUDA device: -m gpu",
    "weights": "needs local weights: -m weights",
    "browser": "drives Chromium: make browser",
    "kills": "kills processes for minutes: make kills",
}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's data, configuration and hub cache folders are empty ones, so no test depends on the machine."""
    home = tmp_path_factory.getbasetemp() / "home"
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU, large weights, a browser or minutes unless the command line names its marker."""
    asked = config.getoption("markexpr", "")
    for word, reason in _LEFT_OUT.items():
        if word in asked:
            continue
        for item in items:
            if item.get_closest_marker(word):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a notebook of a Jupyter server; the workspace is an empty one."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "wanlab.toml").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("wanlab.notebook.notebook_file", lambda: folder / "a.ipynb")
    monkeypatch.setattr("wanlab.notebook.is_live", lambda: True)
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT: a process that a shell started in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
