"""`wanlab lab`: JupyterLab on a folder of notebooks, for this machine only unless asked otherwise, always with a token.

Jupyter draws the token anew at every start and prints it in the address to open.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wanlab.cli._console import command, say
from wanlab.errors import WanlabError
from wanlab.files import atomic_write, resource

HERE = "127.0.0.1"
FIRST = "notebooks/quickstart.ipynb"
_OURS = {"ip", "token", "password", "hashed_password", "password_required", "identity_provider_class"}
_EPILOG = """\
Other machines reach it best through ssh, which keeps it private:
  ssh -L 8888:localhost:8888 this-machine"""


def run(words: Sequence[str]) -> int:
    """Copy the notebooks that are missing, then become JupyterLab: Ctrl-C and signals are its own."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    parser = command(
        "lab", "[FOLDER] [options] [-- jupyter's arguments]", "Open JupyterLab on the notebooks.", epilog=_EPILOG
    )
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="what the lab shows; default: here")
    parser.add_argument("--listen", metavar="ADDRESS", help=f"let other machines in; default: {HERE}, this one only")
    parser.add_argument("--port", type=int, help="fails if it is taken; default: 8888 or the next free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    arguments = parser.parse_intermixed_args(words[:cut])
    folder, address = Path(arguments.folder), arguments.listen if arguments.listen is not None else HERE
    line = command_line(folder, address, port=arguments.port, browser=not arguments.no_browser, extra=words[cut + 1 :])
    for path in copy_notebooks(folder):
        say(f"Copied {path}")
    if not _is_loopback(address):
        say(_warning(address), sys.stderr)
    os.execve(line[0], line, {"JUPYTER_PREFER_ENV_PATH": "1", **os.environ})  # kernels of this Python come first


def command_line(
    folder: Path, address: str = HERE, *, port: int | None = None, browser: bool = True, extra: Sequence[str] = ()
) -> list[str]:
    """What starts JupyterLab; raises WanlabError for arguments that would open it, and where it cannot start."""
    if not folder.exists():
        raise WanlabError(f"There is no folder {folder}", remedy=f"Make it first: mkdir -p {folder}")
    if not folder.is_dir():
        raise WanlabError(f"{folder} is a file", remedy="Give the folder that the lab is to show")
    if not address.strip():
        raise WanlabError("--listen is empty", remedy="Give an address of this machine, or 0.0.0.0 for all of them")
    if port is not None and not 0 <= port < 65_536:
        raise WanlabError(f"There is no port {port}", remedy="Give 1024 to 65535, or 0 for a free one")
    for word in extra:
        _check_extra(word)
    if importlib.util.find_spec("jupyterlab") is None:
        raise WanlabError(f"JupyterLab is not installed for {sys.executable}", remedy="pip install jupyterlab")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in extra:
        remedy = "Use another account, or, in a container of your own: wanlab lab -- --allow-root"
        remedy += " (or make lab ARGS='-- --allow-root')"
        raise WanlabError("JupyterLab does not start as root", remedy=remedy)
    line = [sys.executable, "-m", "jupyterlab", f"--ip={address}", f"--ServerApp.root_dir={folder.absolute()}"]
    line.append(f"--LabApp.default_url=/lab/tree/{FIRST}")
    if port is not None:
        line += [f"--port={port}", "--ServerApp.port_retries=0"]
    if not browser:
        line.append("--no-browser")
    return [*line, *extra]


def _check_extra(word: str) -> None:
    """Refuse what would reach past --listen and the token."""
    name = word.lstrip("-").partition("=")[0].rpartition(".")[2]
    if word.startswith("-") and name in _OURS:
        remedy = "Use --listen" if name == "ip" else "Leave it out: the lab always asks for its token"
        raise WanlabError(f"{word.partition('=')[0]} is not passed on to Jupyter", remedy=remedy)


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy to `folder`/notebooks those that come with wanlab and are not there yet; returns them. Overwrites none."""
    copied = []
    for source in sorted(resource("notebooks").glob("*.ipynb")):
        target = folder / "notebooks" / source.name
        if not os.path.lexists(target):
            copied.append(atomic_write(target, source.read_bytes()))
    return copied


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _warning(address: str) -> str:
    return (
        f"Listening on {address}: whoever reaches this machine and has the token can run any program here as you, and "
        "read and delete your files. The token stays on, but it and all else travel unencrypted (http). Safer: start "
        "without --listen and use ssh -L."
    )
