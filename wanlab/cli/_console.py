"""What all commands share: the parser of options, and writing to the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn, TextIO

from wanlab.errors import WanlabError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are WanlabErrors; options are never abbreviated."""

    def __init__(self, **settings: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=form, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as a WanlabError."""
        raise WanlabError(message[:1].upper() + message[1:], remedy=f"{self.prog} --help says what it takes")


def command(name: str, usage: str, description: str, epilog: str = "") -> Parser:
    """The parser of one command, with the option --debug that all have."""
    parser = Parser(prog=f"wanlab {name}", usage=f"wanlab {name} {usage}", description=description, epilog=epilog)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    return parser


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line at once, to stdout by default; what the terminal's encoding cannot say is written as `?`."""
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
