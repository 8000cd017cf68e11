"""Files that hold definitions, ours or WanGP's, read into data; what is wrong in them is told with file and line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wanlab.catalog._merge import Raw
from wanlab.compat import definition as wangp
from wanlab.errors import WanlabError
from wanlab.files import read_json

_MAX_BYTES = 4 << 20  # a definition is a few kilobytes
_QUOTED = re.compile(r"'([^']{1,200})'")
_DOTTED = re.compile(r"[\w\]]\.([\w-]+)")


class DefinitionError(WanlabError):
    """What is wrong in the file of a definition, with its place."""


@dataclass(frozen=True)
class Record:
    """One definition as its file says it."""

    id: str
    data: Raw
    path: Path
    overrides: str | None = None
    """Id of the shipped definition that this file changes."""

    @property
    def origin(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Errors raised inside name the innermost file and, where its text shows one, the line."""
        try:
            yield
        except DefinitionError:
            raise
        except WanlabError as error:
            raise _placed(error, self.path) from None


def read_shipped(path: Path) -> Record:
    """A definition that comes with wanlab; its id is the file's name."""
    data = _object(path)
    return Record(str(data.get("id")), data, path)


def read_finetune(path: Path, shipped: Mapping[str, str]) -> Record:
    """A user's definition, ours or WanGP's; one called as a shipped model (`shipped`: name -> id) changes that one.

    Raises WanlabError with file and line: not JSON, NaN, keys given twice, too deep, a path that leads outside.
    """
    data = _object(path)
    given = data.get("id", path.stem)
    overrides = shipped.get(path.stem) or (shipped.get(given) if isinstance(given, str) else None)
    record = Record(overrides or str(given), data, path, overrides)
    with record.placed():
        if wangp.is_wangp(data):
            data = wangp.convert(data, path.stem, changes=overrides is not None)
    return replace(record, data={**data, "id": record.id})


def _object(path: Path) -> Raw:
    data = read_json(path, _MAX_BYTES)
    if not isinstance(data, dict):
        raise WanlabError(f"{path} holds no JSON object", remedy="A definition is an object with id and family")
    return data


def _placed(error: WanlabError, path: Path) -> WanlabError:
    line = _line(error.problem, path)
    place = f"{path}, line {line}" if line else str(path)
    problem = error.problem.replace(f"{path.name}.", "", 1)
    return DefinitionError(f"{place}: {problem}", choices=error.choices, remedy=error.remedy)


def _line(problem: str, path: Path) -> int | None:
    """The line of the file that shows what a problem is about: a quoted value, else the last key of a dotted name."""
    text = path.read_text("utf-8-sig", errors="replace")
    dotted = _DOTTED.findall(problem.partition(" = ")[0])
    for word in (*_QUOTED.findall(problem), *reversed(dotted)):
        for form in {json.dumps(word), json.dumps(word, ensure_ascii=False)}:
            if (place := text.find(form)) >= 0:
                return text.count("\n", 0, place) + 1
    return None
