"""What every cache keeps to, whatever its rule: exact settings, honest shares, forks, interrupts, predicted bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cache_loop import STEPS, Loop, Stop, share_of, shares
from tests.tiny import tiny_flux, tiny_wan
from wanlab import caches, models, stages
from wanlab.caches import Cache, Run
from wanlab.caches.fixed import Fixed
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.registry import CACHES
from wanlab.study._plan import plan_strips


@dataclass(frozen=True)
class Case:
    """A method with options under which it computes some of the steps, and ones under which it changes nothing."""

    method: str
    options: dict[str, Any]
    exact: dict[str, Any]
    reads: str = "none"
    """How often it waits for the device: "none", once a "step" or once a "forward"."""
    too_few: dict[str, Any] = field(default_factory=dict)
    """Settings with which it could reuse nothing, besides `options`."""
    flux: dict[str, Any] = field(default_factory=dict)
    """Options that differ for the tiny Flux, whose residuals change by more."""
    content: bool = False
    """Whether it judges Flux by content: it waits once a forward, and runs the first block's modulation to look."""

    @property
    def name(self) -> str:
        return f"{self.method}-{self.options['modules']}" if "modules" in self.options else self.method

    def of(self, model: Model) -> dict[str, Any]:
        """The part `cache` of a spec of the model."""
        return {"method": self.method, **self.options, **(self.flux if model.family == "flux" else {})}


RATIOS = [1.0 + 0.01 * (-1) ** i for i in range(2 * (STEPS - 1))]
TEA = {"coefficients": {"transformer": [0.1, 0.0], "transformer_2": [0.1, 0.0]}, "threshold": 0.2}
TEA_FLUX = {"coefficients": [1.0, 0.0], "threshold": 0.3}
CASES = [
    Case("easycache", {"threshold": 0.6, "warmup_steps": 2}, {"threshold": 0.0}, "step", {"num_steps": 3}),
    Case("first_block", {"threshold": 0.015}, {"threshold": 0.0}, "forward", {"num_steps": 1}, {"threshold": 0.1}),
    Case(
        "dbcache",
        {"threshold": 0.015, "num_first": 1, "num_last": 1, "warmup_steps": 2},
        {"threshold": 0.0},
        "forward",
        {"num_steps": 2},
        {"threshold": 0.1},
    ),
    Case("adacache", {}, {"max_interval": 1}, "step", {"num_steps": 4}),
    Case("seacache", {"threshold": 0.6}, {"threshold": 0.0}, "step", {"num_steps": 2}),
    Case("magcache", {"mag_ratios": RATIOS, "retention": 0.0}, {"threshold": 0.0}, too_few={"num_steps": 1}),
    Case("teacache", TEA, {"threshold": 0.0}, too_few={"num_steps": 2}, flux=TEA_FLUX, content=True),
    Case("taylorseer", {"interval": 3, "modules": "last_block"}, {"interval": 1}),
    Case("taylorseer", {"interval": 3, "modules": "all"}, {"interval": 1}),
    Case("pab", {"self_range": 2, "cross_range": 3, "start": 350, "stop": 1000}, {"self_range": 1, "cross_range": 1}),
]


