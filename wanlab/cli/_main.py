"""Find the command, run it, and turn what a user did wrong into one paragraph and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import wanlab
from wanlab.cli._console import Parser, say
from wanlab.errors import WanlabError, unknown

COMMANDS = {  # name -> what --help says; each is a module `_<name>` of this package with `run(words) -> status`
    "generate": "make a clip or an image and save it",
    "sweep": "run experiments in notebooks and grids of specs, and what is missing of them",
    "models": "list the models and what of them is on this machine",
    "lab": "open JupyterLab on the notebooks",
    "doctor": "check this installation, and end with a short generation",
}
MISTAKE, INTERRUPTED = 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Run `wanlab <words>`, by default the process's own, and return the exit status.

    0: well; 1: the doctor found a fault, or some runs of a sweep failed; 2: a mistake in what was asked, told on
    stderr; 130: interrupted.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except WanlabError as error:
        if "--debug" in words:
            traceback.print_exc()
        else:
            say(f"wanlab: {error}", sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        say("wanlab: interrupted", sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `wanlab models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again when it ends
        return 0
    except SystemExit as end:  # argparse after --help and --version
        return int(end.code or 0)
    return status


def _dispatch(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        status: int = importlib.import_module(f"wanlab.cli._{words[0]}").run(words[1:])
        return status
    if words and not words[0].startswith("-"):
        raise unknown("command", words[0], COMMANDS, remedy="wanlab --help says what they do")
    _parser().parse_args(words or ["--help"])
    return 0


def _parser() -> Parser:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="wanlab",
        usage="wanlab COMMAND ...",
        description="A research workbench for video diffusion.",
        epilog=f"commands:\n{lines}\n\n`wanlab COMMAND --help` says more about each.",
    )
    parser.add_argument("--version", action="version", version=f"wanlab {wanlab.__version__}")
    return parser
