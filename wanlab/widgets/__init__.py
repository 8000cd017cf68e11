"""What a notebook shows and answers: players of comparisons.

The names below load on first use; each works headless too, where it shows itself as plain HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.widgets._compare import Compare, compare

_HOME = {"Compare": "_compare", "compare": "_compare"}
__all__ = ["Compare", "compare"]
__getattr__ = lazy(__name__, _HOME)
