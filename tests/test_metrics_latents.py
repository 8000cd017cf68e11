"""Distances without a decoder: PSNR of latents, and the data estimates of two runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab import metrics
from wanlab.errors import WanlabError

SPEC = {"prompt": "a red fox", "num_steps": 3, "width": 48, "height": 32, "num_frames": 5, "seed": 1}


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 4, 2, 3, 5, generator=generator)
    return a, a + 0.1 * torch.randn(a.shape, generator=generator)


def test_latent_psnr_has_the_references_range_as_its_peak() -> None:
    a, b = pair()
    x, y = a.double().numpy(), b.double().numpy()
    expected = 20 * np.log10(x.max() - x.min()) - 10 * np.log10(((x - y) ** 2).mean())
    assert metrics.latent_psnr(a, b) == pytest.approx(expected, abs=1e-12)
    assert metrics.latent_psnr(x, y) == metrics.latent_psnr(a, b)
    assert metrics.latent_psnr(a, b) != metrics.latent_psnr(b, a)
    assert metrics.latent_psnr(a, a) == float("inf")
    assert metrics.latent_psnr(a.bfloat16(), b.bfloat16()) == pytest.approx(expected, abs=0.5)


def test_latents_that_do_not_compare() -> None:
    a, b = pair()
    with pytest.raises(WanlabError, match="one shape"):
        metrics.latent_psnr(a, b[..., 1:])
    with pytest.raises(WanlabError, match="NaN"):
        metrics.latent_psnr(a, b * float("nan"))
    with pytest.raises(WanlabError, match="constant"):
        metrics.latent_psnr(torch.ones_like(a), b)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    _, definition = tiny_wan(tmp_path_factory.mktemp("wan"))
    return wanlab.load(definition, device="cpu")


def test_drift_of_two_runs_equals_what_the_loop_said(model: Any) -> None:
    seen: list[list[torch.Tensor]] = [[], []]
    drifts = [metrics.Drift(), metrics.Drift()]
    for i, changes in enumerate(({}, {"cache": {"method": "fixed", "mask": [True, True, False]}})):

        def on_step(step: int, sigma: float, latents: Any, denoised: torch.Tensor, i: int = i) -> None:
            seen[i].append(denoised.clone())
            drifts[i](step, sigma, latents, denoised)

        wanlab.generate(model, **SPEC, **changes, on_step=on_step)
    found = metrics.drift(*drifts)
    for step, (a, b) in enumerate(zip(*seen, strict=True)):
        expected = float((b.double() - a.double()).square().sum().sqrt() / a.double().square().sum().sqrt())
        assert found.relative_l2[step] == pytest.approx(expected, abs=1e-12)
        assert found.psnr[step] == metrics.latent_psnr(a, b)
    assert found.steps.tolist() == [0, 1, 2]
    assert found.relative_l2[:2].tolist() == [0, 0]  # the mask skips the last step only
    assert found.relative_l2[2] > 0
    assert (np.diff(found.sigmas) < 0).all()
    table = found.to_frame()
    assert list(table.columns) == ["step", "sigma", "relative_l2", "psnr_db"]
    assert len(table) == 3


def test_a_recorder_changes_nothing_and_stays_in_its_budget(model: Any) -> None:
    drift = metrics.Drift("float16")
    plain, watched = wanlab.generate(model, **SPEC), wanlab.generate(model, **SPEC, on_step=drift)
    assert torch.equal(plain.latents, watched.latents)
    size = 2 * plain.latents.numel()
    assert drift.num_bytes == 3 * size
    assert {x.dtype for x in drift.estimates.values()} == {torch.float16}
    narrow = metrics.Drift("float16", max_bytes=2 * size + 1)
    with pytest.raises(WanlabError, match=f"2 steps of {size:,} bytes"):
        wanlab.generate(model, **SPEC, on_step=narrow)
    assert len(narrow.estimates) == 2
    assert torch.equal(wanlab.generate(model, **SPEC).latents, plain.latents)


def test_a_run_that_begins_again_replaces_the_first() -> None:
    a, b = pair()
    drift = metrics.Drift()
    for x in (a, b):
        drift(0, 1.0, x, x)
        drift(1, 0.5, x, x)
    assert torch.equal(drift.estimates[0], b)
    assert len(drift.estimates) == 2
    kept = drift.estimates[1]
    b.zero_()
    assert kept.abs().sum() > 0  # a copy


def test_runs_that_do_not_compare() -> None:
    a, b = pair()
    first, second, empty = metrics.Drift(), metrics.Drift(), metrics.Drift()
    first(0, 1.0, a, a)
    second(0, 0.9, b, b)
    for other in (second, empty):
        with pytest.raises(WanlabError, match="same noise levels"):
            metrics.drift(first, other)
    with pytest.raises(WanlabError, match="same noise levels"):
        metrics.drift(empty, empty)
    with pytest.raises(WanlabError, match="float16, float32"):
        metrics.Drift("float8")  # type: ignore[arg-type]
    same = metrics.Drift()
    same(0, 1.0, a, a)
    assert metrics.drift(first, same).relative_l2.tolist() == [0]
    assert metrics.drift(first, same).psnr.tolist() == [float("inf")]
