"""What a definition says: one model, what to build, where its weights are, the settings it was trained for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wanlab.errors import WanlabError, shorten
from wanlab.spec.part import Part

SCHEMA = 1
StoredAs = Literal["float", "int8", "fp8", "gguf"]
_Repo = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class FileSource(Part):
    """One file, or the index of shards, of one component: one variant of it."""

    path: str = Field(min_length=1)
    """Name below a folder of checkpoints, and in `repo`; a user's own definition may give a full one, or `~/...`."""
    repo: _Repo | None = None
    """Repository on the hub that has it."""
    revision: str | None = None
    """Branch, tag or commit of `repo`; None is its default branch."""
    url: str | None = Field(default=None, pattern=r"^https://")
    """Where it is, when it is not on the hub."""
    stored_as: StoredAs = "float"
    """How its linear weights are stored."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of its floats; None is not known."""
    holds_modules: bool = False
    """Whether it has the weights of its component's modules already, so that those files are not read."""
    size: int | None = Field(default=None, ge=0)
    """Bytes."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @property
    def is_local(self) -> bool:
        """Whether the path names a place on this machine, not one below a folder of checkpoints."""
        return self.path.startswith("~") or Path(self.path).is_absolute()

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return self.path.rpartition("/")[2]

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        check_inside(self.path)
        return self


def check_inside(path: str) -> None:
    """Raise WanlabError for a path with `..` or control characters: it could lead out of the folder it is below."""
    if ".." in path.replace("\\", "/").split("/") or not path.isprintable():
        remedy = "Give a name below a folder of checkpoints, or the full path"
        raise WanlabError(f"The path {shorten(path, 80)} leads outside the workspace", remedy=remedy)


class ComponentSource(Part):
    """Files of one network."""

    variants: tuple[FileSource, ...] = Field(min_length=1)
    """The same weights, stored in several ways; `choose` picks one."""
    modules: tuple[Annotated[tuple[FileSource, ...], Field(min_length=1)], ...] = ()
    """More weights that are put into the network (VACE's blocks over a text-to-video one), each a list of variants."""


class WeightSource(Part):
    """Where a checkpoint's files are: a whole folder in diffusers layout, files for each component, or both.

    Whichever is on the disk is used, the folder first, in the order asset, folder, folders of checkpoints, hub's cache.
    """

    asset: str | None = None
    """Folder under the package's assets: weights that ship with wanlab."""
    folder: str | None = None
    """A local folder in diffusers layout."""
    repo: str | None = None
    """Repository on the Hugging Face hub, `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit of `repo`; None is its default branch."""
    files: tuple[str, ...] = ()
    """Glob patterns below the folder; each must match at least one file for the checkpoint to be complete, and where
    weights are in shards, all of them."""
    components: dict[str, ComponentSource] = Field(default_factory=dict)
    """Files by component: transformer, transformer_2, vae, text_encoder, image_encoder, tokenizer (tokenizer.json)."""

    @property
    def is_folder(self) -> bool:
        """Whether a whole folder is named."""
        return any((self.asset, self.folder, self.repo))


class LoraSource(FileSource):
    """A LoRA that belongs to the model."""

    multiplier: float | str = 1.0
    """Its strength; a text gives one for each phase of guidance (`0;1;0`)."""


class Definition(Part):
    """One model: what to build, where its weights are, and the settings it was trained for."""

    schema_version: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    id: str = Field(min_length=1, max_length=100, pattern=r"^[^/\\\x00-\x1f]+$")
    family: str
    title: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    """Other names: WanGP's id of the same model, the hub's repository."""
    base: str | None = None
    """Model that gives what this definition does not say; see `catalog.merged`."""
    visible: bool = True
    """Whether the catalogue lists it."""
    missing: str = ""
    """What wanlab lacks to run it, as a sentence; loading raises it."""
    architecture: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Component (transformer, vae, text_encoder, ...) -> keyword arguments of its diffusers or transformers config."""
    weights: WeightSource = WeightSource()
    loras: tuple[LoraSource, ...] = ()
    """LoRAs that are part of the model."""
    preload: tuple[FileSource, ...] = ()
    """More files that the model needs, fetched with its weights."""
    spec: dict[str, Any] = Field(default_factory=dict)
    """Defaults of a GenerationSpec for this checkpoint, nested by part."""
    constants: dict[str, Any] = Field(default_factory=dict)
    """Numbers that methods need for this checkpoint."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the values above come from, by dotted name."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """What another program's file says and wanlab does not read; kept as it was."""

    @classmethod
    def of(cls, data: Mapping[str, Any], origin: str = "") -> Definition:
        """Check a dictionary. Raises `WanlabError` that names `origin`, the key and the nearest legal key."""
        schema = data.get("schema", SCHEMA)
        if isinstance(schema, int) and schema > SCHEMA:
            remedy = "A newer wanlab wrote it: update wanlab"
            raise WanlabError(f"{origin or 'The definition'} has schema {schema}, not {SCHEMA}", remedy=remedy)
        return cls.parse(data, origin)

    def __repr__(self) -> str:
        return f"Definition({self.id!r}, family={self.family!r}, title={self.title!r})"
