"""The whole loop equals diffusers' WanPipeline with the same weights, sigmas and noise, and every input matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny import tiny_wan

SIZE = {"height": 32, "width": 48, "num_frames": 9}
STEPS = 5
BOUNDARY = 0.6  # four of the five steps above it: with two, the first expert's scale hardly matters
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"
Reference = Callable[..., Tensor]


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module", params=[1, 2], ids=["one_expert", "two_experts"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, int]:
    """(our model, diffusers' pipeline from the same folder, number of experts)."""
    import diffusers

    folder, definition = tiny_wan(tmp_path_factory.mktemp("wan"), experts=request.param)
    pipe = diffusers.WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if request.param == 2:
        pipe.register_to_config(boundary_ratio=BOUNDARY)
    return wanlab.load(definition, device="cpu"), pipe, request.param


def reference(pipe: Any, **changes: Any) -> Tensor:
    settings = {
        "prompt": PROMPTS[:1],
        "negative_prompt": [NEGATIVE],
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "output_type": "latent",
        **SIZE,
        **changes,
    }
    seed = settings.pop("seed", 3)
    settings["negative_prompt"] = settings["negative_prompt"] * len(settings["prompt"])
    return pipe(generator=torch.Generator().manual_seed(seed), **settings).frames


def ours(model: Any, spec: Any, prompts: list[str]) -> Tensor:
    """The stages by hand, since a batch of different prompts is no spec."""
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in prompts]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    noise = model.initial_noise(spec, batch=len(prompts))
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), noise)


def make_spec(model: Any, experts: int, **changes: Any) -> Any:
    second = {"guidance_scale_2": 3.0, "expert_boundary": BOUNDARY} if experts == 2 else {}
    return model.spec(
        **{
            "prompt": PROMPTS[0],
            "negative_prompt": NEGATIVE,
            "num_steps": STEPS,
            "seed": 3,
            **SIZE,
            **second,
            **changes,
        }
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_loop_equals_diffusers_and_every_input_matters(both: tuple[Any, Any, int], batch: int) -> None:
    model, pipe, experts = both
    base: dict[str, Any] = {"prompt": PROMPTS[:batch]}
    if experts == 2:
        base["guidance_scale_2"] = 3.0
    expected = reference(pipe, **base)
    spec = make_spec(model, experts)
    assert model.sigmas(spec).numpy() == pytest.approx(pipe.scheduler.sigmas.numpy(), abs=2e-6)
    assert rel(ours(model, spec, PROMPTS[:batch]), expected) <= 1e-5

    variants: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": ["quiet water at night"] * batch},
        "negative_prompt": {"negative_prompt": ["bright and calm"]},
        "guidance_scale": {"guidance_scale": 5.5},
        "seed": {"seed": 4},
    }
    if experts == 2:
        variants["guidance_scale_2"] = {"guidance_scale_2": 3.5}
    moved = {name: rel(reference(pipe, **{**base, **change}), expected) for name, change in variants.items()}
    assert min(moved.values()) >= 1e-2, moved
    assert reference(pipe, **base, width=32).shape[-2:] == (4, 4) != expected.shape[-2:]


def test_two_experts_both_run(both: tuple[Any, Any, int]) -> None:
    model, _, experts = both
    used = model.experts(make_spec(model, experts))
    assert len(used) == STEPS
    assert set(used) == ({"transformer", "transformer_2"} if experts == 2 else {"transformer"})


def test_generate_gives_the_pipelines_frames(both: tuple[Any, Any, int]) -> None:
    model, pipe, experts = both
    scale = {"guidance_scale_2": 3.0} if experts == 2 else {}
    expected = np.round(reference(pipe, output_type="np", **scale)[0] * 255)
    result = wanlab.generate(model, make_spec(model, experts))
    assert result.frames.shape == expected.shape == (9, 32, 48, 3)
    assert np.abs(result.frames - expected).max() <= 1
    assert rel(result.latents, reference(pipe, **scale)) <= 1e-5


def test_guidance_one_is_a_single_branch(both: tuple[Any, Any, int]) -> None:
    model, pipe, experts = both
    spec = make_spec(model, experts, guidance_scale=1.0, guidance_scale_2=None)
    assert "negative_prompt" not in wanlab.encode_text(model, spec)
    assert rel(ours(model, spec, PROMPTS[:1]), reference(pipe, guidance_scale=1.0)) <= 1e-5


def test_euler_with_explicit_sigmas(both: tuple[Any, Any, int]) -> None:
    """WanPipeline takes no sigmas; the scheduler is told them where the pipeline asks for timesteps."""
    import diffusers

    model, pipe, experts = both
    sigmas = (0.95, 0.8, 0.6, 0.35, 0.0)
    swapped = diffusers.FlowMatchEulerDiscreteScheduler()
    original, pipe.scheduler = pipe.scheduler, swapped
    set_timesteps = swapped.set_timesteps
    swapped.set_timesteps = lambda _, device=None: set_timesteps(sigmas=list(sigmas[:-1]), device=device)
    try:
        scale = {"guidance_scale_2": 3.0} if experts == 2 else {}
        expected = reference(pipe, num_inference_steps=4, **scale)
    finally:
        pipe.scheduler = original
    spec = make_spec(model, experts, sampler="euler", sigmas=sigmas, num_steps=4)
    assert rel(ours(model, spec, PROMPTS[:1]), expected) <= 1e-5


def test_dpmpp_2m_on_diffusers_own_schedule(both: tuple[Any, Any, int]) -> None:
    import diffusers

    model, pipe, experts = both
    original = pipe.scheduler
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    try:
        scale = {"guidance_scale_2": 3.0} if experts == 2 else {}
        expected = reference(pipe, **scale)
        sigmas = tuple(pipe.scheduler.sigmas.tolist())
    finally:
        pipe.scheduler = original
    spec = make_spec(model, experts, sampler="dpmpp_2m", sigmas=sigmas)
    assert rel(ours(model, spec, PROMPTS[:1]), expected) <= 1e-5


def test_size_that_is_not_legal_names_the_nearest(tmp_path: Path, both: tuple[Any, Any, int]) -> None:
    model, _, experts = both
    with pytest.raises(wanlab.WanlabError, match="48") as error:
        wanlab.generate(model, make_spec(model, experts, width=50))
    assert "50" in str(error.value)
    with pytest.raises(wanlab.WanlabError, match="9") as error:
        wanlab.generate(model, make_spec(model, experts, num_frames=10))
    assert "13" in str(error.value)
