"""Edits: where they act, that an identity changes nothing, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import probe
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sites import StepContext, skipping

STEPS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {
        "wan": wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu"),
        "flux": wanlab.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu"),
    }


@pytest.fixture(params=["wan", "flux"])
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Iterator[Model]:
    yield models[request.param]
    assert models[request.param].attachments() == []


@pytest.fixture
def wan(models: dict[str, Model]) -> Iterator[Model]:
    yield models["wan"]
    assert models["wan"].attachments() == []


def run(model: Model, **changes: Any) -> Tensor:
    spec = model.spec(**{"prompt": "a cat", "num_steps": STEPS, **changes})
    return wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec))


def test_an_identity_is_exact_everywhere(model: Model) -> None:
    plain, seen = run(model), []

    def same(tensor: Tensor, ctx: StepContext) -> Tensor:
        seen.append((tensor.ndim, ctx.branch))
        return tensor

    blocks, attentions = ("stack", "*blocks.*"), ("*blocks.*.*",)
    names = [f"{s}.{side}" for s in blocks for side in ("in", "out")]
    for name in (*names, *(f"{s}.{side}" for s in attentions for side in ("q", "k", "v", "out"))):
        seen.clear()
        with probe.edit(model, name, same):
            assert torch.equal(run(model), plain), name
        assert {ndim for ndim, _ in seen} == {3 if name in names else 4}
        with probe.edit(model, name, lambda x, ctx: x.clone()):
            assert torch.equal(run(model), plain), name
    with probe.edit(model, "stack.out", lambda x, ctx: x.roll(1, 1)):
        assert not torch.equal(run(model), plain)
    assert torch.equal(run(model), plain)


def test_an_edit_of_one_site_equals_the_known_operation(wan: Model) -> None:
    """A block whose output becomes its input is a block that is left out; attention of nothing is none."""
    kept: dict[str, Tensor] = {}

    def remember(x: Tensor, ctx: StepContext) -> Tensor:
        kept["in"] = x
        return x

    with probe.edit(wan, "blocks.1.in", remember), probe.edit(wan, "blocks.1.out", lambda x, ctx: kept["in"]):
        edited = run(wan)
    with skipping(wan.stacks["transformer"], [1]):
        assert torch.equal(run(wan), edited)
    zero = torch.zeros_like
    with probe.edit(wan, "blocks.*.cross.out", lambda x, ctx: zero(x)):
        by_out = run(wan)
    with probe.edit(wan, "blocks.*.attn2.v", lambda x, ctx: zero(x)):
        assert torch.equal(run(wan), by_out)
    assert not torch.equal(by_out, run(wan))


def test_steps_and_branches_choose(wan: Model) -> None:
    seen: list[tuple[int, str]] = []

    def note(x: Tensor, ctx: StepContext) -> Tensor:
        seen.append((ctx.step, ctx.branch))
        return x

    with probe.edit(wan, "blocks.2.out", note, steps=[0, 2], branches=["uncond"]):
        run(wan)
    assert seen == [(0, "uncond"), (2, "uncond")]
    with probe.edit(wan, "blocks.2.out", lambda x, ctx: 0 * x, steps=[]):
        assert torch.equal(run(wan), run(wan))


def test_an_edit_that_cannot_act_is_told(wan: Model) -> None:
    with (
        pytest.raises(WanlabError, match=r"'?blocks\.2\.out'? is for steps range\(50, 60\).*Give steps from 0 to"),
        probe.edit(wan, "blocks.2.out", lambda x, ctx: x, steps=range(50, 60)),
    ):
        run(wan)
    assert wan.attachments() == []
    with (
        pytest.warns(UserWarning, match=r"branches \['conditional'\], and there were cond, uncond") as told,
        probe.edit(wan, "blocks.2.out", lambda x, ctx: 0 * x, branches=["conditional"]),
    ):
        run(wan)
    assert told[0].filename == __file__


def test_batched_branches_are_edited_apart(wan: Model) -> None:
    plain = run(wan, batch_branches=True)
    with probe.edit(wan, "blocks.2.out", lambda x, ctx: x.clone()):
        assert torch.equal(run(wan, batch_branches=True), plain)
    with probe.edit(wan, "blocks.2.out", lambda x, ctx: 0.5 * x, branches=["uncond"]):
        batched = run(wan, batch_branches=True)
        assert torch.allclose(batched, run(wan), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(batched, plain, rtol=1e-2, atol=1e-3)


def test_streams_choose_the_tokens(models: dict[str, Model]) -> None:
    flux, shapes = models["flux"], {}
    for stream in (None, "text", "image"):

        def note(x: Tensor, ctx: StepContext, stream: str | None = stream) -> Tensor:
            shapes[stream] = tuple(x.shape)
            return x

        with probe.edit(flux, "transformer_blocks.0.out", note, stream=stream):
            run(flux)
    assert shapes[None] == shapes["image"] != shapes["text"]
    with (
        pytest.raises(WanlabError, match="has no stream 'video'"),
        probe.edit(flux, "transformer_blocks.0.out", note, stream="video"),
    ):
        run(flux)
    assert flux.attachments() == []


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda x, ctx: x[:, 1:], r"edit of blocks.1.out returned \(1, 17, 24\) .* for \(1, 18, 24\)"),
        (lambda x, ctx: x.double(), "torch.float64"),
        (lambda x, ctx: None, "returned NoneType"),
        (lambda x, ctx: x.mul_(2), "in place"),
    ],
)
def test_what_an_edit_may_not_return(wan: Model, fn: Any, says: str) -> None:
    plain = run(wan)
    with pytest.raises(WanlabError, match=says), probe.edit(wan, "blocks.1.out", fn):
        run(wan)
    assert wan.attachments() == []
    assert torch.equal(run(wan), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_errors_in_an_edit_detach_it(wan: Model, error: type[BaseException]) -> None:
    plain = run(wan)

    def fail(x: Tensor, ctx: StepContext) -> Tensor:
        if ctx.step == 1:
            raise error("boom")
        return 2 * x

    with pytest.raises(error, match="boom"), probe.edit(wan, "blocks.1.self.out", fail):
        run(wan)
    assert torch.equal(run(wan), plain)


def test_a_recorder_sees_what_an_edit_made(wan: Model) -> None:
    with probe.record(wan, "blocks.1.out", "blocks.2.in") as before:
        run(wan)
    with (
        probe.edit(wan, "blocks.1.out", lambda x, ctx: 3 * x, steps=[0]),
        probe.record(wan, "blocks.1.out", "blocks.2.in") as after,
    ):
        run(wan)
    for name in ("blocks.1.out", "blocks.2.in"):
        assert torch.allclose(torch.tensor(after.array(name)[0]), 3 * torch.tensor(before.array(name)[0]), rtol=1e-5), (
            name
        )
