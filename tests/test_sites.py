"""Attachments: what each layer sees, every order of detaching, errors and interrupts; nothing is left behind."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_flux, tiny_wan
from wanlab import attention, caches, models
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sites import LAYERS, LEGAL, Branch, Handle, RunLock, Site, Stack, StepContext, Streams, skipping

STEPS = 4
MASK = [True, False, True, False]


@pytest.fixture(scope="module", params=["wan", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    build = {"wan": tiny_wan, "flux": tiny_flux}[request.param]
    return models.load(build(tmp_path_factory.mktemp(request.param))[1], device="cpu")


@pytest.fixture(scope="module")
def text(model: Model) -> dict[str, Tensor]:
    return model.encode_text(model.spec(prompt="a cat on a mat"))["prompt"]


@pytest.fixture(autouse=True)
def nothing_left(model: Model, text: dict[str, Tensor]) -> Iterator[None]:
    """Around each test: the model's outputs bit for bit, its modules' classes and attributes, its parameters' names."""
    before, traces = forwards(model, text), fingerprint(model)
    yield
    assert fingerprint(model) == traces
    assert all(map(torch.equal, before, forwards(model, text)))


def fingerprint(model: Model) -> list[tuple[Any, ...]]:
    network = model.stacks["transformer"].network
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    modules = [
        (name, type(m), sorted(m.__dict__), [len(getattr(m, h)) for h in hooks]) for name, m in network.named_modules()
    ]
    parameters = [(name, p.data_ptr(), p.shape) for name, p in network.named_parameters()]
    sites = [site.layers for site in all_sites(model.stacks["transformer"])]
    return [*modules, *parameters, *sites, len(model._hooks)]


def all_sites(stack: Stack) -> list[Site]:
    inner = [s for entry in stack for s in (entry.site, *entry.attentions.values())]
    return [stack.site, *stack.linears.values(), *inner]


def context(model: Model, step: int) -> StepContext:
    sigma = 1 - step / STEPS
    return StepContext(step, STEPS, sigma, timestep=1000 * sigma)


def run(model: Model, text: dict[str, Tensor], step: int) -> Tensor:
    ctx = context(model, step)
    model.begin(ctx)
    noise = model.initial_noise(model.resolve(model.spec(seed=step)))
    return model.velocity(noise, ctx, Branch("cond", text, guidance=3.5))


def forwards(model: Model, text: dict[str, Tensor]) -> list[Tensor]:
    return [run(model, text, step) for step in range(STEPS)]


