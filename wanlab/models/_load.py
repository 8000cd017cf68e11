"""`load`: from a name, a definition or a spec to a model whose parts are read when they are first needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from wanlab import catalog, weights
from wanlab.errors import WanlabError, shorten
from wanlab.files import read_json
from wanlab.models._folder import INDEX
from wanlab.models.base import Model
from wanlab.registry import FAMILIES
from wanlab.spec import GenerationSpec
from wanlab.spec.parts import WeightsSpec


def load(
    what: Any,
    device: str | torch.device = "auto",
    *,
    download: bool = False,
    allow_pickle: bool = False,
    **weights_changes: Any,
) -> Model:
    """Find a model's weights and make it ready; networks are read from disk by the first stage that uses them.

    `what`: an id or alias of the catalogue, a definition (dict or JSON path), or a GenerationSpec. `device`: "cpu",
    "cuda", "cuda:1", or "auto", the GPU if there is one. `download` fetches what is not on this machine. `allow_pickle`
    reads files of torch.save too, by the reader that runs no code from them. `weights_changes`: leaves of the spec's
    weights part, e.g. dtype="float32". The user's own defaults of the model (`configs/<id>.json`) lie over its own.
    Raises WanlabError for an unknown model or setting, and for weights that are not there, naming files and folder,
    and for a folder that holds another checkpoint than the one named.
    """
    definition = _find(what)
    if definition.missing:
        raise WanlabError(
            f"{definition.id} cannot run yet. {definition.missing}", remedy="wanlab.catalogue() lists all"
        )
    family: type[Model] = FAMILIES.get(definition.family)
    defaults, chosen = _settings(what, definition, weights_changes)
    checkpoint = weights.locate(
        definition,
        stored_as=chosen.stored_as,
        dtype=chosen.dtype,
        download=download,
        allow_pickle=allow_pickle,
    )
    model = family(definition, checkpoint, pick_device(device), chosen)
    model.defaults = defaults
    return model


def describe(what: Any, *, device: str | torch.device = "cpu", **weights_changes: Any) -> Model:
    """A model of a definition without any weights: it resolves specs and counts, and cannot run.

    `what`, `device` and `weights_changes` as for `load`; a definition that cannot run yet may be described too. Reads
    no file but definitions and the user's defaults. Whatever needs a network raises WanlabError.
    Raises WanlabError for a family that is not there, and for a definition whose architecture lacks a part.
    """
    definition = _find(what)
    family: type[Model] = FAMILIES.get(definition.family)
    defaults, chosen = _settings(what, definition, weights_changes)
    catalog.check_stored_as(definition, chosen.stored_as)
    place = Path(f"the definition of {definition.id}")
    parts = {name: weights.Component(name, (), config, place) for name, config in definition.architecture.items()}
    model = family(definition, weights.Checkpoint(definition.id, parts), pick_device(device), chosen)
    model.stored_as = _stored_as(definition, chosen.stored_as)
    model.defaults = defaults
    return model


def _stored_as(definition: catalog.Definition, word: str) -> str:
    """How the transformer's weights are stored of which a word would be loaded, by the definition."""
    source = definition.weights.components.get("transformer")
    return "float" if source is None else catalog.choose(source.variants, word).stored_as


def _settings(
    what: Any, definition: catalog.Definition, weights_changes: dict[str, Any]
) -> tuple[dict[str, Any], WeightsSpec]:
    """The defaults of a model's specs, and the choice of weights to load it with."""
    defaults = catalog.user_defaults(definition)
    base = what if isinstance(what, GenerationSpec) else GenerationSpec.of({**defaults, "model": definition.id})
    legal = type(base.weights).model_fields
    if wrong := sorted(set(weights_changes) - set(legal)):
        raise WanlabError(f"load takes no {wrong[0]!r}", choices=legal, remedy="Other settings belong to model.spec()")
    if isinstance(what, GenerationSpec) or weights_changes:  # the user's own choice of weights is not what was loaded
        defaults = {**defaults, "weights": dict(definition.spec.get("weights", {}))}
    return defaults, base.with_(**weights_changes).weights


def _find(what: Any) -> catalog.Definition:
    """`catalog.find`, with an answer for who passes a checkpoint's folder."""
    try:
        return catalog.find(what)
    except WanlabError:
        if isinstance(what, str | Path) and (folder := Path(what).expanduser()).is_dir():
            raise _folder_given(folder) from None
        raise


def _folder_given(folder: Path) -> WanlabError:
    """A folder alone has neither an id nor default settings: show the definition that makes it a model."""
    names = FAMILIES.names()
    index = folder / INDEX
    listed = read_json(index) if index.is_file() else {}
    held = listed.get("_class_name") if isinstance(listed, dict) else None
    own = {name: vars(FAMILIES.get(name)).get("pipelines", ()) for name in names}  # not those of the class it extends
    family = next((name for name in names if held in own[name]), None)
    if family is None:
        return WanlabError(
            f"{folder} is a folder, and its {INDEX} names no pipeline that wanlab reads ({held})",
            choices=[pipeline for pipelines in own.values() for pipeline in pipelines],
            remedy="Give the id of a model, or a definition of a folder in diffusers layout",
        )
    wanted = {"id": folder.resolve().name, "family": family, "weights": {"folder": str(folder.resolve())}}
    return WanlabError(
        f"{folder} is a folder, which has no id and no default settings",
        remedy=f"Load a definition: wanlab.load({wanted}). Default settings go under its key 'spec'",
    )


def pick_device(device: str | torch.device) -> torch.device:
    """The device meant by a word; raises WanlabError for any but the CPU and the CUDA devices that are there."""
    word, num_gpus = str(device), torch.cuda.device_count()
    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = ["cuda", *(f"cuda:{i}" for i in range(num_gpus))] if num_gpus else []
    if word not in ("cpu", *gpus):
        raise WanlabError(f"There is no device {shorten(word)} for a model here", choices=("auto", "cpu", *gpus))
    return torch.device(word)


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
