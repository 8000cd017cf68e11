"""What a cache left out is computed beside the run: errors equal separate forwards, and the run is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import caches, study
from wanlab.caches import Cache, Run
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.registry import CACHES
from wanlab.sites import Branch, StepContext

STEPS = 6


@CACHES.register("every_third")
class EveryThird(Cache):
    """Computes each third step and holds the mean of its latents as a signal."""

    def predict(self, run: Run) -> int:
        raise NotImplementedError

    def decide(self, ctx: StepContext) -> bool:
        assert ctx.latents is not None
        self.memory(ctx).signals[ctx.step] = float(ctx.latents.mean())
        return ctx.step % 3 == 0


METHODS: dict[str, dict[str, Any]] = {
    "stack": {"method": "fixed", "mask": [True, False, True, False, False, True]},
    "signal": {"method": "every_third"},
    "forward": {"method": "taylorseer", "interval": 3},
    "part": {"method": "pab", "cross_range": 3, "start": 0, "stop": 1000},
}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"), 2)[1], device="cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return wanlab.load(tiny_flux(tmp_path_factory.mktemp("flux"))[1], device="cpu")


def make(model: Model, cache: Any = "none", **changes: Any) -> Any:
    second = {"expert_boundary": 0.6} if len(model.experts_present) == 2 else {}
    return model.spec(prompt="a red fox", num_steps=STEPS, seed=3, cache=cache, **second, **changes)


def denoised(model: Model, spec: Any) -> Tensor:
    return wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec))


def cached_forwards(model: Model, spec: Any) -> dict[tuple[int, str], tuple[Any, ...]]:
    """(step, branch) -> what entered each forward of a cached run, and the velocity."""
    seen: dict[tuple[int, str], tuple[Any, ...]] = {}

    def note(call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        velocity = call(latents, ctx, branch)
        seen[ctx.step, ctx.branch] = (latents, ctx, branch, velocity)
        return velocity

    handles = [stack.forward.wrap(note, "recorder") for stack in model.stacks.values() if stack.forward is not None]
    try:
        denoised(model, spec)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("level", METHODS)
def test_errors_are_those_of_separate_forwards(wan: Model, level: str, batched: bool) -> None:
    """The run is bit-equal to the plain cached one; at reuse the truth is the uncached network at the same latents."""
    spec = make(wan, METHODS[level], batch_branches=batched)
    found = study.counterfactual(wan, spec)
    assert wan.attachments() == []
    assert torch.equal(found.latents, denoised(wan, spec))
    seen = cached_forwards(wan, spec)
    assert len(found.rows) == len(seen)
    assert found.report.reused > 0
    for row in found.rows:
        latents, ctx, branch, velocity = seen[row.step, row.branch]
        wan.begin(ctx)
        truth = wan.velocity(latents, ctx, branch).double()
        apart = (velocity.double() - truth).abs()
        if row.share == 1:
            assert not apart.any()
            assert np.isnan([row.l1, row.l2, row.cosine, row.residual]).all()
        else:
            assert row.l1 == pytest.approx(float(apart.mean() / truth.abs().mean()), rel=1e-4)
            assert row.l2 == pytest.approx(float(apart.norm() / truth.norm()), rel=1e-4)
            assert 0 < row.l1 < 2
            assert -1 <= row.cosine < 1.000001
            assert np.isnan(row.residual) == (level == "forward")
    shares = {(row.step, f"{row.expert}/{row.branch}/-1"): row.share for row in found.rows}
    assert shares == {(step, key): share for key, rows in found.report.shares.items() for step, share in rows.items()}


def test_arrays_frame_and_figure(flux: Model) -> None:
    found = study.counterfactual(flux, make(flux, METHODS["signal"]))
    assert found.branches == ("cond",)
    assert found.error.shape == found.signal.shape == (STEPS, 1)
    assert np.isnan(found.error[[0, 3]]).all()
    assert not np.isnan(found.error[[1, 2, 4, 5]]).any()
    assert not np.isnan(found.signal).any()
    assert (found.array("residual")[[1, 2, 4, 5]] > 0).all()
    frame = found.frame
    assert frame.l1.count() == found.report.reused == 4
    assert list(frame.signal) == found.signal[:, 0].tolist()
    over, against = found.figure().axes
    assert over.lines[0].get_ydata() == pytest.approx(found.error[:, 0], nan_ok=True)
    assert against.lines[0].get_xdata() == pytest.approx(found.signal[:, 0])
    assert "4 of 6" in repr(found)
    with pytest.raises(WanlabError, match="Did you mean 'cosine'"):
        found.array("cosin")


def test_two_experts_and_branches_share_the_arrays(wan: Model) -> None:
    found = study.counterfactual(wan, make(wan, METHODS["stack"], guidance={"method": "cfg_interval", "stop": 0.5}))
    assert found.branches == ("cond", "uncond")
    assert found.error.shape == (STEPS, 2)
    assert {row.expert for row in found.rows} == {"transformer", "transformer_2"}
    text = found.figure().axes[1].texts
    assert [t.get_text() for t in text] == ["decided without a signal"]


def test_what_is_refused(wan: Model) -> None:
    with pytest.raises(WanlabError, match="no cache"):
        study.counterfactual(wan, make(wan))
    with pytest.raises(WanlabError, match="Choices: trajectory"):
        study.counterfactual(wan, make(wan, METHODS["stack"]), against="plain")
    with pytest.raises(WanlabError, match="6 entries for 4 steps"):
        study.counterfactual(wan, make(wan, METHODS["stack"]).with_(num_steps=4))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_detaches_after_errors(wan: Model, error: type[BaseException]) -> None:
    """Broken off in the second pass through a forward, the one without the cache."""
    spec, calls = make(wan, METHODS["stack"]), []
    plain = denoised(wan, make(wan))

    def fail(call: Callable[..., Any], streams: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # two forwards of the first step, then the truth of the second step's first
            raise error
        return call(streams)

    handle = wan.stacks["transformer"][0].site.wrap(fail, "edit")
    try:
        with pytest.raises(error):
            study.counterfactual(wan, spec)
    finally:
        handle.remove()
    assert wan.attachments() == []
    assert torch.equal(denoised(wan, make(wan)), plain)
    with caches.attach(wan, spec):
        pass
