"""Recorders: numbers against float64, what they see of experts, branches, batches and caches, and that they change
nothing."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_video import film, frames_of, tiny_vace
from wanlab import probe
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sites import Branch, Handle, StepContext, Streams, compiling

STEPS = 4
FAMILIES = {"wan": tiny_wan, "wan_2": functools.partial(tiny_wan, experts=2), "vace": tiny_vace, "flux": tiny_flux}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    @functools.cache
    def load(family: str) -> Model:
        return wanlab.load(FAMILIES[family](tmp_path_factory.mktemp(family))[1], device="cpu")

    return load


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Iterator[Model]:
    yield (found := models(request.param))
    assert found.attachments() == []


@pytest.fixture
def wan(models: Callable[[str], Model]) -> Iterator[Model]:
    yield (found := models("wan"))
    assert found.attachments() == []


def run(model: Model, on_step: Any = None, **changes: Any) -> Tensor:
    if model.family == "vace":
        changes |= {"video": frames_of(film(3)), "guidance_scale": 3.0}
    spec = model.spec(**{"prompt": "a cat", "num_steps": STEPS, "seed": 1, **changes})
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    return wanlab.denoise(model, spec, text, conditions, on_step=on_step)


class Watched:
    """In and out of every block and of the stack, by (expert, site, branch), a list over calls; in float64."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str, str], list[tuple[int, dict[str, tuple[Tensor, Tensor]]]]] = defaultdict(list)
        self.ctx: Any = None

    def begin(self, ctx: StepContext) -> None:
        self.ctx = ctx

    def attach(self, model: Model) -> Handle:
        handles = [model.on_begin(self.begin)]
        for expert, stack in model.stacks.items():
            named = {"stack": stack.site, **{entry.name: entry.site for entry in stack}}
            for name, site in named.items():
                handles.append(site.wrap(functools.partial(self.note, expert, name), "recorder"))
        return Handle.join(handles)

    def note(self, expert: str, name: str, call: Any, streams: Streams, **span: Any) -> Streams:
        after = call(streams, **span)
        pairs = {
            stream: (streams.tokens[stream].double(), x.double())
            for stream, x in after.tokens.items()
            if x is not streams.tokens[stream]
        }
        self.calls[expert, name, self.ctx.branch].append((self.ctx.step, pairs))
        return after


def expected(calls: list[tuple[int, dict[str, tuple[Tensor, Tensor]]]], stream: str) -> dict[str, dict[int, Any]]:
    """Every cheap quantity of one series by step, straight from its definition."""
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    last: tuple[Tensor, Tensor] | None = None
    for step, pairs in calls:
        before, after = pairs[stream]
        residual = after - before
        for side, x in (("in", before), ("out", after)):
            found[side][step] = [x.norm(dim=-1).mean(), x.square().mean().sqrt()]
        found["residual"][step] = residual.norm(dim=-1).mean()
        if last is not None:
            then, old = last
            moved = after - then
            found["change"][step] = [moved.abs().mean() / then.abs().mean(), moved.norm() / then.norm()]
            found["cosine"][step] = torch.cosine_similarity(after.flatten(), then.flatten(), dim=0)
            found["ratio"][step] = (residual.norm(dim=-1) / old.norm(dim=-1)).mean()
        last = after, residual
    return found


def test_cheap_quantities_equal_their_definitions(model: Model) -> None:
    watched = Watched()
    quantities = ("in", "out", "change", "cosine", "residual", "ratio")
    names = [f"{site}.{q}" for site in ("stack", "*blocks.*") for q in quantities]
    with watched.attach(model), probe.record(model, *names) as trace:
        run(model)
    several = len(model.stacks) > 1
    count = 0
    for (expert, name, branch), calls in watched.calls.items():
        for stream in calls[0][1]:
            for quantity, by_step in expected(calls, stream).items():
                full = f"{expert}.{name}.{quantity}"
                series = [s for s in trace.matching(full) if (s.branch, s.stream) == (branch, stream)]
                assert len(series) == 1, (full, branch, stream)
                assert trace.data[series[0]].keys() == by_step.keys(), full
                for step, value in by_step.items():
                    assert np.allclose(trace.data[series[0]][step], value, rtol=2e-5, atol=1e-6), (full, step)
                    count += 1
    assert count >= 180
    assert all(name.startswith(("transformer.", "transformer_2.")) == several for name in trace.names)


