"""The end of widgets that a panel no longer shows."""

from __future__ import annotations

from typing import Any


def close(*roots: Any) -> None:
    """Close widgets with all that is inside them.

    ipywidgets keeps each widget for the life of the kernel until it is closed, and with it whatever its callbacks hold:
    a job, and so a clip.
    """
    for root in roots:
        close(*getattr(root, "children", ()))
        for name in ("layout", "style"):
            if (part := getattr(root, name, None)) is not None:
                part.close()
        root.close()
