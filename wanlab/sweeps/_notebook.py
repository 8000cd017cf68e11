"""A notebook that is an experiment: what it must be, the names and values of its parameters, a point's identity.

papermill pastes the names of parameters as code, only warns about one that the notebook does not know, and turns some
values into text. So names, values and the notebook itself are checked here, before anything runs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import keyword
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError, shorten, unknown
from wanlab.files import read_json
from wanlab.spec.identity import content_id
from wanlab.spec.part import plain

TAG = "parameters"
_MAX_BYTES = 256 << 20  # of the file: an executed notebook with pictures in it may be given
_MAX_SOURCE = 4_000_000  # bytes without outputs; the executed notebook is to stay below 5 MB
_TAGGING = f'Give the tag "{TAG}" to the one cell that assigns the settings (JupyterLab: Property Inspector)'


@dataclass(frozen=True)
class Notebook:
    """A notebook without its outputs, checked to be one that can run as an experiment."""

    path: Path
    node: Any
    """nbformat's node, of version 4; nobody changes it."""
    parameters: Mapping[str, Any]
    """Name -> value, as the `parameters` cell assigns it; a value that is no literal is `Code`."""
    kernel: str

    @cached_property
    def code(self) -> tuple[str, ...]:
        """The source of every code cell; of the `parameters` cell what is no assignment of a parameter."""
        cells = [cell for cell in self.node.cells if cell.cell_type == "code"]
        return tuple(_rest(cell.source) if _is_tagged(cell) else cell.source.strip() for cell in cells)

    @cached_property
    def digest(self) -> str:
        """8 hexadecimal digits that are equal when the whole source is, text and parameters included."""
        source = [(cell.cell_type, cell.source) for cell in self.node.cells]
        return hashlib.sha256(json.dumps(source).encode()).hexdigest()[:8]

    def text(self) -> str:
        """The notebook as a file holds it."""
        import nbformat

        return nbformat.writes(self.node) + "\n"

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters as JSON values, with `changes`. Raises WanlabError for a name or a value that cannot be."""
        return {**self.parameters, **{name: self.value(name, value) for name, value in changes.items()}}

    def value(self, name: str, value: Any) -> Any:
        """`value` of the parameter `name` as JSON data. Raises WanlabError for either."""
        self.check_name(name)
        return plain(value, name)

    def check_name(self, name: Any) -> None:
        """Raise WanlabError for what is no identifier, or no parameter of this notebook."""
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise WanlabError(
                f"{shorten(name)} is no name of a parameter: it would be pasted into {self.path.name} as code",
                choices=self.parameters,
                remedy="Give a Python identifier",
            )
        if name not in self.parameters:
            raise unknown(f"parameter of {self.path.name}", name, self.parameters)

    def point_id(self, changes: Mapping[str, Any]) -> str:
        """12 hexadecimal digits: equal when all parameters and the code are, whatever outputs and text say."""
        values = json.dumps(self.settings(changes), sort_keys=True, default=str)
        return content_id({"parameters": values, "code": list(self.code)})


class Code(str):
    """The source of a parameter's value that is no literal; equal to its text in a hash."""

    __slots__ = ()


def read_notebook(path: str | Path) -> Notebook:
    """Read a notebook and check what an experiment needs.

    Raises WanlabError for a file that is no notebook of a known format, without exactly one cell tagged `parameters`
    of plain Python, in another language, for a kernel that is not installed, and with over 4 MB of source.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise WanlabError(f"There is no notebook {path}", remedy="Give the folder with run.ipynb, or a notebook")
    node = _node(path)
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    node.metadata.pop("widgets", None)
    size = len(json.dumps(node))
    if size > _MAX_SOURCE:
        problem = f"{path.name} has {size / 1e6:.1f} MB without its outputs, above {_MAX_SOURCE / 1e6:.0f} MB"
        raise WanlabError(problem, remedy="Keep pictures in files beside it")
    cells = [cell for cell in node.cells if cell.cell_type == "code" and _is_tagged(cell)]
    if len(cells) != 1:
        how_many = f"{len(cells)} cells" if cells else "no cell"
        raise WanlabError(f'{path.name} has {how_many} with the tag "{TAG}"', remedy=_TAGGING)
    return Notebook(path, node, _assigned(cells[0].source, path), _kernel(node, path))


def _node(path: Path) -> Any:
    """The notebook in nbformat's version 4."""
    import nbformat

    data = read_json(path, _MAX_BYTES)
    version = data.get("nbformat") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise WanlabError(f"{path.name} is no notebook: it has no nbformat", remedy="Save it with Jupyter")
    minor = data.get("nbformat_minor", 0)
    known = (nbformat.current_nbformat, nbformat.current_nbformat_minor)
    if not isinstance(minor, int) or (version, minor) > known:
        problem = f"{path.name} has nbformat {version}.{minor}, and this installation reads up to {known[0]}.{known[1]}"
        raise WanlabError(problem, remedy="Update nbformat, or save the notebook in an older format")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ids that an older writer did not give are added
            node = nbformat.convert(nbformat.reader.reads(json.dumps(data)), known[0])
            _, node = nbformat.validator.normalize(node)
            nbformat.validate(node)
    except (nbformat.ValidationError, ValueError, KeyError, AttributeError, TypeError) as error:
        why = shorten(str(error).strip().partition("\n")[0])
        raise WanlabError(f"{path.name} is no valid notebook: {why}", remedy="Save it with Jupyter") from None
    return node


def _is_tagged(cell: Any) -> bool:
    return TAG in cell.metadata.get("tags", [])


def _assigned(source: str, path: Path) -> dict[str, Any]:
    """Name -> value of the `parameters` cell's assignments."""
    found: dict[str, Any] = {}
    for node in _parsed(source, path).body:
        if named := _assignment(node):
            try:
                found[named[0]] = plain(ast.literal_eval(named[1]), named[0])
            except (ValueError, TypeError, MemoryError, RecursionError):  # a WanlabError is a ValueError
                found[named[0]] = Code(ast.unparse(named[1]))
    return found


def _rest(source: str) -> str:
    """What of the `parameters` cell is no assignment of a parameter, without comments."""
    return "\n".join(ast.unparse(node) for node in ast.parse(source).body if not _assignment(node))


def _parsed(source: str, path: Path) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        problem = f"The parameters cell of {path.name} is not plain Python: {error}"
        raise WanlabError(problem, remedy="Assign literals to names, a line each") from None


def _assignment(node: ast.stmt) -> tuple[str, ast.expr] | None:
    """The name and the value of `name = value` and `name: type = value`."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, node.value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return node.target.id, node.value
    return None


def _kernel(node: Any, path: Path) -> str:
    """The name of the notebook's kernel, checked to be installed and to speak Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    spec = node.metadata.get("kernelspec", {})
    language = spec.get("language") or node.metadata.get("language_info", {}).get("name") or "python"
    if language != "python":
        raise WanlabError(f"{path.name} is written in {shorten(language)}", remedy="Experiments are Python notebooks")
    name = spec.get("name") or "python3"
    manager = KernelSpecManager()
    try:
        manager.get_kernel_spec(name)
    except (NoSuchKernel, ValueError):
        remedy = "Choose another kernel in JupyterLab and save, or install this one"
        installed = sorted(manager.find_kernel_specs())
        problem = f"{path.name} asks for the kernel {name!r}, which is not installed"
        raise WanlabError(problem, choices=installed, remedy=remedy) from None
    return name