def test_everything_at_once_changes_nothing(model: Model) -> None:
    """Every legal name recorded, tensors and maps too: the latents are the same bit for bit."""
    plain = run(model)
    with probe.record(model, *model.sites()) as trace:
        recorded = run(model)
    assert torch.equal(recorded, plain)
    assert torch.equal(run(model), plain)
    places = {(s.where, s.quantity) for s in trace.data}
    assert places == {(where, q) for where, wanted in trace.recorded for q in wanted}
    assert len(trace.names) == len(set(trace.names)) == len(places)
    assert set(trace.names) <= set(model.sites())


def test_batched_branches_are_told_apart(wan: Model) -> None:
    names = ("blocks.*.out", "blocks.*.change", "stack.ratio", "blocks.*.self.entropy", "blocks.*.cross.mass")
    with probe.record(wan, *names) as one:
        run(wan)
    with probe.record(wan, *names) as both:
        run(wan, batch_branches=True)
    for name in names:
        apart, together = one.array(name), both.array(name)
        assert apart.axes == together.axes
        assert apart.axes["branch"] == ("cond", "uncond")
        assert np.allclose(apart, together, rtol=1e-3, equal_nan=True)
    out = one.array("blocks.*.out")
    assert not np.allclose(out[:, :, 0], out[:, :, 1], rtol=1e-3), "the branches differ"


def test_two_experts_have_prefixes_and_states_of_their_own(models: Callable[[str], Model]) -> None:
    model = models("wan_2")
    with probe.record(model, "blocks.*.change", "transformer_2.stack.ratio") as trace:
        run(model)
    assert "transformer_2.stack.ratio" in trace.names
    assert "transformer.stack.ratio" not in trace.names
    change = trace.array("blocks.*.change")
    assert list(change.axes) == ["expert", "step", "block", "branch", "norm"]
    assert change.axes["expert"] == ("transformer", "transformer_2")
    ran = [~np.isnan(change[i]).any((1, 2, 3)) for i in range(2)]
    experts = model.experts(model.resolve(model.spec(num_steps=STEPS)))
    for i, expert in enumerate(change.axes["expert"]):
        steps = [step for step, name in enumerate(experts) if name == expert]
        assert np.flatnonzero(ran[i]).tolist() == steps[1:]
    assert trace.array("transformer_2.blocks.0.change").shape[1:] == (1, 2, 2)


def test_a_prefix_is_legal_where_there_is_one_expert(wan: Model) -> None:
    assert wan.sites("transformer.blocks.1.out") == ["blocks.1.out"]
    with probe.record(wan, "transformer.blocks.1.out") as trace:
        run(wan)
    assert trace.names == ["blocks.1.out"]
    assert np.array_equal(trace.array("blocks.1.out"), trace.array("transformer.blocks.1.out"))


def test_stars_stay_between_dots(wan: Model) -> None:
    assert wan.sites("blocks.*.out") == [f"blocks.{i}.out" for i in range(4)]
    assert set(wan.sites("blocks.0.*.entropy")) == {
        f"blocks.0.{n}.entropy" for n in ("attn1", "self", "attn2", "cross")
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("blocks.*.entrpy", "blocks.*.self.entropy"),
        ("block.*.out", "blocks.*.out"),
        ("blocks.9.out", "blocks.0.out"),
        ("blocks.*.ration", "blocks.*.ratio"),
        ("blocks.0.out.mass", "blocks.0.cross.mass"),
        ("transformer_2.blocks.0.out", "blocks.0.out"),
    ],
)
def test_a_name_that_matches_nothing_names_the_nearest(wan: Model, name: str, nearest: str) -> None:
    for attach in (probe.record(wan, "blocks.0.out", name), probe.edit(wan, name, lambda x, ctx: x)):
        with pytest.raises(WanlabError, match="Unknown s") as error, attach:
            pass
        assert wan.attachments() == []
        if "edit" not in str(error.value):
            assert nearest in error.value.choices
    with pytest.raises(WanlabError, match="Unknown site"):
        wan.sites(name)


def test_nothing_named_is_an_error(wan: Model) -> None:
    with pytest.raises(WanlabError, match="Nothing is named"), probe.record(wan):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 2])
def test_errors_detach_and_leave_a_readable_trace(wan: Model, step: int, error: type[BaseException]) -> None:
    plain = run(wan)

    def fail(i: int, *_: Any) -> None:
        if i == step:
            raise error("boom")

    with (
        pytest.raises(error, match="boom"),
        probe.record(wan, "blocks.*.change", "blocks.*.out", "blocks.*.self.entropy") as trace,
    ):
        run(wan, on_step=fail)
    assert wan.attachments() == []
    assert trace.array("blocks.*.out").axes["step"] == tuple(range(step + 1))
    assert torch.equal(run(wan), plain)


