"""A comparison that plays: a live player where somebody looks, a video and a table that stay everywhere."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from wanlab.notebook import is_live
from wanlab.result import Result
from wanlab.study.side_by_side import Comparison
from wanlab.study.side_by_side import compare as checked
from wanlab.widgets._style import HIDE_LOST

if TYPE_CHECKING:
    from wanlab.widgets._player import Player


class Compare(Comparison):
    """What `wanlab.compare` returns: a `Comparison` that a live notebook shows as synchronised players and a table.

    The notebook keeps a plain video and the table, which need neither JavaScript nor a kernel; while the player is
    there, it hides the video. Headless (papermill, nbclient) and in scripts nothing but these is made.
    """

    @cached_property
    def player(self) -> Player:
        """The live player, made on first use; encoding takes about 1 s for 20 million pixels."""
        from wanlab.widgets._player import Player

        return Player(self, key=uuid.uuid4().hex)

    def _ipython_display_(self) -> None:
        if not is_live():
            raise NotImplementedError  # IPython then shows _repr_html_
        from IPython.display import display

        style = f"<style>{HIDE_LOST}</style>"
        static = f'<div class="wanlab-static wanlab-static-{self.player.key}">{style}{self._video_html()}</div>'
        self.player.send_media()
        _show(static, repr(self))
        display(self.player)
        _show(self._table_html(), "")


def _show(html: str, text: str) -> None:
    from IPython.display import display

    display({"text/html": html, "text/plain": text}, raw=True)


def compare(*results: Result, labels: Sequence[str] | None = None) -> Compare:
    """Put results side by side; the first is the reference.

    labels: one a result, where specs do not tell what differs, such as an edit; by default the settings that differ.
    Raises WanlabError for fewer than two results, and for labels of another number.
    """
    found = checked(*results, labels=labels)
    return Compare(found.results, found.names)
