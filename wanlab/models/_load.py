"""`load`: from a name, a definition or a spec to a model whose parts are read when they are first needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wanlab import catalog, weights
from wanlab.errors import WanlabError
from wanlab.models.base import Model
from wanlab.registry import FAMILIES
from wanlab.spec import GenerationSpec


def load(what: Any, device: str | torch.device = "auto", **weights_changes: Any) -> Model:
    """Find a model's weights and make it ready; networks are read from disk by the first stage that uses them.

    `what`: an id or alias of the catalogue, a definition (dict or JSON path), or a GenerationSpec. `device`: "auto" is
    the GPU if there is one. `weights_changes`: leaves of the spec's weights part, e.g. dtype="float32".
    Raises WanlabError for an unknown model or setting, and for weights that are not there, naming files and folder.
    """
    definition = catalog.find(what)
    family: type[Model] = FAMILIES.get(definition.family)
    base = what if isinstance(what, GenerationSpec) else GenerationSpec.of({**definition.spec, "model": definition.id})
    legal = type(base.weights).model_fields
    if wrong := sorted(set(weights_changes) - set(legal)):
        raise WanlabError(f"load takes no {wrong[0]!r}", choices=legal, remedy="Other settings belong to model.spec()")
    chosen = base.with_(**weights_changes).weights
    return family(definition, weights.locate(definition), pick_device(device), chosen)


def pick_device(device: str | torch.device) -> torch.device:
    """The device meant by a word; raises WanlabError for one that is not there."""
    word = str(device)
    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise WanlabError(f"Unknown device {word!r}", choices=("auto", "cpu", "cuda", "cuda:1")) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise WanlabError(f"There is no {word} here", remedy="Use device='auto' or 'cpu'")
    return found


def skeleton(what: Any, component: str) -> nn.Module:
    """A component at real size without memory for its weights (device "meta"), from the definition alone.

    Raises WanlabError for a component that the definition does not describe.
    """
    definition = catalog.find(what)
    if component not in definition.architecture:
        raise WanlabError(f"{definition.id} describes no {component!r}", choices=definition.architecture)
    family: type[Model] = FAMILIES.get(definition.family)
    cls, config = family.component_class(component), definition.architecture[component]
    with torch.device("meta"):
        return cls(cls.config_class(**config)) if hasattr(cls, "config_class") else cls(**config)
