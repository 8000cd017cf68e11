"""The input for media settings: files from the browser or paths, stored at once and shown small."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from wanlab import media
from wanlab.errors import WanlabError
from wanlab.spec import MediaRef, Part
from wanlab.widgets._buttons import button
from wanlab.widgets._closing import close
from wanlab.widgets._fields import Field, Schema

MAX_UPLOAD = 256 << 20
"""Bytes of one file that the page may send; it goes through the kernel's memory. Paths have no limit."""
_ACCEPT = {
    "image": "image/*",
    "video": "video/*,image/gif,image/webp,image/png",
    "mask": "image/*,video/*",
    "audio": "audio/*,video/*",
}
_THUMB = (144, 72)  # pixels, at most


class MediaInput(widgets.VBox):
    """What is chosen (`value`, references as JSON), small pictures of it, and the ways to choose: upload, path, clear.

    `problem` says why the last file was refused, which stands until another one is given or the input is cleared.
    """

    value = traitlets.Tuple()
    problem = traitlets.Unicode()
    description = traitlets.Unicode()
    tooltip = traitlets.Unicode(allow_none=True)  # not the page's: ipywidgets 8.1.9 shows no box that has one

    def __init__(self, leaf: str, is_list: bool) -> None:
        self._leaf, self._is_list = leaf, is_list
        label = widgets.Label(leaf, layout={"width": "130px", "justify_content": "flex-end"})
        accept = _ACCEPT[media.wanted_kind(leaf)]
        self.upload = widgets.FileUpload(
            accept=accept, multiple=is_list, description="Upload", layout={"width": "auto"}
        )
        self.path = widgets.Text(placeholder="or a path", continuous_update=False, layout={"width": "130px"})
        self.clear = button("", f"Give no {leaf}", lambda: self.choose(()), "times")
        self.clear.layout.width = "36px"
        self.shown = widgets.Box(layout={"flex_flow": "row wrap", "margin": "0 0 0 138px"})
        row = widgets.Box([label, self.upload, self.path, self.clear], layout={"flex_flow": "row wrap"})
        super().__init__([row, self.shown], layout={"width": "auto", "max_width": "100%"})
        traitlets.dlink((self, "tooltip"), (self.upload, "tooltip"))
        self.upload.observe(lambda change: self._uploaded(change["new"]), "value")
        self.path.observe(lambda change: self._named(change["new"]), "value")
        self.observe(lambda _: self._show(), "value")
        self._show()

    def _uploaded(self, files: Sequence[Mapping[str, Any]]) -> None:
        if not files:
            return
        try:
            self._take(lambda: [self._stored(file) for file in files])
        finally:
            self.upload.value = ()  # the bytes are stored; here they would stay for the life of the kernel

    def _stored(self, file: Mapping[str, Any]) -> MediaRef:
        name, content = str(file["name"]), file["content"]
        if len(content) > MAX_UPLOAD:
            size, most = len(content) >> 20, MAX_UPLOAD >> 20
            raise WanlabError(
                f"media.{self._leaf}: {name} has {size} MB, and a page sends at most {most} MB",
                remedy="Write its path instead",
            )
        return media.store_given(self._leaf, content, name=name)

    def _named(self, path: str) -> None:
        if path.strip():
            self._take(lambda: [media.store_given(self._leaf, path.strip())])

    def _take(self, store: Callable[[], list[MediaRef]]) -> None:
        """Choose what `store` gives, beside what a list holds already; all of it or, where it raises, nothing."""
        try:
            found = tuple(ref.model_dump(mode="json") for ref in store())
        except WanlabError as error:
            self.problem = str(error)
            return
        self.choose((*self.value, *found) if self._is_list else found)

    def choose(self, references: Sequence[Mapping[str, Any]]) -> None:
        """Show these references instead, and forget what was refused."""
        self.path.value = ""
        self.value = tuple(dict(ref) for ref in references)
        self.problem = ""

    def _show(self) -> None:
        earlier = self.shown.children
        self.shown.children = [_small(MediaRef(**ref)) for ref in self.value]
        self.clear.layout.display = None if self.value else "none"
        close(*earlier)


class Media(Field):
    """One stored file, or a list of them."""

    def __init__(self, name: str, schema: Schema, is_list: bool) -> None:
        self._is_list = is_list
        super().__init__(name, schema, MediaInput(name.rpartition(".")[2], is_list))

    def read(self) -> Any:
        if self.widget.problem:
            raise WanlabError(self.widget.problem)
        chosen = [dict(ref) for ref in self.widget.value]
        return chosen if self._is_list else next(iter(chosen), None)

    def write(self, value: Any) -> None:
        self.widget.choose(value if self._is_list else [] if value is None else [value])

    def words(self) -> str:
        return ", ".join(_called(MediaRef(**ref)) for ref in self.widget.value) or "none"

    def observe(self, changed: Callable[[], None]) -> None:
        self.widget.observe(lambda _: changed(), ["value", "problem"])


def media_fields(record: type[Part], prefix: str, skip: Collection[str]) -> list[Media]:
    """An input for each field of a record that holds media, named `prefix.field`, but for those to skip."""
    properties = record.model_json_schema()["properties"]
    found = ((f"{prefix}.{name}", schema) for name, schema in properties.items())
    return [
        Media(name, schema, is_list=_is_media(schema.get("items", {})))
        for name, schema in found
        if name not in skip and any(map(_is_media, (schema.get("items", {}), *schema.get("anyOf", ()))))
    ]


def _is_media(schema: Schema) -> bool:
    return str(schema.get("$ref", "")).endswith("/MediaRef")


def _called(ref: MediaRef) -> str:
    return ref.name or f"{ref.kind} {ref.sha256[:8]}"


def _small(ref: MediaRef) -> Any:
    """A small picture of media over their name; of those that cannot be read, why."""
    try:
        picture = None if ref.kind == "audio" else _thumbnail(ref)
        note = _called(ref)
    except WanlabError as error:
        picture, note = None, str(error)
    text = widgets.HTML(f'<span class="wanlab-quiet">{html.escape(note)}</span>')
    box = widgets.VBox([text] if picture is None else [widgets.Image(value=picture, format="png"), text])
    box.layout.margin = "2px 8px 2px 0"
    return box


def _thumbnail(ref: MediaRef) -> bytes:
    """The picture, or the first frame that is used, as a small PNG."""
    from PIL import Image

    image = Image.fromarray(media.read_video(ref, num_frames=1)[0])
    image.thumbnail(_THUMB)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