class Calls:
    """A recorder that counts calls by site."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def on(self, site: Site, **where: Any) -> Handle:
        def note(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.seen[site.name] += 1
            return call(*args, **kwargs)

        return site.wrap(note, "recorder", **where)


class Scale:
    """A LoRA-like change of a linear layer whose strength follows the step, as a 0-dim tensor that compiled code can
    read."""

    def __init__(self, out_features: int) -> None:
        self.strength = torch.zeros(())
        self.bias = torch.ones(out_features)

    def begin(self, ctx: StepContext) -> None:
        self.strength.fill_(0.1 * (ctx.step + 1))

    def __call__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return call(x) + self.strength * self.bias


def attach_scale(model: Model) -> Handle:
    site = next(iter(model.stacks["transformer"][1].linears.values()))
    scale = Scale(site.module.out_features)
    return Handle.join([model.on_begin(scale.begin), site.wrap(scale, "lora")])


def attach_math(model: Model) -> Handle:
    used = attention.using(model, "math")
    used.__enter__()
    return Handle(lambda: used.__exit__(None, None, None))


def attach_cache(model: Model) -> Handle:
    return Fixed(Fixed.Options(mask=tuple(MASK))).attach(model)


def attach_recorder(model: Model) -> Handle:
    calls = Calls()
    return Handle.join([calls.on(s) for s in all_sites(model.stacks["transformer"])])


ATTACH = {"scale": attach_scale, "math": attach_math, "cache": attach_cache, "recorder": attach_recorder}


@pytest.mark.parametrize("three", list(itertools.combinations(ATTACH, 3)), ids="-".join)
def test_every_order_of_attaching_and_detaching(model: Model, text: dict[str, Tensor], three: tuple[str, ...]) -> None:
    """The set of attachments decides the result, not the order they came and went in."""
    results: dict[frozenset[str], Tensor] = {}
    for come, go in itertools.product(itertools.permutations(three), repeat=2):
        handles: dict[str, Handle] = {}
        for name in come:
            handles[name] = ATTACH[name](model)
        for name in go:
            handles.pop(name).remove()
            if len(handles) != 1:
                continue
            out = run(model, text, 2)
            assert torch.equal(out, results.setdefault(frozenset(handles), out)), (come, go)
    kinds = {k for key in results for k in key}
    plain = run(model, text, 2)
    assert {k for k in kinds if torch.equal(results[frozenset([k])], plain)} <= {"recorder", "cache"}
    assert not {"scale", "math"} & {k for k in kinds if torch.equal(results[frozenset([k])], plain)}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", range(STEPS))
def test_error_at_every_step(model: Model, text: dict[str, Tensor], step: int, error: type[BaseException]) -> None:
    """An error inside a block, with everything attached, detaches everything on its way out."""

    def fail(call: Callable[..., Streams], streams: Streams) -> Streams:
        if clock[-1].step == step:
            raise error("boom")
        return call(streams)

    clock: list[StepContext] = []
    entry = model.stacks["transformer"][-1]
    with (
        pytest.raises(error, match="boom"),
        attention.using(model, "math"),
        attach_scale(model),
        attach_recorder(model),
        model.on_begin(clock.append),
        entry.site.wrap(fail, "edit"),
    ):
        forwards(model, text)
    assert clock[-1].step == step


def test_layers_see_what_outer_layers_let_through(model: Model, text: dict[str, Tensor]) -> None:
    """Under a cache: outer recorders see every forward, those inside it and the linear layers see the mask's."""
    stack = model.stacks["transformer"]
    outside, inside = Calls(), Calls()
    spec = model.spec(cache={"method": "fixed", "mask": MASK}, num_steps=STEPS)
    with caches.attach(model, spec) as cache:
        assert cache is not None
        handles = [outside.on(stack.site), inside.on(stack.site, inside="cache")]
        handles += [inside.on(s) for s in stack.linears.values()] + [inside.on(s) for s in stack.attentions()]
        forwards(model, text)
        Handle.join(handles).remove()
    computed = sum(MASK)
    blocks = {n for n in inside.seen if any(n.startswith(e.name + ".") for e in stack)}
    assert outside.seen == {stack.name: STEPS}
    assert inside.seen[stack.name] == computed
    assert blocks
    assert {inside.seen[n] for n in blocks} == {computed}, "Linear calls equal the mask"
    other = set(inside.seen) - blocks - {stack.name}
    assert {inside.seen[n] for n in other} == {STEPS}, "linears outside the blocks run at every step"
    assert cache.report().computed == computed


def test_skipped_block_is_not_run_and_still_recorded(model: Model, text: dict[str, Tensor]) -> None:
    stack = model.stacks["transformer"]
    outer, inner = Calls(), Calls()
    with outer.on(stack[1].site), inner.on(stack[1].site, inside="cache"), skipping(stack, [1]):
        skipped = run(model, text, 0)
    assert outer.seen[stack[1].name] == 1
    assert not inner.seen
    assert not torch.equal(skipped, run(model, text, 0))
    ctx = context(model, 0)
    noise = model.initial_noise(model.resolve(model.spec(seed=0)))
    assert torch.equal(skipped, model.velocity(noise, ctx, Branch("cond", text, skip_blocks=(1,), guidance=3.5)))


def test_running_the_stack_in_parts_equals_the_whole(model: Model, text: dict[str, Tensor]) -> None:
    stack, ctx = model.stacks["transformer"], context(model, 1)
    noise = model.initial_noise(model.resolve(model.spec()))
    with torch.no_grad():
        streams = model.embed(noise, ctx, Branch("cond", text, guidance=3.5))
        whole = stack.run(streams)
        parts = stack.run(stack.run(streams, stop=2), start=2)
        again = streams.plus(whole.residual(streams))
    assert all(torch.equal(whole.tokens[n], parts.tokens[n]) for n in whole.tokens)
    assert all(torch.allclose(whole.tokens[n], again.tokens[n], rtol=1e-5, atol=1e-5) for n in whole.tokens)


def test_chain_order_is_by_layer_then_by_attaching() -> None:
    order: list[str] = []

    def named(name: str) -> Callable[..., Any]:
        def fn(call: Callable[..., Any], *args: Any) -> Any:
            order.append(name)
            return call(*args)

        return fn

    site = Site("b", "block", lambda x: x)
    for layer in ("recorder", "cache", "compile", "edit", "offload"):
        site.wrap(named(layer), layer)
    site.wrap(named("second cache"), "cache")
    site.wrap(named("inside"), "recorder", inside="cache")
    assert site(1) == 1
    assert order == ["recorder", "edit", "second cache", "cache", "inside", "offload", "compile"]


