"""What a panel is made of: its model, a spec of this model, the folder of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wanlab import catalog, notebook
from wanlab.errors import WanlabError, shorten
from wanlab.spec import GenerationSpec


def checked_model(model: Any) -> Any:
    """A loaded model. Raises WanlabError for anything else."""
    from wanlab.models import Model

    if isinstance(model, Model):
        return model
    raise WanlabError(
        f"{shorten(model)} is no model", remedy='Pass what wanlab.load(...) returns, or an id: "wan_tiny"'
    )


def checked_spec(spec: Any, definition: catalog.Definition) -> GenerationSpec:
    """The spec, if it is one and of this model. Raises WanlabError for anything else."""
    if not isinstance(spec, GenerationSpec):
        raise WanlabError(
            f"{shorten(spec)} is not a spec", remedy="Name what it is, prompt=..., or pass a spec: model.spec(...)"
        )
    if spec.model not in (definition.id, *definition.aliases):
        raise WanlabError(
            f"The spec is for model {spec.model!r} and the panel for {definition.id!r}",
            remedy=f"GeneratePanel({spec.model!r}, spec)",
        )
    return spec.with_(model=definition.id)


def beside_notebook() -> Path | None:
    """runs/ in the notebook's folder; None where no notebook is known."""
    file = notebook.notebook_file()
    return None if file is None else file.parent / "runs"
