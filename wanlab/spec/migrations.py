"""Brings a spec's JSON of an earlier schema up to date; golden files of every version are read by the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wanlab.errors import WanlabError, shorten

SCHEMA = 1

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""MIGRATIONS[n], a pure function, makes schema n + 1 of nested JSON of schema n. A new field needs only HashDefault."""


def upgrade(document: dict[str, Any], schema: int | None = None) -> dict[str, Any]:
    """`document` in the present schema; one without a number is taken as present (a user wrote it)."""
    latest = SCHEMA if schema is None else schema
    version = document.get("schema", latest)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise WanlabError(f"schema = {shorten(version)} is not a version", remedy=f"Versions are 1 to {latest}.")
    if version > latest:
        raise WanlabError(
            f"The spec has schema {version}; this wanlab reads up to {latest}", remedy="Upgrade wanlab to read it."
        )
    for step in range(version, latest):
        document = MIGRATIONS[step](document)
    return {**document, "schema": latest}
