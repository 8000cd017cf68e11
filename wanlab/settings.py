"""Settings of a generation from a file that wanlab or WanGP wrote, as a spec and as WanGP's settings.

>>> settings = wanlab.open_settings("2025-08-12_seed7_a-kite.mp4")
>>> settings.spec                              # of our model, where the catalogue knows WanGP's id
>>> settings.not_yet                           # what WanGP did and a spec does not say: {WanGP's key: what is lacking}
>>> settings.with_(seed=8).save("kite.json", form="wangp")
"""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import wanlab
from wanlab import catalog, media
from wanlab.compat import Attachment, attachments, baseline, media_leaves, migrate, stamped, wangp_model
from wanlab.compat.documents import KIND, Document, read_document
from wanlab.compat.letters import ImagePrompt
from wanlab.compat.mapping import Context, get, lost, not_yet, put, unknown_keys
from wanlab.compat.migrations import check_kinds
from wanlab.compat.models import model_ids
from wanlab.errors import WanlabError, shorten
from wanlab.files import atomic_write
from wanlab.runs import RUN_JSON
from wanlab.spec import GenerationSpec, MediaRef
from wanlab.spec.part import plain

SCHEMA = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema n -> pure function that returns the same document, as `save` writes it, in schema n + 1."""

Form = Literal["wanlab", "wangp"]


@dataclass(frozen=True)
class Settings:
    """A spec and, if it came from WanGP, all that WanGP's settings say beside it."""

    spec: GenerationSpec
    wangp: Mapping[str, Any] | None = None
    """WanGP's settings under its newest keys; None for a file of wanlab's own. `settings_version` is the file's."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `wangp` that WanGP does not have; they are written again as they are."""
    not_yet: Mapping[str, str] = field(default_factory=dict)
    """Keys of `wangp` that change WanGP's result and not ours -> what is lacking. They are written again, too."""
    attachments: Mapping[str, tuple[Attachment, ...]] = field(default_factory=dict)
    """Files that `wangp` names, by its key; a settings file does not hold them."""

    @classmethod
    def of(cls, given: GenerationSpec | Mapping[str, Any], *, model: str | None = None) -> Settings:
        """Settings of a spec, or of WanGP's settings of any version; `model` names the model in place of theirs.

        Raises WanlabError for values that a spec cannot have. Unlike `open_settings` it does not warn.
        """
        if isinstance(given, GenerationSpec):
            return cls(given)
        return cls._of_migrated(migrate(given if model is None else {**given, "model_type": _wangp_id(model)}))

    @classmethod
    def _of_migrated(cls, settings: Mapping[str, Any], spec: GenerationSpec | None = None) -> Settings:
        context, remark = _context(settings)
        spec = get(settings, context) if spec is None else spec
        taken = _taken(settings, spec)
        return cls(
            spec=spec,
            wangp=settings,
            kept=unknown_keys(settings),
            not_yet={key: why for key, why in (remark | not_yet(settings, context, spec)).items() if key not in taken},
            attachments=attachments(settings),
        )

    @property
    def media(self) -> dict[str, Any]:
        """The spec's media settings that the attachments are: `Attachment`s by leaf, and `keyframe_positions`.

        Put them into the spec as files that are there: `with_(image="…/" + settings.media["image"].path)`.
        """
        return media_leaves(self.wangp or {}, self.spec.size.num_frames)

    def with_(self, **changes: Any) -> Settings:
        """The same with some settings of the spec changed, in `wangp` too; a `seed` takes the place of a random one."""
        spec = self.spec.with_(**changes)
        if self.wangp is None:
            return Settings(spec)
        settings = dict(self.wangp)
        if spec.model != self.spec.model:
            settings = {key: value for key, value in settings.items() if key not in _OF_MODEL}
            settings["model_type"] = _wangp_id(spec.model)
        return self._of_migrated(put(spec, settings, _context(settings)[0], set(_leaves(changes))), spec)

    def to_wangp(self) -> dict[str, Any]:
        """WanGP's settings: those of the file with what was changed in the spec, or all of them for a spec.

        What came from WanGP and was not changed is `compat.migrate` of it, exactly. One warning tells what decides the
        result and WanGP does not have, and which pictures and videos are to be chosen there: it asks for first and last
        frames. Raises WanlabError for a model that it does not have.
        """
        settings = self._new() if self.wangp is None else dict(self.wangp)
        context = _context(settings)[0]
        missing = lost(self.spec, settings, context)
        flat = self.spec.flat()
        files = {leaf: names for name in missing if (names := _files(flat.get(leaf := name.rpartition(".")[2])))}
        missing = [name for name in missing if name.rpartition(".")[2] not in files]
        texts = [f"WanGP has no setting for {', '.join(missing)} as the spec has it"] if missing else []
        if files:
            listed = ", ".join(f"{leaf} ({names})" for leaf, names in files.items())
            texts.append(f"Pictures and videos are not written, choose them in WanGP: {listed}")
            asked = [(word, letter) for word, letter in _LETTERS.items() if word in files]
            allowed = "SE" if context.model.starts_from is None else context.model.starts_from
            letters = str(settings.get("image_prompt_type") or "")
            letters += "".join(c for _, c in asked if c in allowed and c not in letters)
            settings["image_prompt_type"] = letters
        if texts:
            _tell("; ".join(texts))
        return settings

    def _new(self) -> dict[str, Any]:
        maker = f"WanGP settings written by wanlab {wanlab.__version__}"
        settings = stamped({**baseline(), "type": maker, "model_type": _wangp_id(self.spec.model)})
        context = _context(settings)[0]
        return put(self.spec, settings, context, set(GenerationSpec(model="-").flat()))

    def save(self, path: str | Path, form: Form = "wanlab") -> Path:
        """Write a JSON: ours, which holds everything, or WanGP's, which it opens as its own newest.

        A file of WanGP's says which version its settings have, since some of WanGP's migrations change settings that
        went through them already; so into a video or picture they go as
        `compat.write_text(path, compat.stamped(settings.to_wangp()))`. Raises WanlabError as `to_wangp` does, and for
        a place that cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".json" or form not in ("wanlab", "wangp"):
            raise WanlabError(
                f"Cannot save settings as {path.name!r} in the form {shorten(form, 40)}",
                choices=['"x.json", form="wanlab"', '"x.json", form="wangp"'],
            )
        data = stamped(self.to_wangp()) if form == "wangp" else self._document()
        return atomic_write(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def _document(self) -> dict[str, Any]:
        wangp = {} if self.wangp is None else {"wangp": dict(self.wangp)}
        return {"kind": KIND, "schema": SCHEMA, "spec": self.spec.to_dict(), **wangp}

    def __repr__(self) -> str:
        parts = [repr(self.spec)]
        if self.wangp is not None:
            parts.append(f"from WanGP's {self.wangp.get('model_type', 'settings')}")
        parts += [f"{name}: {', '.join(values)}" for name, values in self._beside().items() if values]
        return f"Settings({'; '.join(parts)})"

    def _beside(self) -> dict[str, Mapping[str, Any]]:
        return {"not yet": self.not_yet, "unknown keys": self.kept, "attachments": self.attachments}


_STARTS = {"image_start": ("image", "first_frame"), "image_end": ("last_image", "last_frame")}
"""WanGP's keys of the files that a video starts and ends with -> our settings, and words that ask for them."""
_LETTERS = {leaf: ImagePrompt.of(word).code for leaf, word in _STARTS.values()}


