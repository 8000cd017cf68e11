"""What is installed: pins, versions, licence, and a wheel that carries everything `wanlab.files.resource` finds."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wanlab

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]
PINNED = {canonicalize_name(pin.name): pin for pin in PINS}
NEEDED = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def test_every_pin_is_one_exact_version() -> None:
    assert len(PINNED) == len(PINS)
    for pin in PINS:
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(pin.specifier)), pin
        assert pin.url is None
    assert str(PINNED["torch"].specifier) == "==2.13.0"
    assert "torchvision" not in PINNED


@pytest.mark.parametrize("need", NEEDED, ids=lambda need: need.name)
def test_pins_satisfy_the_package(need: Requirement) -> None:
    pin = PINNED[canonicalize_name(need.name)]
    assert need.specifier.contains(str(pin.specifier).removeprefix("=="))


def test_one_version() -> None:
    assert PROJECT["version"] == wanlab.__version__
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_no_file_is_too_large() -> None:
    """Weights are shards under 15 MB, so that any host of repositories takes them."""
    folders = ("wanlab", "defaults", "notebooks", "tests", "experiments")
    large = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file() and p.stat().st_size >= 15_000_000]
    assert not large


def test_wheel_carries_what_the_checkout_has(tmp_path: Path) -> None:
    (artifact,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(artifact) as wheel:
        files = set(wheel.namelist())
    for folder in ("defaults", "notebooks"):
        here = {p.name for p in (ROOT / folder).iterdir() if p.suffix in {".json", ".ipynb"}}
        assert {f"wanlab/_data/{folder}/{name}" for name in here} <= files
    package = {p for p in (ROOT / "wanlab").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {str(p.relative_to(ROOT)) for p in package} <= files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not [name for name in files if name.startswith(("tests", "experiments")) or "__pycache__" in name]


def test_readme_names_only_what_exists() -> None:
    """Every path, command and public name that the README mentions is there."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert not [link for link in links if not (ROOT / link).exists()]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= targets
    assert set(re.findall(r"\bwanlab\.([A-Za-z_]+)\(", text)) <= set(wanlab.__all__)
