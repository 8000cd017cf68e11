"""What a form starts with, the settings that come back after a restart, and those that become a user's defaults."""

from __future__ import annotations

from typing import Any

from wanlab import catalog, notebook
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.widgets._arguments import checked_spec
from wanlab.workspace import Workspace


def first_spec(
    definition: catalog.Definition,
    workspace: Workspace,
    spec: GenerationSpec | None,
    *,
    restore: bool | None,
    bind: bool,
    changes: dict[str, Any],
) -> tuple[GenerationSpec, str]:
    """What a form starts with, and a sentence about where it comes from.

    restore: None is "in a live notebook, where nothing else is asked for". bind: as for `settings_or_why`.
    """
    if spec is not None:
        return checked_spec(spec, definition).with_(**changes), ""
    if restore is None:
        restore = notebook.is_live() and not changes
    last, note = settings_or_why(workspace, definition.id, bind) if restore else (None, "")
    return (last or catalog.default_spec(definition, workspace)).with_(**changes), note


def settings_or_why(workspace: Workspace, model_id: str, bind: bool) -> tuple[GenerationSpec | None, str]:
    """The last settings, or None, and a sentence for the user: that they are his, or why they cannot be used.

    bind: check the options of methods too, which imports the methods and so torch.
    """
    try:
        spec = catalog.read_last(model_id, workspace)
        for part in spec.methods().values() if bind and spec is not None else ():
            part.bind()
    except WanlabError as error:
        return None, f"The last settings are not used: {error}"
    if spec is not None and spec.model != model_id:
        return None, f"The last settings are not used: they are of model {spec.model!r}."
    return spec, "" if spec is None else "Your last settings of this model. Defaults brings back the model's own."


def keep_defaults(definition: catalog.Definition, workspace: Workspace, spec: GenerationSpec) -> str:
    """Make the spec the user's defaults of the model, but for prompt, seed and media; returns a sentence that says so.

    Raises WanlabError where the workspace cannot be written.
    """
    own = catalog.own_settings(definition, spec)
    path = catalog.write_user_defaults(definition.id, own, workspace)
    what = ", ".join(own) if own else "nothing, they are the model's own"
    return f"Your defaults from the next load on: {what}. They are in {path}; without it the model's own hold."
