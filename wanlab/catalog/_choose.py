"""Which of a component's files is read, when several hold the same weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import get_args

from wanlab.catalog._definition import Definition, FileSource, StoredAs
from wanlab.errors import WanlabError, unknown

_ORDER = {"int8": ("int8", "fp8"), "fp8": ("fp8", "int8"), "gguf": ("gguf",), "float": ("float",)}


def choose(
    variants: Sequence[FileSource],
    stored_as: str = "auto",
    dtype: str | None = None,
    present: Collection[FileSource] = (),
) -> FileSource:
    """The variant to read: of the wanted kind, of those the ones in `present`, of those the first of the wanted dtype.

    stored_as: "auto" takes the first kind that is in `present`, floats first. "int8" and "fp8" stand in for each other;
    a component that has neither gives its first variant (by convention the 16-bit one), because a VAE or CLIP often
    comes in floats only. `check_stored_as` says whether a model has the kind at all.
    Raises WanlabError for a kind that does not exist.
    """
    _check_word(stored_as)
    if len(variants) == 1:
        return variants[0]
    here = [v for v in variants if v in present]
    if stored_as == "auto":
        kinds = dict.fromkeys(["float", *(v.stored_as for v in variants)])
        kind = next((k for k in kinds if any(v.stored_as == k for v in here)), "float")
        order: tuple[str, ...] = (kind,)
    else:
        order = _ORDER[stored_as]
    kind = next((k for k in order if any(v.stored_as == k for v in variants)), variants[0].stored_as)
    fitting = [v for v in variants if v.stored_as == kind]
    fitting = [v for v in fitting if v in here] or fitting
    return next((v for v in fitting if v.dtype is not None and v.dtype == dtype), fitting[0])


def check_stored_as(definition: Definition, stored_as: str) -> None:
    """Raise WanlabError where the model does not come in the wanted kind: nothing else is read instead.

    Its first transformer decides, which is most of it; without one, any of its files. Whole folders hold floats.
    """
    _check_word(stored_as)
    components = definition.weights.components
    transformer = components.get("transformer")
    deciding = components.values() if transformer is None else [transformer]
    floats = ["float"] if definition.weights.is_folder else []
    kinds = dict.fromkeys([*floats, *(v.stored_as for c in deciding for v in c.variants)])
    if stored_as != "auto" and kinds and stored_as not in kinds:
        what = "file" if transformer is None else "transformer"
        raise WanlabError(f"{definition.id} has no {what} that is stored as {stored_as}", choices=["auto", *kinds])


def _check_word(stored_as: str) -> None:
    words = ("auto", *get_args(StoredAs))
    if stored_as not in words:
        raise unknown("kind of stored weights", stored_as, words)
