"""The models of a sweep, each loaded once, with one at a time in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from wanlab.catalog import Definition
from wanlab.errors import WanlabError, shorten
from wanlab.models import Model, load
from wanlab.spec import GenerationSpec
from wanlab.stages import encode_conditions, encode_text
from wanlab.sweeps._keys import conditions_key, text_key

_TEXTS, _CONDITIONS = 64, 8  # encodings that are kept of the present model


class Models:
    """Loaded models by what specs ask for, and what was encoded with the present one."""

    def __init__(self, given: Sequence[Model] = (), device: str = "auto") -> None:
        for model in given:
            if not isinstance(model, Model):
                raise WanlabError(
                    f"{shorten(model)} is not a loaded model", remedy="Pass what wanlab.load(...) returns"
                )
        self._given, self._device = tuple(given), device
        self._definitions: dict[str, Definition] = {}
        self._loaded: dict[tuple[str, str], Model] = {}
        self._present: Model | None = None
        self._encoded: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, spec: GenerationSpec) -> Model:
        """The model that a spec asks for: one that was given if it is that, else loaded; reads headers only.

        Raises WanlabError as `wanlab.load` does.
        """
        for model in self._given:
            if spec.model in (model.id, *model.definition.aliases) and _agrees(model, spec):
                return model
        key = (spec.model, spec.weights.model_dump_json())
        if key not in self._loaded:
            self._loaded[key] = load(
                self._definitions.get(spec.model, spec.model), self._device, **spec.weights.model_dump()
            )
        return self._loaded[key]

    def define(self, name: str, definition: Definition) -> None:
        """Say what specs mean by a name, instead of what the catalogue has; a model of another definition is let go."""
        if self._definitions.get(name) == definition:
            return
        self._definitions[name] = definition
        for key in [key for key in self._loaded if key[0] == name]:
            model = self._loaded.pop(key)
            model.unload()
            if model is self._present:
                self._present = None
                self._encoded.clear()

    def use(self, model: Model) -> None:
        """Say which model runs now: the one before gives its memory back, unless it was given by the user."""
        before = self._present
        if before is model:
            return
        self._encoded.clear()
        if before is not None and before not in self._given:
            before.unload()
        self._present = model

    def text(self, model: Model, specs: Sequence[GenerationSpec]) -> Any:
        """Text embeddings for specs of one text, the negative prompt's if the guidance of one uses it."""
        number, most = max(((len(model.count_tokens(spec)), spec) for spec in specs), key=lambda pair: pair[0])
        return self._kept(("text", text_key(most), number), _TEXTS, lambda: encode_text(model, most))

    def conditions(self, model: Model, spec: GenerationSpec) -> Any:
        """What else steers the network."""
        return self._kept(("conditions", conditions_key(spec)), _CONDITIONS, lambda: encode_conditions(model, spec))

    def _kept(self, key: tuple[Hashable, ...], most: int, encode: Any) -> Any:
        if key not in self._encoded:
            self._encoded[key] = encode()
        self._encoded.move_to_end(key)
        found = [other for other in self._encoded if other[0] == key[0]]  # type: ignore[index]
        for old in found[:-most]:
            del self._encoded[old]
        return self._encoded[key]


def _agrees(model: Model, spec: GenerationSpec) -> bool:
    """Whether a loaded model's weights are what the spec asks for."""
    asked, has = spec.weights, model.default_spec.with_(model=model.id)
    try:
        model.resolve(has.with_(weights=asked.model_dump()))
    except WanlabError:
        return False
    return True
