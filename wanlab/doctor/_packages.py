"""What wanlab asks of other packages, from the checkout or the installed metadata, and which versions are here."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def required() -> list[Requirement]:
    """Packages that wanlab always needs."""
    return _requirements().get("", [])


def optional() -> dict[str, list[Requirement]]:
    """Extra -> its packages, without the one for tests."""
    return {extra: needs for extra, needs in sorted(_requirements().items()) if extra not in ("", "test")}


def installed(need: Requirement) -> str | None:
    """The version that is here, or None."""
    try:
        return metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return None


def is_met(need: Requirement) -> bool:
    """Whether a version that satisfies it is here."""
    version = installed(need)
    return version is not None and need.specifier.contains(version, prereleases=True)


def _requirements() -> dict[str, list[Requirement]]:
    """Extra -> requirements, "" for those without one. A checkout's own file: an editable install's may be old."""
    from packaging.requirements import Requirement

    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text("utf-8"))["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}
    groups: dict[str, list[Requirement]] = {}
    extras = metadata.metadata("wanlab").get_all("Provides-Extra") or []
    for need in map(Requirement, metadata.requires("wanlab") or []):
        of = [""] if need.marker is None else [e for e in extras if need.marker.evaluate({"extra": e})]
        for extra in of:
            groups.setdefault(extra, []).append(need)
    return groups
