"""Hashes of records: equal on every machine, and unmoved by fields and defaults that come later."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from wanlab.spec.part import HashDefault, Unhashed, marker

ID_LENGTH = 12  # hexadecimal digits: a million specs share an id with probability 0.2 %


def content(record: BaseModel) -> dict[str, Any]:
    """What of a record is hashed: its JSON without Unhashed fields and fields at their HashDefault."""
    kept = {}
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        frozen = marker(field, HashDefault)
        if marker(field, Unhashed) or (frozen is not None and _canonical(value) == _canonical(frozen.value)):
            continue
        kept[name] = _content_of(value)
    return kept


def _content_of(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return content(value)
    if isinstance(value, dict):
        return {k: _content_of(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_content_of(v) for v in value]
    return 0.0 if value == 0 and isinstance(value, float) else value  # -0.0 is 0.0


def _canonical(value: Any) -> str:
    return json.dumps(_content_of(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(payload: dict[str, Any]) -> bytes:
    """The one JSON of a record's content: sorted keys, no spaces, ASCII, shortest floats, no empty records."""
    return _canonical(_without_empty(payload)).encode("ascii")


def content_id(payload: dict[str, Any]) -> str:
    """12 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(payload)).hexdigest()[:ID_LENGTH]


def _without_empty(payload: dict[str, Any]) -> dict[str, Any]:
    """A record none of whose fields count is as good as absent, so parts and options may come later."""
    inner = {k: _without_empty(v) if isinstance(v, dict) else v for k, v in payload.items()}
    return {k: v for k, v in inner.items() if v != {}}