@pytest.fixture(scope="module", params=["wan2", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    definition = tiny_flux(folder)[1] if request.param == "flux" else tiny_wan(folder, 2)[1]
    return models.load(definition, device="cpu")


@pytest.fixture(scope="module")
def loop(model: Model) -> Loop:
    return Loop(model)


@dataclass(frozen=True)
class Once:
    """One cached run: the latents before and after each step, the state after each, what ran."""

    cache: Cache
    latents: list[torch.Tensor]
    saved: list[bytes]
    ran: dict[tuple[str, int], set[int]]
    partly: dict[tuple[str, int], set[int]]


@pytest.fixture(scope="module")
def once(loop: Loop) -> Callable[[Case], Once]:
    @functools.cache
    def run(name: str) -> Once:
        case = next(case for case in CASES if case.name == name)
        cache = make(case, loop.model)
        saved, latents = [], [loop.noise]
        with cache.attach(loop.model):
            for step in range(STEPS):
                latents.append(loop.run(latents[-1], step, step + 1))
                saved.append(save(cache.state()))
        return Once(cache, latents, saved, dict(loop.ran), dict(loop.partly))

    return lambda case: run(case.name)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def make(case: Case, model: Model, **more: Any) -> Cache:
    """The cache that executes a case in a run, as a spec would make it."""
    spec = model.spec(num_steps=STEPS, cache={**case.of(model), **more})
    cache = caches.prepared(model, spec)
    assert cache is not None
    return cache


def test_the_exact_setting_is_exact(loop: Loop, case: Case) -> None:
    cache = make(case, loop.model, **case.exact)
    with cache.attach(loop.model):
        assert torch.equal(loop.run(loop.noise), loop.plain)
    assert cache.report().reused == 0
    assert not loop.model.attachments()


def test_shares_are_the_work_that_ran(loop: Loop, case: Case, once: Callable[[Case], Once]) -> None:
    """By every forward's calls of linear layers; and something is reused, something computed."""
    cache, ran, partly = once(case).cache, once(case).ran, once(case).partly
    report = cache.report()
    looked_at = {0} if case.content and loop.model.family == "flux" else set()
    assert report.reused
    assert any(share == 1 for steps in report.shares.values() for step, share in steps.items() if step > min(steps))
    assert sum(map(len, report.shares.values())) == 2 * STEPS
    for key, steps in report.shares.items():
        expert, branch, _ = key.split("/")
        stack = loop.model.stacks[expert]
        assert steps[min(steps)] == 1.0, "the first forward has nothing to reuse"
        for step, share in steps.items():
            if cache.level == "part":
                assert (share == 1) == (ran[branch, step] == set(range(len(stack))))
            else:
                assert share == share_of(loop, ran[branch, step], expert), (key, step)
                assert partly[branch, step] <= looked_at, "a block runs whole or not at all"
            assert report.hit_map[key][step] == (share == 1)
    total = sum(share for steps in report.shares.values() for share in steps.values())
    assert report.ideal_speedup == pytest.approx(2 * STEPS / total)


def test_state_forks_at_every_step(loop: Loop, case: Case, once: Callable[[Case], Once]) -> None:
    """Through safetensors, and without a trace of what the original did afterwards."""
    first = once(case)
    for fork in range(1, STEPS):
        second = make(case, loop.model)
        second.load_state(load(first.saved[fork - 1]))
        with second.attach(loop.model):
            assert torch.equal(loop.run(first.latents[fork], fork), first.latents[-1]), fork
        assert second.report() == first.cache.report()


def test_a_run_that_was_stopped_leaves_no_trace_in_the_next(
    loop: Loop, case: Case, once: Callable[[Case], Once]
) -> None:
    """Stopped before, inside or after the blocks of a forward of either branch, at every step."""
    fresh, cache = once(case), make(case, loop.model)
    with cache.attach(loop.model):
        for step, at in [(0, 1), *enumerate(range(STEPS))]:
            place = ("embed", "block", "head")[at % 3]
            interrupted(loop, (step, ("cond", "uncond")[at % 2]), place)
            assert torch.equal(loop.run(loop.noise), fresh.latents[-1]), (at, place)
            assert cache.report() == fresh.cache.report()


def interrupted(loop: Loop, at: tuple[int, str], place: str) -> None:
    """A run from other noise that ends at a forward, if it gets to the place."""
    stack = loop.model.stacks[loop.experts[at[0]]]
    now: list[tuple[int, str]] = []

    def stop(call: Any, *args: Any, **span: Any) -> Any:
        if now[-1] == at:
            raise Stop
        return call(*args, **span)

    def stop_after(call: Any, *args: Any, **span: Any) -> Any:
        result = call(*args, **span)
        if now[-1] == at:
            raise Stop
        return result

    if place == "embed":
        handle = stack.forward.wrap(stop, "recorder")
    elif place == "block":
        handle = stack[len(stack) - 1].site.wrap(stop, "recorder")
    else:
        handle = stack.forward.wrap(stop_after, "recorder")
    with handle, loop.model.on_begin(lambda ctx: now.append((ctx.step, ctx.branch))):
        try:
            loop.run(-loop.noise, stop=at[0] + 1)
        except Stop:
            return
    assert place == "block", "only blocks may be left out"


def test_one_read_on_the_host_at_most(loop: Loop, case: Case) -> None:
    """As often as the case says, beside what the forward itself reads."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    reads = "forward" if case.content and loop.model.family == "flux" else case.reads
    with Reads() as plain:
        loop.run(loop.noise)
    with make(case, loop.model).attach(loop.model), Reads() as cached:
        loop.run(loop.noise)
    assert cached.count - plain.count <= {"none": 0, "step": STEPS, "forward": 2 * STEPS}[reads]


def test_branches_come_and_go(loop: Loop, case: Case) -> None:
    """A branch with nothing to reuse computes; one that returns follows its own memory."""

    def some(step: int) -> tuple[str, ...]:
        return ("cond", "uncond") if step in (0, 1, 6, 7) else ("cond", "skip") if step in (3, 5) else ("cond",)

    cache = make(case, loop.model)
    with cache.attach(loop.model):
        assert torch.isfinite(loop.run(loop.noise, branches=some)).all()
    for steps in cache.report().shares.values():
        assert steps[min(steps)] == 1.0
    assert len(shares(cache, "skip")) == 2


def test_two_equal_samples_are_judged_as_one(loop: Loop, case: Case, once: Callable[[Case], Once]) -> None:
    cache, alone = make(case, loop.model), once(case)
    with cache.attach(loop.model):
        pair = loop.run(torch.cat([loop.noise, loop.noise]))
    report, expected = cache.report(), alone.cache.report()
    assert report.hit_map == expected.hit_map
    assert report.state_bytes == pytest.approx(2 * expected.state_bytes, abs=8)  # numbers have no batch
    for sample in pair.split(1):
        assert torch.allclose(sample, alone.latents[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_branches": True},
        {"guidance": {"method": "cfg_interval", "start": 0.2, "stop": 0.7}},
        {"guidance": {"method": "slg", "layers": [1], "scale": 2.0}},
    ],
    ids=["cfg", "batched", "interval", "slg"],
)
def test_bytes_are_predicted(loop: Loop, case: Case, changes: Any) -> None:
    """From the configuration, equal to what the run of a spec holds at its end."""
    model = loop.model
    if changes and model.family == "flux":
        pytest.skip("Flux here has guidance inside and one branch")
    spec = model.spec(prompt="a cat", num_steps=STEPS, cache=case.of(model), **changes)
    text, conditions = stages.encode_text(model, spec), stages.encode_conditions(model, spec)
    _, ran = stages.denoise_recorded(model, spec, text, conditions)
    assert 0 < ran["cache"]["state_bytes"] == caches.predict_bytes(model, spec)


def test_forced_steps_are_computed(loop: Loop, case: Case, once: Callable[[Case], Once]) -> None:
    cache = once(case).cache
    run = Run.of(loop.model, loop.spec)
    forced = cache.forced(run)
    if forced is None:
        assert isinstance(cache, Fixed), "what executes a plan has nothing left to say"
        return
    assert tuple(forced) == run.branch_names
    for branch, steps in forced.items():
        assert not all(steps)
        assert all(share == 1 for share, must in zip(shares(cache, branch), steps, strict=True) if must)


def test_the_plan_is_drawn_before_the_run(model: Model, case: Case) -> None:
    spec = model.spec(num_steps=STEPS, cache=case.of(model))
    strips = plan_strips(spec, model)
    assert tuple(strips.shares) == Run.of(model, spec).branch_names
    assert all(row[0] == 1 and row.min() < 1 for row in strips.shares.values())


@pytest.mark.parametrize("case", [case for case in CASES if case.too_few], ids=lambda case: case.name)
def test_too_few_steps_are_refused(model: Model, case: Case) -> None:
    spec = model.spec(cache=case.of(model), **case.too_few)
    with pytest.raises(WanlabError, match=r"these \d steps"):
        caches.check(model, spec)


def test_every_method_is_here() -> None:
    """Those of the package; tests of other files may have registered more."""
    names = {name for name in CACHES.names() if CACHES.get(name).__module__.startswith("wanlab.")}
    assert names - {"fixed"} == {case.method for case in CASES}