def _taken(settings: Mapping[str, Any], spec: GenerationSpec) -> set[str]:
    """WanGP's keys that name files, or ask for them, which the spec has."""
    keys = {key: word for key, (leaf, word) in _STARTS.items() if getattr(spec.media, leaf) is not None}
    asked = set(ImagePrompt.parse(settings.get("image_prompt_type"))) - {"text"}
    return set(keys) | ({"image_prompt_type"} if asked and asked <= set(keys.values()) else set())


def _files(value: Any) -> str:
    """Names of the media that a setting holds, or an empty text."""
    refs = value if isinstance(value, tuple) else (value,)
    return ", ".join(ref.name or ref.kind for ref in refs if isinstance(ref, MediaRef))


def _tell(text: str) -> None:
    """Warn at the line outside wanlab that asked, each time: what is lost is lost every time."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "wanlab":
        frame = frame.f_back
    place = ("wanlab", 1) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    warnings.warn_explicit(text, UserWarning, *place)


def _with_starts(settings: Settings, folder: Path) -> Settings:
    """The same with the first and last frame that WanGP's settings name, where the files lie in `folder`, stored.

    Never from elsewhere: a document of another's must not put a file of this machine into the runs made from it.
    """
    missing: dict[str, str] = {}
    spec = settings.spec
    named = settings.media
    for key, (leaf, _) in _STARTS.items():
        if leaf not in named or getattr(spec.media, leaf) is not None:
            continue
        given = Path(named[leaf].path)
        places = (place.resolve() for place in (folder / given, folder / given.name))
        file = next((p for p in places if p.is_relative_to(folder.resolve()) and p.is_file()), None)
        if file is None:
            missing[key] = f"{given} is not beside the settings, give {leaf}"
            continue
        try:
            spec = spec.with_(**{leaf: file})
        except WanlabError as error:
            missing[key] = error.problem
    if spec is not settings.spec:
        settings = Settings._of_migrated(settings.wangp or {}, spec)
    return replace(settings, not_yet={**settings.not_yet, **missing}) if missing else settings


_OF_MODEL = ("model_type", "base_model_type", "model_filename", "modules")


def _leaves(changes: Mapping[str, Any]) -> Iterator[str]:
    """Flat names of the settings that changes name, in whatever way."""
    for key, value in changes.items():
        yield key.replace("__", ".").rpartition(".")[2]
        if isinstance(value, Mapping):
            yield from value


def open_settings(path: str | Path, *, model: str | None = None, task: int | None = None) -> Settings:
    """The settings in a file: of ours a spec's or `Settings.save`'s JSON, a run folder, run.json, mp4 or png; of
    WanGP's a settings JSON, an mp4, mov, mkv, png, jpg or webp, the JSON beside one, or a queue's zip or JSON.

    model: for presets, which name none, or to read the settings as another model's. task: which one of a queue, from 1.
    Warns once of keys that nobody knows and of those that a spec does not say yet. Raises WanlabError, which names the
    file, for one that is damaged, is not by wanlab or WanGP, or has values that a spec cannot have.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
        raise WanlabError(f"{shorten(path)} is no path", remedy='Give a file, such as "kite.mp4" or "kite.json".')
    path = Path(path)
    try:
        document = read_document(path, task)
        settings = _settings(document, model)
    except OSError as error:
        raise WanlabError(f"Cannot read {path}: {error.strerror or error}", remedy="Check the path.") from None
    except WanlabError as error:
        if str(path) in error.problem:
            raise
        raise WanlabError(f"{path}: {error.problem}", choices=error.choices, remedy=error.remedy) from None
    folder = path if path.is_dir() else path.parent
    if document.whose == "wangp":
        settings = _with_starts(settings, folder)
    if document.whose == "spec" and (folder / RUN_JSON).is_file():
        media.remember(folder)
    _warn(path, settings)
    return settings


