"""Names of settings, and the JSON schema that forms are built from."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from wanlab.registry import CACHES
from wanlab.spec import LEAVES, PARTS, GenerationSpec, MethodPart


def fields() -> Iterator[tuple[str, str]]:
    yield from ((part, leaf) for part, cls in PARTS.items() for leaf in cls.model_fields)


def test_leaf_names_are_unique_and_differ_from_part_names() -> None:
    plain_leaves = [leaf for _, leaf in fields() if leaf not in MethodPart.model_fields]
    assert len(plain_leaves) == len(set(plain_leaves)) == len(LEAVES)
    assert not set(plain_leaves) & {*PARTS, *GenerationSpec.model_fields}
    assert not any("__" in name or "." in name for name in (*plain_leaves, *PARTS))


def test_the_parts_are_those_of_the_contract() -> None:
    words = "weights text media size sampling guidance cache attention lora memory compile window post output"
    assert list(PARTS) == words.split()
    methods = {name for name, cls in PARTS.items() if issubclass(cls, MethodPart)}
    assert methods == {"guidance", "cache", "attention", "memory", "window"}


def test_the_json_schema_serves_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CACHES._entries, "test_periodic", object())
    schema = GenerationSpec.model_json_schema()
    assert set(schema["properties"]) == {"schema", "model", *PARTS}
    definitions = schema["$defs"]
    for part, leaf in fields():
        entry = definitions[PARTS[part].__name__]["properties"][leaf]
        assert entry.get("description"), f"{part}.{leaf} has no description"
    sampling = definitions["SamplingSpec"]["properties"]
    assert sampling["num_steps"]["minimum"] == 1
    assert {"euler", "unipc"} <= set(sampling["sampler"]["enum"])
    assert {"none", "test_periodic"} <= set(definitions["CacheSpec"]["properties"]["method"]["enum"])
    json.dumps(schema)