def interrupted_at(line: int, what: Callable[[], Any]) -> tuple[bool, bool]:
    """Press Ctrl-C at the n-th line that probe and sites run; whether there was such a line, and whether it acted."""
    left, acted = line, False

    def watch(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("/probe/_edit.py", "/probe/_record.py", "/sites/chain.py")):
            return None
        left -= event == "line"
        if event == "line" and left == 0:
            signal.raise_signal(signal.SIGINT)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with what():
            pass
    except KeyboardInterrupt:
        acted = True
    finally:
        sys.settrace(before)
    return left <= 0, acted


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kind", ["edit", "record"])
def test_ctrl_c_at_any_line_leaves_nothing(wan: Model, kind: str) -> None:
    attach = {
        "edit": lambda: probe.edit(wan, "blocks.0.out", lambda tensor, ctx: tensor),
        "record": lambda: probe.record(wan, "blocks.0.out"),
    }[kind]
    line, reached = 1, True
    while reached:
        reached, acted = interrupted_at(line, attach)
        assert wan.attachments() == [], line
        assert acted == reached, line
        line += 1
    assert line > 40


def test_an_error_while_attaching_leaves_nothing(wan: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    site = wan.stacks["transformer"][2].site

    def refuse(*_: Any) -> Handle:
        raise WanlabError("not now")

    monkeypatch.setattr(site, "wrap", refuse)
    for attach in (probe.record(wan, "blocks.*.out"), probe.edit(wan, "blocks.*.out", lambda x, ctx: x)):
        with pytest.raises(WanlabError, match="not now"), attach:
            pass
        assert wan.attachments() == []


def test_a_busy_model_refuses(wan: Model) -> None:
    started, go = threading.Event(), threading.Event()

    def generate() -> None:
        with wan.lock.hold("a long run"):
            started.set()
            go.wait(5)

    worker = threading.Thread(target=generate)
    worker.start()
    started.wait(5)
    for attach in (probe.record(wan, "blocks.*.out"), probe.edit(wan, "blocks.*.out", lambda x, ctx: x)):
        with pytest.raises(WanlabError, match="a long run"), attach:
            pass
    go.set()
    worker.join(5)


def test_two_recorders_see_the_same(wan: Model) -> None:
    with probe.record(wan, "blocks.*.change") as outer, probe.record(wan, "blocks.*.change", "stack.out") as inner:
        run(wan)
    assert np.array_equal(outer.array("blocks.*.change"), inner.array("blocks.*.change"), equal_nan=True)


def test_runs_are_told_apart_and_start_afresh(wan: Model) -> None:
    with probe.record(wan, "blocks.*.change") as trace:
        run(wan)
        run(wan, seed=2)
        run(wan)
    change = trace.array("blocks.*.change")
    assert change.axes["run"] == (0, 1, 2)
    assert np.array_equal(change[0], change[2], equal_nan=True)
    assert not np.array_equal(change[0], change[1], equal_nan=True)
    assert np.isnan(change[:, 0]).all()
    assert not np.isnan(change[:, 1:]).any()


def test_runs_of_two_experts_are_told_apart(models: Callable[[str], Model]) -> None:
    model = models("wan_2")
    with probe.record(model, "stack.out") as trace:
        run(model)
        run(model, seed=2)
    out = trace.array("stack.out")
    assert out.axes["run"] == (0, 1)
    assert out.axes["expert"] == ("transformer", "transformer_2")
    assert not np.array_equal(out[0], out[1], equal_nan=True)


def test_windows_are_told_apart_and_start_afresh(wan: Model) -> None:
    spec = wan.resolve(wan.spec(prompt="a cat"))
    text, noise = wanlab.encode_text(wan, spec)["prompt"], wan.initial_noise(spec)
    with probe.record(wan, "stack.ratio") as trace:
        for window in range(2):
            for step in range(3):
                ctx = StepContext(step, 3, 1 - step / 3, timestep=1000 * (1 - step / 3), window=window)
                wan.begin(ctx)
                wan.velocity(noise, ctx, Branch("cond", text))
    ratio = trace.array("stack.ratio")
    assert list(ratio.axes) == ["window", "step", "block", "branch"]
    assert np.isnan(ratio[:, 0]).all()
    assert np.array_equal(ratio[0], ratio[1], equal_nan=True)


def test_runs_of_one_step_are_told_apart(wan: Model) -> None:
    with probe.record(wan, "stack.ratio", "stack.out") as trace:
        run(wan, num_steps=1)
        run(wan, num_steps=1)
    assert trace.array("stack.out").axes["run"] == (0, 1)
    with pytest.raises(WanlabError, match="Nothing was recorded"):
        trace.array("stack.ratio")


def test_a_recorder_sees_past_a_cache_or_inside_it(wan: Model) -> None:
    mask = [True, True, False, True]
    names = ("stack.ratio", "stack.residual", "blocks.*.out", "stack.out")
    with probe.record(wan, *names) as outside, probe.record(wan, *names, inside="cache") as within:
        run(wan, cache={"method": "fixed", "mask": mask})
    assert not np.isnan(outside.array("stack.out")).any()
    ratio = outside.array("stack.ratio")[:, 0]
    assert np.allclose(ratio[2], 1, atol=1e-5), "the residual of the step before"
    assert not np.allclose(ratio[3], 1, atol=1e-3)
    computed = [~np.isnan(t.array(n)[:, 0]).any((1, 2)) for t, n in ((within, "stack.out"), (outside, "blocks.*.out"))]
    assert [c.tolist() for c in computed] == [mask, mask]
    assert np.allclose(within.array("stack.ratio")[3, 0], ratio[3], rtol=1e-5), "against the last computed call"


def test_a_skipped_block_passes_its_tokens_on(models: Callable[[str], Model]) -> None:
    model = models("flux")
    with (
        probe.record(model, "*_blocks.*.residual") as outside,
        probe.record(model, "*_blocks.*.residual", inside="cache") as within,
    ):
        spec = model.resolve(model.spec(prompt="a cat"))
        ctx = StepContext(0, 1, 1.0, timestep=1000.0)
        text = wanlab.encode_text(model, spec)["prompt"]
        model.begin(ctx)
        model.velocity(model.initial_noise(spec), ctx, Branch("cond", text, skip_blocks=(1,), guidance=3.5))
    residual = outside.array("*_blocks.*.residual")
    assert residual.axes["stream"] == ("text", "image")
    skipped = residual.axes["block"].index("transformer_blocks.1")
    assert residual[0, skipped, 0, 1] == 0
    assert "transformer_blocks.1" not in within.array("*_blocks.*.residual").axes["block"]


def test_compiled_blocks_stay_compiled_unless_their_attention_is_looked_at(wan: Model) -> None:
    dynamo.reset()
    stack = wan.stacks["transformer"]
    spec = wan.resolve(wan.spec(prompt="a cat"))
    text = wanlab.encode_text(wan, spec)["prompt"]

    def forward() -> Tensor:
        ctx = StepContext(0, 1, 1.0, timestep=1000.0)
        wan.begin(ctx)
        return wan.velocity(wan.initial_noise(spec), ctx, Branch("cond", text))

    with compiling(stack, backend="eager"):
        plain = forward()
        with probe.record(wan, "blocks.*.out", "blocks.*.ratio", "stack.change"):
            assert torch.equal(forward(), plain)
            assert stack.uncompiled == set()
        with probe.record(wan, "blocks.1.self.entropy"):
            forward()
            assert stack.uncompiled == {"blocks.1"}
    dynamo.reset()


def test_state_bytes_are_what_the_docstring_says(wan: Model) -> None:
    """change and cosine hold one output a block and branch; ratio one float32 a token."""
    spec = wan.resolve(wan.spec())
    tokens = int(np.prod(wan.latent_shape(spec)[1:])) // 4
    width = 24
    for names, num_bytes in (
        (("blocks.*.ratio",), 4 * 2 * tokens * 4),
        (("blocks.*.cosine",), 4 * 2 * (tokens * width * 4 + 4)),
        (("blocks.*.out", "blocks.*.in"), 0),
    ):
        with probe.record(wan, *names) as trace:
            run(wan)
        assert trace.state_bytes == num_bytes, names


def test_nothing_is_held_after_the_last_step(wan: Model) -> None:
    """So that what comes after it, such as decoding, has the memory."""
    made: list[weakref.ref[Tensor]] = []

    def note(x: Tensor, ctx: StepContext) -> Tensor:
        made.append(weakref.ref(x))
        return x

    def alive(*_: Any) -> None:
        held.append(sum(ref() is not None for ref in made))

    held: list[int] = []
    with (
        probe.edit(wan, "blocks.*.out", note),
        probe.record(wan, "blocks.*.out", "blocks.*.in", "blocks.*.change", "blocks.*.cosine", "blocks.*.ratio"),
    ):
        run(wan, on_step=alive)
        assert [ref for ref in made if ref() is not None] == []
    assert held[:3] == [8, 8, 8], "one output a block and branch"