@pytest.mark.parametrize("kind", LEGAL)
def test_layers_that_a_site_lacks_are_refused(kind: Any) -> None:
    site = Site("s", kind, lambda x: x)
    for layer in LAYERS:
        if layer not in LEGAL[kind]:
            with pytest.raises(WanlabError, match="Unknown layer"):
                site.wrap(lambda call, x: call(x), layer)
    with pytest.raises(WanlabError, match="cannot go inside"):
        site.wrap(lambda call, x: call(x), "recorder", inside="quant" if kind != "linear" else "cache")


def test_handles_remove_twice_and_replacements_stack(model: Model) -> None:
    site = model.stacks["transformer"].attentions()[0]
    first, second = (lambda q, k, v, site, mask=None: q), (lambda q, k, v, site, mask=None: v)
    plain = site.fn
    one, two = site.use(first), site.use(second)
    assert site.fn is second
    one.remove()
    one.remove()
    assert site.fn is second
    two.remove()
    assert site.fn is plain


def test_quant_replaces_a_subclass_of_linear() -> None:
    """Layers go around whatever class a linear layer has."""

    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * super().forward(x)

    net = nn.Sequential(Half(3, 2))
    x, plain = torch.randn(4, 3), net(torch.randn(1, 3)).shape
    stack = Stack("t", net, [], layout=None)  # type: ignore[arg-type]
    with stack.linears["0"].wrap(lambda call, x: 2 * call(x), "lora"):
        assert torch.equal(net(x), nn.Linear.forward(net[0], x))
        assert isinstance(net[0], Half)
    assert type(net[0]) is Half
    assert plain == (1, 2)


def test_busy_model_refuses_attachments_and_detaching_waits(model: Model) -> None:
    site, started, go = model.stacks["transformer"].site, threading.Event(), threading.Event()
    handle = site.wrap(lambda call, *a, **k: call(*a, **k), "recorder")

    def generate() -> None:
        with model.lock.hold("a long run"):
            started.set()
            go.wait(5)

    worker = threading.Thread(target=generate)
    worker.start()
    started.wait(5)
    with pytest.raises(WanlabError, match="a long run"):
        site.wrap(lambda call, *a: call(*a), "edit")
    with pytest.raises(WanlabError, match="a long run"):
        model.on_begin(lambda ctx: None)
    remover = threading.Thread(target=handle.remove)
    remover.start()
    remover.join(0.15)
    assert remover.is_alive()
    assert site.layers == ("recorder",)
    go.set()
    remover.join(5)
    worker.join(5)
    assert site.layers == ()


def test_lock_is_reentrant_and_says_who_it_waits_for() -> None:
    lock, waited = RunLock(), []
    inside = threading.Event()
    with lock.hold("outer"), lock.hold("inner"):
        assert lock.owner == "outer"

        def second() -> None:
            with lock.hold("second", on_wait=waited.append):
                inside.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not inside.wait(0.1)
    thread.join(5)
    assert set(waited) == {"outer"}
    assert lock.owner == ""


def test_attachments_lists_what_is_attached_by_hand(model: Model) -> None:
    """By name and layer, clocks too; nothing afterwards, and nothing is read from disk to say so."""
    stack = model.stacks["transformer"]
    entry = stack[1]
    attention_site = next(iter(entry.attentions.values()))
    linear = next(iter(entry.linears.values()))
    assert model.attachments() == []
    sites = [(stack.site, "recorder"), (entry.site, "cache"), (attention_site, "edit"), (linear, "lora")]
    with Handle.join([site.wrap(lambda call, *args, **kw: call(*args, **kw), layer) for site, layer in sites]):
        names = [f"transformer.{entry.name}: cache", f"transformer.{attention_site.name}: edit"]
        assert model.attachments() == ["transformer: recorder", *names, f"transformer.{linear.name}: lora"]
    with attention.using(model, "math", blocks=[0], steps=[0]):
        assert model.attachments() == ["on_begin: _Switch.begin"]
    with attention.using(model, "math", blocks=[0]):
        roles = [f"transformer.{site.name}: attention" for site in stack[0].attentions.values()]
        assert model.attachments() == roles
    assert model.attachments() == []


def test_attachments_reads_no_network(tmp_path: Path) -> None:
    fresh = models.load(tiny_wan(tmp_path)[1], device="cpu")
    with fresh.on_begin(print):
        assert fresh.attachments() == ["on_begin: print"]
    assert not any(part.loaded for part in fresh.parts.values())
