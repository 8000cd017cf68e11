"""What this installation can do here, found by trying it: `wanlab doctor`, or in a notebook

    from wanlab.doctor import examine
    examine()

Reads the machine and writes only into temporary folders. Imports nothing but the standard library until a check needs
it: what is broken is what it is there to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from wanlab.doctor import _machine, _methods, _notebooks, _proof, _workspace
from wanlab.doctor._report import Fact, Report, Section, failure

__all__ = ["Fact", "Report", "Section", "examine", "sections"]


def examine(generate: bool = True) -> Report:
    """All sections; with `generate`, a short generation of wan_tiny is the last one. Takes 5 to 20 seconds.

    Raises nothing: what goes wrong is a fact of the report.
    """
    return Report(tuple(sections(generate)))


def sections(generate: bool = True) -> Iterator[Section]:
    """The sections one by one, as soon as each is known."""
    checks: dict[str, Callable[[], Iterable[Fact]]] = {
        "Installation": _machine.installation,
        "Device": _machine.device,
        "Attention backends": _methods.attention,
        "Optional packages": _methods.extras,
        "Video and pictures": _methods.video,
        "Notebooks": _notebooks.notebooks,
        "Workspace": _workspace.workspace,
        "Models": _workspace.models,
    }
    if generate:
        checks["Proof"] = _proof.proof
    for title, check in checks.items():
        yield _section(title, check)


def _section(title: str, check: Callable[[], Iterable[Fact]]) -> Section:
    """Run one check; what it raises is its last fact."""
    facts: list[Fact] = []
    try:
        facts.extend(check())  # keeps what came before an error
    except Exception as error:  # noqa: BLE001 - one broken package must not hide what the other sections find
        facts.append(failure(error))
    return Section(title, tuple(facts))
