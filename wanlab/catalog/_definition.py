"""What a definition says: one model, what to build, where its weights are, the settings it was trained for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from wanlab.errors import WanlabError, shorten
from wanlab.spec.part import Part

SCHEMA = 1
StoredAs = Literal["float", "int8", "fp8", "gguf"]
_MAX_NAME = 240  # bytes; file systems have 255, and endings are put to some
_MAX_PATH = 1024  # bytes; file systems have 4096, folders that it is below included


def check_path(path: str) -> None:
    """Raise WanlabError for a path that no file system takes, or that starts with another user's home."""
    parts = path.replace("\\", "/").split("/")
    if len(path.encode(errors="replace")) > _MAX_PATH or any(
        len(p.encode(errors="replace")) > _MAX_NAME for p in parts
    ):
        remedy = f"Give names of at most {_MAX_NAME} bytes and {_MAX_PATH} in all"
        raise WanlabError(f"The path {shorten(path, 80)} is too long", remedy=remedy)
    if not path.isprintable():
        raise WanlabError(f"The path {shorten(path, 80)} holds control characters", remedy="Leave them out")
    if parts[0].startswith("~") and parts[0] != "~":
        raise WanlabError(f"The path {shorten(path, 80)} is in a home that is not yours", remedy="Give the full path")


def check_inside(path: str) -> None:
    """Raise WanlabError for what `check_path` refuses, and for a path with `..`: it could lead out of its folder."""
    check_path(path)
    if ".." in path.replace("\\", "/").split("/"):
        remedy = "Give a name below a folder of checkpoints, or the full path"
        raise WanlabError(f"The path {shorten(path, 80)} leads outside the workspace", remedy=remedy)


def _check_below(path: str) -> str:
    """A path that is always below another one: neither empty nor absolute."""
    check_inside(path)
    if path in ("", ".") or path.startswith(("/", "\\", "~")):
        raise WanlabError(f"The path {shorten(path, 80)} leads outside the workspace", remedy="Give a name below it")
    return path


def _check_pattern(pattern: str) -> str:
    _check_below(pattern)
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise WanlabError(f"The pattern {shorten(pattern, 80)} is none", remedy="** stands for folders, alone: a/**/b")
    return pattern


_Below = Annotated[str, AfterValidator(_check_below)]
_Repo = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}$"), AfterValidator(_check_below)]


class FileSource(Part):
    """One file, or the index of shards, of one component: one variant of it."""

    path: str = Field(min_length=1)
    """Name below a folder of checkpoints, and in `repo`; a user's own definition may give a full one, or `~/...`."""
    repo: _Repo | None = None
    """Repository on the hub that has it."""
    revision: _Below | None = None
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


class ComponentSource(Part):
    """Files of one network."""

    variants: tuple[FileSource, ...]
    """The same weights, stored in several ways; `choose` picks one."""
    modules: tuple[tuple[FileSource, ...], ...] = ()
    """More weights that are put into the network (VACE's blocks over a text-to-video one), each a list of variants."""

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if not all((self.variants, *self.modules)):
            raise WanlabError("A component or a module has no file", remedy="Give at least one variant of each")
        return self


class WeightSource(Part):
    """Where a checkpoint's files are: a whole folder in diffusers layout, files for each component, or both.

    Whichever is on the disk is used, the folder first, in the order asset, folder, folders of checkpoints, hub's cache.
    """

    asset: _Below | None = None
    """Folder under the package's assets: weights that ship with wanlab."""
    folder: str | None = None
    """A local folder in diffusers layout."""
    repo: _Repo | None = None
    """Repository on the Hugging Face hub, `owner/name`."""
    revision: _Below | None = None
    """Branch, tag or commit of `repo`; None is its default branch."""
    files: tuple[Annotated[str, AfterValidator(_check_pattern)], ...] = ()
    """Glob patterns below the folder; each must match at least one file for the checkpoint to be complete, and where
    weights are in shards, all of them."""
    components: dict[str, ComponentSource] = Field(default_factory=dict)
    """Files by component: transformer, transformer_2, vae, text_encoder, image_encoder, tokenizer (tokenizer.json)."""

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        check_path(self.folder or "")
        return self

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
    """Model that gives what this definition does not say (`catalog.merged`); None once `find` has filled that in."""
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

    @model_validator(mode="after")
    def _names_files(self) -> Self:
        _check_below(self.id)
        return self

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

    __str__ = __repr__
