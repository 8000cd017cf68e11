"""ModelPicker without a browser: what it offers, what it says of a model, and that only a choice changes its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wanlab import catalog
from wanlab.errors import WanlabError
from wanlab.widgets import ModelPicker
from wanlab.widgets.picker import describe
from wanlab.workspace import find_workspace

HOSTILE = '<img src=x onerror="window.pwned=1">'


def test_what_is_here_comes_first_and_every_model_is_there() -> None:
    picker = ModelPicker()
    assert picker.value == "wan_tiny"
    assert {value for _, value in picker._models.options} == {row.id for row in catalog.catalogue()}
    assert "yes, " in picker._details.value
    assert ModelPicker("flux_dev").value == "flux_dev"
    with pytest.raises(WanlabError, match="Did you mean 'flux_dev'"):
        ModelPicker("flux_def")


def test_only_a_choice_changes_the_value() -> None:
    """Narrowing to a family and back, and looking at the disk again, keep the model; a cell may load what it hears."""
    picker, heard = ModelPicker(), []
    picker.observe(lambda change: heard.append(change["new"]), "value")
    picker._models.value = "wan_t2v_1_3b"
    assert heard == ["wan_t2v_1_3b"]
    for family in ("wan", "all families"):
        picker._family.value = family
    picker._again.click()
    assert heard == ["wan_t2v_1_3b"]
    assert "missing" in picker._details.value
    picker._family.value = "flux"
    assert picker._rows[picker.value].family == "flux"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    page = describe(next(row for row in catalog.catalogue() if row.id == "wan_t2v_1_3b"), find_workspace())
    assert "all of it" in page
    assert "832x480, 81 frames" in page


def test_a_definition_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = catalog.find("wan_tiny")
    hostile = definition.with_(title=HOSTILE, description=HOSTILE, aliases=[HOSTILE])
    monkeypatch.setattr(catalog, "find", lambda *_: hostile)
    [row] = [row for row in catalog.catalogue() if row.id == "wan_tiny"]
    changed: Any = type("Row", (), {**vars(row), "title": HOSTILE})
    page = describe(changed, find_workspace())
    assert "onerror" in page
    assert "<img" not in page
