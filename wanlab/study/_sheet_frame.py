"""A pandas DataFrame that shows missing numbers as dashes, and says below why they are missing."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas

_DASH = "–"


class Sheet(pandas.DataFrame):
    """A DataFrame in every way; parts of it are Sheets too."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], *, words: Collection[str], whole: Collection[str]) -> Sheet:
        """Make one of a dict a row: `words` keep any value, `whole` are Int64, all others float64."""
        columns = {name: [row.get(name) for row in rows] for name in rows[0]}
        kinds = {name: object if name in words else "Int64" if name in whole else "float64" for name in columns}
        return cls({name: pandas.Series(values, dtype=kinds[name]) for name, values in columns.items()})

    @property
    def _constructor(self) -> Callable[..., Sheet]:
        return Sheet

    def _repr_html_(self) -> str:
        shown = self.astype(object).map(_cell)  # as object, so that whole numbers beside gaps stay whole
        notes = "".join(
            f"<br><small>{html.escape(name)}: {html.escape(note)}</small>"
            for name, note in self.attrs.get("notes", {}).items()
            if name in self.columns
        )
        return f"<div>{shown.to_html(escape=True, notebook=True, max_cols=None)}{notes}</div>"


def _cell(value: Any) -> str:
    if value is None or value is pandas.NA or (isinstance(value, float) and value != value):  # NaN
        return _DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else str(value)
