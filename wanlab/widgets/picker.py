"""The catalogue as a widget: families, models, what is on this disk, what is missing and what to do about it."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets
import traitlets
from IPython.display import HTML, display

from wanlab import catalog, notebook
from wanlab.errors import unknown
from wanlab.spec import GenerationSpec
from wanlab.widgets._style import STYLE, stand_in
from wanlab.workspace import Workspace, find_workspace

_ALL = "all families"
_FILES = 6  # missing files that are named


class ModelPicker(widgets.VBox):
    """Choose a model: `picker.value` is its id, `picker.load()` loads it, `refresh()` looks at the disk again.

    Headless it shows the catalogue's table.
    """

    value = traitlets.Unicode(help="Id of the chosen model, for wanlab.load and GeneratePanel.")

    def __init__(self, model_id: str | None = None, *, workspace: Workspace | None = None) -> None:
        self._workspace = workspace or find_workspace()
        self._rows = {row.id: row for row in catalog.catalogue(self._workspace)}
        if model_id is not None and model_id not in self._rows:
            raise unknown("model", model_id, self._rows)
        families = sorted({row.family for row in self._rows.values()})
        self._family = widgets.Dropdown(options=[_ALL, *families], description="family", layout={"width": "260px"})
        self._models = widgets.Select(rows=8, layout={"width": "260px"})
        self._again = widgets.Button(icon="refresh", tooltip="Look at the disk again", layout={"width": "40px"})
        self._details = widgets.HTML(layout={"flex": "1 1 300px", "margin": "0 0 0 12px"})
        left = widgets.VBox([self._family, self._models, self._again])
        row = widgets.Box([left, self._details], layout={"flex_flow": "row wrap"})
        super().__init__([widgets.HTML(STYLE), row])
        self.add_class("wanlab-panel")
        self._list(model_id or next((row.id for row in self._rows.values() if row.on_disk), next(iter(self._rows))))
        self._family.observe(lambda _: self._list(self.value), "value")
        self._models.observe(self._chosen, "value")
        self._again.on_click(lambda _: self.refresh())

    def load(self, device: str = "auto", **weights: Any) -> Any:
        """`wanlab.load` of the chosen model; `download=True` fetches what is not on this machine."""
        from wanlab.models import load

        return load(self.value, device, **weights)

    def refresh(self) -> None:
        """Ask the disk again."""
        self._rows = {row.id: row for row in catalog.catalogue(self._workspace)}
        self._list(self.value)

    def _list(self, chosen: str) -> None:
        """Show the models of the family, those on this disk first, with `chosen` marked if it is one of them."""
        family = self._family.value
        rows = [row for row in self._rows.values() if family in (_ALL, row.family)]
        rows.sort(key=lambda row: (not row.on_disk, row.family, row.id))
        options = [(f"{'●' if row.on_disk else '○'} {row.id}", row.id) for row in rows]
        value = chosen if chosen in {row.id for row in rows} else rows[0].id
        self._is_listing = True  # new options choose their first one, which nobody did
        self._models.options = options
        self._models.value = value
        self._is_listing = False
        self._show(value)

    def _chosen(self, change: Any) -> None:
        if change["new"] is not None and not self._is_listing:
            self._show(change["new"])

    def _show(self, model_id: str) -> None:
        self.value = model_id
        self._details.value = describe(self._rows[model_id], self._workspace)

    def _ipython_display_(self) -> None:
        if notebook.is_live():
            display(HTML(stand_in("The picker of models needs its kernel: run this cell.")))
            display(super()._repr_mimebundle_(), raw=True)
        else:
            display(HTML(catalog.catalogue(self._workspace)._repr_html_()))

    def __repr__(self) -> str:
        return f"ModelPicker({self.value!r})"


def describe(row: catalog.Row, workspace: Workspace) -> str:
    """A model as HTML: what it is, where it lies or what is missing, its settings' defaults."""
    if row.error:
        return f"<b>{html.escape(row.id)}</b><div>{html.escape(row.error)}</div>"
    definition = catalog.find(row.id, workspace)
    facts = [("id", row.id), ("family", row.family), ("also called", ", ".join(definition.aliases))]
    if row.on_disk:
        facts.append(("on this disk", f"yes, {(row.size or 0) / 1e6:,.1f} MB"))
    else:
        facts += [("on this disk", "no"), ("missing", missing(definition, workspace)), ("remedy", row.remedy)]
    facts.append(("cannot run yet", definition.missing))
    facts.append(("default settings", _defaults(definition)))
    lines = "".join(
        f'<tr><th style="text-align:left;vertical-align:top;padding-right:12px;white-space:nowrap">{name}</th>'
        f'<td style="text-align:left;overflow-wrap:anywhere">{html.escape(value)}</td></tr>'
        for name, value in facts
        if value
    )
    title = f"<b>{html.escape(row.title or row.id)}</b>"
    text = f'<div style="line-height:1.4;margin:4px 0">{html.escape(definition.description)}</div>'
    return f"{title}{text if definition.description else ''}<table style='line-height:1.5'>{lines}</table>"


def missing(definition: catalog.Definition, workspace: Workspace) -> str:
    """The files that the fullest of the model's folders lacks; where no folder has any, all of them."""
    folder, files = catalog.nearest_folder(definition, workspace)
    if folder is None:
        return "all of it"
    more = f" and {len(files) - _FILES} more" if len(files) > _FILES else ""
    return f"{', '.join(files[:_FILES])}{more} in {folder}"


def _defaults(definition: catalog.Definition) -> str:
    """Size and steps in a line."""
    spec = GenerationSpec.of({**definition.spec, "model": definition.id})
    size, sampling = spec.size, spec.sampling
    frames = f", {size.num_frames} frames" if (size.num_frames or 1) > 1 else ""
    shape = f"{size.width}x{size.height}{frames}; " if size.width and size.height else ""
    return f"{shape}{sampling.num_steps} steps of {sampling.sampler}"