def _settings(document: Document, model: str | None) -> Settings:
    content = document.content
    if document.whose == "wangp":
        content = content if model is None else {**content, "model_type": _wangp_id(model)}
        return Settings._of_migrated(migrate(plain(content), document.least_version))
    spec, wangp = content, None
    if document.whose == "settings":
        content = _upgraded(content)
        spec, wangp = content.get("spec"), content.get("wangp")
        if not isinstance(spec, dict) or not isinstance(wangp, dict | None):
            raise WanlabError("The settings have no spec, or WanGP's part is no object", remedy="Save them again.")
    found = GenerationSpec.from_json(spec)
    found = found if model is None else found.with_(model=catalog.find(model).id)
    if wangp is None:
        return Settings(found)
    check_kinds(wangp)
    return Settings._of_migrated(plain(wangp), found)


def _upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    schema = document.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise WanlabError(f"schema = {shorten(schema)} is not a version", remedy=f"Versions are 1 to {SCHEMA}.")
    if schema > SCHEMA:
        raise WanlabError(f"The settings have schema {schema}, not up to {SCHEMA}", remedy="Update wanlab.")
    result = dict(document)
    for version in range(schema, SCHEMA):
        result = {**MIGRATIONS[version](result), "schema": version + 1}
    return result


def _context(settings: Mapping[str, Any]) -> tuple[Context, dict[str, str]]:
    """What a translation depends on, and a remark where the catalogue does not have the model.

    No other model stands for it: its spec names it as WanGP does, with the usual settings of its architecture.
    """
    model = wangp_model(settings)
    if not model.id:
        raise WanlabError("The settings name no model", remedy="Name it: open_settings(path, model=...).")
    if (found := _find(model.id)) is not None:
        return Context(model, GenerationSpec.of({**found.spec, "model": found.id})), {}
    named = (settings.get("base_model_type"), model.architecture)
    base = next((found for name in named if name and (found := _find(name))), None)
    usual = GenerationSpec.of({**(base.spec if base else {}), "model": model.id})
    like = f"what is missing is as for {base.id}" if base else "what is missing has a spec's bare defaults"
    return Context(model, usual), {"model_type": f"{model.id} is not in the catalogue; {like}"}


def _find(name: Any) -> catalog.Definition | None:
    try:
        return catalog.find(name) if isinstance(name, str) and not name.endswith(".json") else None
    except WanlabError:
        return None


def _wangp_id(model: str) -> str:
    """WanGP's id of a model that is given by ours, or by its own. Raises WanlabError if it has none."""
    found = _find(model)
    known = set(model_ids())
    ids = [name for name in ((model,) if found is None else (*found.aliases, model)) if name in known]
    if not ids:
        raise WanlabError(
            f"WanGP has no model {shorten(model, 80)}", remedy="Give a model that has WanGP's id as alias."
        )
    return ids[0]


def _warn(path: Path, settings: Settings) -> None:
    told = [f"{key} ({why})" for key, why in settings.not_yet.items()]
    texts = [f"the spec does not say {', '.join(told)}"] if told else []
    texts += [f"nobody knows {', '.join(map(repr, settings.kept))}, kept as they are"] if settings.kept else []
    if texts:
        warnings.warn(f"{path}: {'; '.join(texts)}", stacklevel=3)
