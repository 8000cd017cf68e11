"""Imports: one way, light, silent, and no public name hides behind a module."""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wanlab

PACKAGE = Path(wanlab.__file__).parent

# A module imports only names to its left.
ORDER = """
errors registry files workspace notebook spec runs compat catalog audio video media settings weights
sites kernels attention models caches lora memory
sampling guidance preprocess postprocess watch stages windows inline figures details result pipeline jobs
probe metrics study shapes sweeps reports widgets doctor cli
""".split()
LIGHT = "__init__ errors registry files workspace notebook spec runs compat catalog settings".split()
HEAVY = {"torch", "diffusers", "transformers", "av", "matplotlib", "mediapy", "ipywidgets", "papermill", "jupyterlab"}

# Reports what importing did: sockets, folders and the environment are watched from before the first import.
WATCH = """
import json, os, pkgutil, sys, time
events = []
sys.addaudithook(lambda event, args: events.append(f"{event} {args[0]!r}") if event in WATCHED else None)
before = dict(os.environ)
start = time.perf_counter()
import wanlab
seconds = time.perf_counter() - start
modules = sorted(sys.modules)
if EVERYTHING:
    for module in pkgutil.walk_packages(wanlab.__path__, "wanlab."):
        __import__(module.name)
    names = {name: type(getattr(wanlab, name)).__name__ for name in wanlab.__all__}
else:
    names = {}
print(json.dumps({"seconds": seconds, "modules": modules, "events": events, "names": names,
                  "environment": sorted(k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k))}))
"""


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "assets" not in p.parts)


def top(path: Path) -> str:
    """The first-level module of `wanlab` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "wanlab":
                yield from ((node.lineno, f"wanlab.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def watch(folder: Path, watched: set[str], everything: bool = False) -> dict:
    """Run `WATCH` in a fresh interpreter whose home and working folder are `folder`."""
    code = f"WATCHED, EVERYTHING = {watched!r}, {everything!r}\n{WATCH}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "MPL"))}
    environment |= {"HOME": str(folder), "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_every_module_has_a_place_in_the_order() -> None:
    assert {top(path) for path in sources()} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize(
    "path", [p for p in sources() if top(p) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path: Path) -> None:
    own, wrong = ORDER.index(top(path)), []
    for line, name in imports(path):
        root, _, rest = name.partition(".")
        if root == "experiments" or (root == "ipywidgets" and top(path) != "widgets"):
            wrong.append(f"line {line}: {name}")
        if root != "wanlab" or rest in {"", "__version__"}:
            continue
        other = rest.split(".")[0]
        if other not in ORDER:
            wrong.append(f"line {line}: {name} is not a module; import it from where it is defined")
        elif ORDER.index(other) > own:
            wrong.append(f"line {line}: {name} comes after {top(path)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy_at_the_top(name: str) -> None:
    for path in (p for p in sources() if top(p) == name):
        body = ast.parse(path.read_text()).body
        found = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
        found += [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
        assert not HEAVY & {f.split(".")[0] for f in found}, path


def test_import_is_quick_and_silent(tmp_path: Path) -> None:
    """At most 0.6 s, no torch, no socket, no folder, no environment variable; nothing appears at home or here."""
    runs = [watch(tmp_path, {"socket.__new__", "socket.connect", "os.mkdir", "subprocess.Popen"}) for _ in range(3)]
    assert min(run["seconds"] for run in runs) <= 0.6
    assert not HEAVY & set(runs[0]["modules"])
    assert runs[0]["events"] == []
    assert runs[0]["environment"] == []
    assert list(tmp_path.iterdir()) == []


def test_every_module_imports_and_no_public_name_is_a_module(tmp_path: Path) -> None:
    """All submodules first, as any user may; then every public name is still the function or class it was."""
    run = watch(tmp_path, {"socket.connect"}, everything=True)
    assert set(run["names"].values()) <= {"function", "type", "ABCMeta", "ModelMetaclass"}, run["names"]
    assert run["events"] == []
    assert not [p for p in tmp_path.rglob("*") if "wanlab" in p.name.lower()]
    assert not set(wanlab.__all__) & {module.name for module in pkgutil.iter_modules(wanlab.__path__)}


def test_modules_are_found_by_their_names() -> None:
    code = "import wanlab; wanlab.widgets.GeneratePanel; wanlab.media.MediaStore"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = wanlab.nonsense
    assert set(wanlab.__all__) <= set(dir(wanlab))


def unsafe(node: ast.AST) -> bool:
    """Whether a call can run code that came with a file."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    if name in {"eval", "exec", "pickle.load", "pickle.loads"}:
        return True
    return any(
        k.arg == "trust_remote_code" or (k.arg == "weights_only" and ast.unparse(k.value) != "True")
        for k in node.keywords
    )


@pytest.mark.parametrize("code", ["eval('1')", "pickle.load(f)", "f(weights_only=False)", "f(trust_remote_code=True)"])
def test_unsafe_calls_are_recognised(code: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(code)))


def test_no_unsafe_call_in_the_package() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if unsafe(node)
    ]
    assert not found, "\n".join(found)
