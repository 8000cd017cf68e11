"""The last settings of each model, kept in the workspace so that they come back after a restart."""

from __future__ import annotations

from wanlab.errors import WanlabError
from wanlab.files import atomic_write, safe_path
from wanlab.spec import GenerationSpec
from wanlab.workspace import Workspace


def last_settings(workspace: Workspace, model_id: str) -> GenerationSpec | None:
    """The spec that was last generated with a model; None if there is none.

    Raises WanlabError for a file that cannot be read: it is the user's, so it is neither ignored nor deleted.
    """
    path = safe_path(workspace.configs, f"{model_id}.json")
    return GenerationSpec.from_json(path) if path.is_file() else None


def keep_settings(workspace: Workspace, model_id: str, spec: GenerationSpec) -> None:
    """Write the spec as the model's last settings. Raises WanlabError where the workspace cannot be written."""
    if spec.output.strip_prompt:
        spec = spec.with_(prompt="", negative_prompt="")
    atomic_write(safe_path(workspace.configs, f"{model_id}.json"), spec.to_json(indent=2) + "\n")


def settings_or_why(workspace: Workspace, model_id: str, bind: bool) -> tuple[GenerationSpec | None, str]:
    """The last settings, or None, and a sentence for the user: that they are his, or why they cannot be used.

    bind: check the options of methods too, which imports the methods and so torch.
    """
    try:
        spec = last_settings(workspace, model_id)
        for part in spec.methods().values() if bind and spec is not None else ():
            part.bind()
    except WanlabError as error:
        return None, f"The last settings are not used: {error}"
    if spec is not None and spec.model != model_id:
        return None, f"The last settings are not used: they are of model {spec.model!r}."
    return spec, "" if spec is None else "Your last settings of this model. Defaults brings back the model's own."
