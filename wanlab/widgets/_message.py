"""The line in which a panel says how it stands."""

from __future__ import annotations

import html

import ipywidgets as widgets

from wanlab.errors import WanlabError


class Message(widgets.HTML):
    """A sentence, or an error that screen readers announce; `is_error` says which."""

    is_error = False

    def say(self, text: str, is_error: bool = False) -> None:
        """Show a text in place of the last one; none hides the line."""
        self.is_error = is_error
        role, kind = ("alert", "wanlab-error") if is_error else ("status", "wanlab-quiet")
        self.value = f'<div role="{role}" class="{kind}">{html.escape(text)}</div>' if text else ""


def reason(error: BaseException) -> str:
    """What went wrong, in one paragraph."""
    return str(error) if isinstance(error, WanlabError) else f"{type(error).__name__}: {error}"
