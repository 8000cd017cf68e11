"""Networks leave by the spec's policy and come back with the same bits; what is attached to them stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import wanlab
from tests.tiny import tiny_wan


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"), experts=2)[1]


@pytest.fixture
def model(definition: dict[str, Any]) -> Any:
    return wanlab.load(definition, device="cpu")


def loaded(model: Any) -> set[str]:
    return {name for name, part in model.parts.items() if part.loaded}


SETTINGS: dict[str, Any] = {"prompt": "a red fox", "num_steps": 5, "seed": 2, "expert_boundary": 0.6}


@pytest.mark.parametrize(
    ("policy", "left"),
    [("keep", {"text_encoder", "transformer", "transformer_2", "vae"}), ("switch", {"vae"}), ("after_use", set())],
)
def test_a_policy_decides_what_stays_and_no_bit_of_the_result(model: Any, policy: str, left: set[str]) -> None:
    plain = wanlab.generate(model, **SETTINGS)
    model.unload()
    assert loaded(model) == set()
    held: list[set[str]] = []
    result = wanlab.generate(model, **SETTINGS, unload=policy, on_step=lambda *_: held.append(loaded(model)))
    assert torch.equal(result.latents, plain.latents)
    assert (result.frames == plain.frames).all()
    assert loaded(model) == left
    if policy == "switch":
        assert held == [{"transformer"}] * held.count({"transformer"}) + [{"transformer_2"}] * held.count(
            {"transformer_2"}
        )
        assert len(held) == 5
        assert {frozenset(x) for x in held} == {frozenset({"transformer"}), frozenset({"transformer_2"})}


def test_what_is_attached_survives_leaving(model: Any) -> None:
    seen: list[str] = []

    def look(call: Any, streams: Any) -> Any:
        seen.append("block")
        return call(streams)

    with model.stacks["transformer"][1].site.wrap(look, "recorder"):
        wanlab.generate(model, **SETTINGS, unload="after_use")
        first = len(seen)
        assert first > 0
        wanlab.generate(model, **SETTINGS, unload="after_use")
        assert len(seen) == 2 * first


def test_an_error_leaves_the_policy_behind(model: Any) -> None:
    def stop(*_: Any) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        wanlab.generate(model, **SETTINGS, unload="after_use", on_step=stop)
    assert loaded(model) == set()
    wanlab.generate(model, **SETTINGS)
    assert loaded(model) == {"text_encoder", "transformer", "transformer_2", "vae"}


def test_memory_comes_back(model: Any, tmp_path: Path) -> None:
    """Bytes of the parameters in memory: all, then none."""
    wanlab.generate(model, **SETTINGS)
    network = model.parts["transformer"].module
    assert sum(p.numel() for p in network.parameters() if not p.is_meta) > 0
    model.unload("transformer")
    assert all(p.is_meta for p in network.parameters())
    assert model.parts["transformer"].module is network
    assert not any(p.is_meta for p in network.parameters())
