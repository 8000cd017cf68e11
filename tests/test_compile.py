"""torch.compile of the blocks: few graphs, no breaks, whatever is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from tests.tiny import tiny_flux, tiny_wan
from wanlab import attention, models
from wanlab.caches.fixed import Fixed
from wanlab.models import Model
from wanlab.sites import Branch, Handle, StepContext, Streams, compiling

STEPS, BLOCKS = 12, 40


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_wan(tmp_path_factory.mktemp("deep"), num_layers=BLOCKS)[1], device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    dynamo.reset()
    counters.clear()
    yield
    dynamo.reset()


class Scale:
    """A LoRA-like scale of a linear layer: its strength is a 0-dim tensor, rewritten before each step."""

    def __init__(self, site: Any) -> None:
        module = site.module
        draw = torch.Generator().manual_seed(module.in_features)
        self.down = torch.randn(2, module.in_features, generator=draw) * 0.1
        self.up = torch.randn(module.out_features, 2, generator=draw) * 0.1
        self.strength = torch.zeros(())

    def begin(self, ctx: StepContext) -> None:
        self.strength.fill_(ctx.step / ctx.num_steps)

    def __call__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return call(x) + self.strength * (x @ self.down.T @ self.up.T)


def attach_scales(model: Model, linear: str) -> Handle:
    handles = []
    for entry in model.stacks["transformer"]:
        site = entry.linears[linear]
        scale = Scale(site)
        handles += [model.on_begin(scale.begin), site.wrap(scale, "lora")]
    return Handle.join(handles)


def attach_recorder(model: Model, seen: list[tuple[str, float]]) -> Handle:
    def recorder(name: str) -> Callable[..., Streams]:
        def note(call: Callable[..., Streams], streams: Streams) -> Streams:
            out = call(streams)
            seen.append((name, float(next(iter(out.tokens.values())).sum())))
            return out

        return note

    return Handle.join([e.site.wrap(recorder(e.name), "recorder") for e in model.stacks["transformer"]])


def forwards(model: Model, steps: int = STEPS) -> list[Tensor]:
    spec = model.resolve(model.spec(num_steps=steps, prompt="a cat"))
    text, noise, out = model.encode_text(spec)["prompt"], model.initial_noise(spec), []
    for step, sigma in enumerate(model.sigmas(spec)[:-1].tolist()):
        ctx = StepContext(step, steps, sigma, timestep=1000 * sigma)
        model.begin(ctx)
        out.append(model.velocity(noise, ctx, Branch("cond", text, guidance=3.5)))
    return out


def graphs() -> int:
    return counters["stats"].get("unique_graphs", 0)


def test_forty_blocks_twelve_steps_two_backends(deep: Model) -> None:
    """With the scale and a block recorder: at most 3 graphs, no breaks, results those of the uncompiled run."""
    seen: list[tuple[str, float]] = []
    with attach_scales(deep, "attn1.to_q"), attach_recorder(deep, seen):
        plain = forwards(deep)
        seen.clear()
        with compiling(deep.stacks["transformer"], backend="eager"):
            for backend in ("sdpa", "math"):
                with attention.using(deep, backend):
                    out = forwards(deep)
                assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(out, plain, strict=True))
    assert len(seen) == 2 * STEPS * BLOCKS
    assert 1 <= graphs() <= 3
    assert not counters["graph_break"]
    assert deep.stacks["transformer"].uncompiled == set()
    assert not torch.allclose(plain[-1], forwards(deep)[-1]), "the scale does something"


def test_backends_may_differ_by_block_and_step(deep: Model) -> None:
    """Swapping by block and by step costs one graph a function, not one a block."""
    with (
        compiling(deep.stacks["transformer"], backend="eager"),
        attention.using(deep, "math", blocks=range(0, BLOCKS, 2), steps=range(0, STEPS, 3)),
    ):
        forwards(deep)
    assert graphs() <= 3
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["flex", "sdpa"])
def test_flux_blocks_compile(flux: Model, name: str) -> None:
    plain = forwards(flux)
    with compiling(flux.stacks["transformer"], backend="eager"), attention.using(flux, name):
        out = forwards(flux)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(out, plain, strict=True))
    assert graphs() == 2, "one for double and one for single blocks"
    assert not counters["graph_break"]


def test_inner_recorder_runs_its_block_uncompiled(deep: Model) -> None:
    stack, calls = deep.stacks["transformer"], []

    def note(call: Callable[..., Tensor], *args: Any) -> Tensor:
        calls.append(torch.compiler.is_compiling())
        return call(*args)

    with compiling(stack, backend="eager"):
        with stack[3].linears["ffn.net.2"].wrap(note, "recorder"), stack[5].attentions["attn1"].wrap(note, "edit"):
            forwards(deep, 2)
            assert stack.uncompiled == {"blocks.3", "blocks.5"}
        before = len(calls)
        forwards(deep, 1)
    assert before == 4
    assert len(calls) == before
    assert not any(calls)
    assert graphs() == 1


def test_cache_around_compiled_blocks(deep: Model) -> None:
    mask = tuple(step % 3 == 0 for step in range(STEPS))
    with Fixed(Fixed.Options(mask=mask)).attach(deep):
        plain = forwards(deep)
    cache = Fixed(Fixed.Options(mask=mask))
    with cache.attach(deep), compiling(deep.stacks["transformer"], backend="eager"):
        out = forwards(deep)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(out, plain, strict=True))
    assert cache.report().computed == sum(mask)
    assert graphs() == 1


def test_compiling_leaves_nothing_behind(deep: Model) -> None:
    stack, limit = deep.stacks["transformer"], dynamo.config.recompile_limit
    plain, attributes = forwards(deep, 1)[0], [sorted(e.module.__dict__) for e in stack]

    def fail(error: type[BaseException]) -> None:
        with compiling(stack, backend="eager"):
            forwards(deep, 1)
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert [sorted(e.module.__dict__) for e in stack] == attributes
    assert all(e.site.layers == () for e in stack)
    assert dynamo.config.recompile_limit == limit
    assert torch.equal(forwards(deep, 1)[0], plain)
