"""A JupyterLab of its own: no settings, kernels, trust or notebooks of the machine it runs on."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS = 60
_SETTINGS: dict[str, dict[str, Any]] = {  # of the user, by plugin
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},  # a test saves when it says so
    "notebook-extension/tracker": {
        "windowingMode": "none",  # cells outside the view have boxes too
        "scrollPastEnd": False,  # a picture of the notebook ends with it
    },
}


@dataclass
class Server:
    """A running JupyterLab on 127.0.0.1; `root` is the folder it shows, `url` ends without a slash."""

    process: subprocess.Popen[bytes]
    url: str
    token: str
    root: Path
    log: Path

    def api(self, path: str, method: str = "GET") -> Any:
        """What the server answers to a request below /api/, from JSON; None where it answers nothing."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def forget_theme(self) -> None:
        """Pages that are opened from now on are light, whatever theme an earlier one was left in."""
        settings = self.log.parent / "config" / "lab" / "user-settings" / "@jupyterlab"
        (settings / "apputils-extension" / "themes.jupyterlab-settings").unlink(missing_ok=True)

    def stop(self) -> None:
        """End the kernels and the server, by its pid."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def start(folder: Path, checkout: Path) -> Server:
    """Start JupyterLab with everything it keeps in `folder`; its kernels import wanlab from `checkout`.

    Raises RuntimeError with the server's log if it does not answer within a minute.
    """
    root = folder / "root"
    root.mkdir(parents=True)
    _write_kernelspec(folder / "data" / "kernels" / "python3", checkout)
    for plugin, settings in _SETTINGS.items():
        file = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    port, token = _free_port(), secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": root,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,  # window.jupyterapp, which `lab.Lab` speaks to
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())],
            env=_environment(folder, checkout),
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, f"http://127.0.0.1:{port}", token, root, log)
    _wait(server)
    return server


def _environment(folder: Path, checkout: Path) -> dict[str, str]:
    paths = [str(checkout), os.environ.get("PYTHONPATH", "")]
    own = {
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_DATA_DIR": folder / "data",
        "JUPYTER_PATH": folder / "data",  # before the environment's own kernels
        "JUPYTER_RUNTIME_DIR": folder / "runtime",
        "IPYTHONDIR": folder / "ipython",
        "XDG_DATA_HOME": folder / "xdg-data",
        "XDG_CONFIG_HOME": folder / "xdg-config",
        "HF_HOME": folder / "hub",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "MPLBACKEND"))}
    return {**kept, **{n: str(p) for n, p in own.items()}, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _write_kernelspec(folder: Path, checkout: Path) -> None:
    """The kernel "python3": this interpreter, with the checkout first on its path."""
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        "env": {"PYTHONPATH": str(checkout)},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            server.api("status")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    server.stop()
    raise RuntimeError(f"JupyterLab did not start:\n{server.log.read_text(errors='replace')[-3000:]}")
