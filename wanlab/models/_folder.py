"""Is this folder the checkpoint that the definition means? Read from its JSON files alone, before any weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.errors import WanlabError, shorten
from wanlab.files import read_json
from wanlab.spec import plain

if TYPE_CHECKING:
    from wanlab.catalog import Definition
    from wanlab.models._networks import Networks
    from wanlab.weights import Checkpoint

EXPERTS = ("transformer", "transformer_2")
INDEX = "model_index.json"
_NO_EFFECT = {"dropout", "dropout_rate", "tie_word_embeddings", "num_decoder_layers", "decoder_start_token_id"}
"""Keys of a text encoder's configuration that say nothing about what it computes here; saved copies differ in them."""


def read_index(family: type[Networks], definition: Definition, checkpoint: Checkpoint) -> dict[str, Any]:
    """Components by name: as a folder's model_index.json lists them, or those that were gathered from single files.

    Raises WanlabError unless they are of the family's pipeline and classes, and those that the definition describes.
    """
    folder = checkpoint.folder
    if folder is None:
        for name in (*family.encoders, EXPERTS[0], "vae"):
            if name not in checkpoint.components:
                remedy = f"Name its file under weights.components.{name}"
                raise WanlabError(f"The definition of {definition.id} has no file for the {name}", remedy=remedy)
        return {name: [] for name in checkpoint.components}
    index = _object(folder / INDEX)
    if (held := index.get("_class_name")) not in family.pipelines:
        raise WanlabError(
            f"{folder} holds a {held}, and the family {family.family!r} reads a {' or '.join(family.pipelines)}",
            remedy=f"Correct the family or the weights' folder in the definition of {definition.id}",
        )
    present = {name: entry for name, entry in index.items() if not name.startswith("_") and entry != [None, None]}
    for name in dict.fromkeys((*family.encoders, EXPERTS[0], "vae", *definition.architecture)):
        if name not in present:
            raise WanlabError(
                f"{folder / INDEX} lists no {name}, which {definition.id} needs", remedy=_remedy(definition)
            )
    optional = (*family.optional_encoders, *EXPERTS)
    for name in (*family.encoders, *(n for n in optional if n in present), "vae"):
        _check_class(folder / INDEX, name, present[name], family.component_class(name).__name__)
    if definition.architecture and (more := [n for n in EXPERTS if n in {*present} - {*definition.architecture}]):
        raise WanlabError(
            f"{folder / INDEX} lists {more[0]}, which {definition.id} does not have", remedy=_remedy(definition)
        )
    return present


def check_architecture(model: Networks) -> None:
    """Raise WanlabError where a component's configuration differs from the definition's architecture.

    A transformers configuration is compared in the keys that it holds: what it leaves out shows in the weights' shapes.
    """
    for component, architecture in model.definition.architecture.items():
        if component not in model.parts:
            continue
        found = model.config(component)
        for key, value in architecture.items():
            if key in found and key not in _NO_EFFECT and plain(found[key]) != plain(value):
                raise WanlabError(
                    f"{model.parts[component].component.place} says {key} = {shorten(found[key], 60)}, "
                    f"and {component} of {model.id} has {shorten(value, 60)}",
                    remedy=_remedy(model.definition),
                )


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise WanlabError(f"{path} holds no JSON object", remedy="Download this file again")
    return found


def _check_class(path: Path, name: str, entry: Any, wanted: str) -> None:
    held = entry[-1] if isinstance(entry, list) and entry else entry
    if held != wanted:
        raise WanlabError(
            f"{path} lists {shorten(held)} as {name}, which is read as {wanted}",
            remedy="The folder holds another model: name the right folder in the definition",
        )


def _remedy(definition: Definition) -> str:
    source = f" (https://huggingface.co/{definition.weights.repo})" if definition.weights.repo else ""
    return (
        f"The folder holds another checkpoint: put {definition.id}'s own files{source} there, or give this one a "
        "definition with its own id"
    )
