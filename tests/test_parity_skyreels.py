"""Diffusion forcing equals diffusers' SkyReelsV2DiffusionForcing pipelines, and every input matters."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny_relatives import tiny_skyreels, tiny_skyreels_plain
from tests.tiny_video import film, frames_of, picture, quiet
from wanlab.errors import WanlabError
from wanlab.models.skyreels_df import lagging_steps
from wanlab.sampling import Staggered, load_state, sample, save_state
from wanlab.sites import Branch, StepContext
from wanlab.stages import make_sampler, velocity_of

STEPS = 5
PROMPTS = ["a red fox runs", "blue dogs sleep in the grass"]
NEGATIVE = "ugly thing xyz"
KINDS = {"text": "Pipeline", "image": "ImageToVideoPipeline", "video": "VideoToVideoPipeline"}
MODES: dict[str, dict[str, Any]] = {
    "together": {},
    "apart": {"ar_step": 2},
    "blocks": {"causal_block_size": 2},
    "blocks apart": {"ar_step": 3, "causal_block_size": 2},
}

OTHER = {"ar_step": 0, "causal_block_size": 4}


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def apart_from_latents(scheduler: Any) -> Any:
    """diffusers' UniPC given copies: see `test_diffusers_corrects_the_first_step_from_the_wrong_latents`."""
    import diffusers

    class Apart(diffusers.UniPCMultistepScheduler):
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **settings: Any) -> Any:
            return super().step(model_output, timestep, sample.clone(), **settings)

    return Apart.from_config(scheduler.config)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """(our model, diffusers' pipelines by what they start from)."""
    import diffusers

    folder, definition = tiny_skyreels(tmp_path_factory.mktemp("skyreels"))
    first = diffusers.SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder)
    first.scheduler = apart_from_latents(first.scheduler)
    classes = {kind: getattr(diffusers, f"SkyReelsV2DiffusionForcing{end}") for kind, end in KINDS.items()}
    return wanlab.load(definition, device="cpu"), {k: quiet(c(**first.components)) for k, c in classes.items()}


def reference(pipe: Any, seed: int = 3, **changes: Any) -> Tensor:
    settings = {
        "prompt": PROMPTS[:1],
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "output_type": "latent",
        "num_frames": 13,
        "width": 48,
        "height": 32,
        **({"causal_block_size": 1} if "Forcing" in type(pipe).__name__ else {}),
        **changes,
    }
    settings["negative_prompt"] = [settings["negative_prompt"]] * len(settings["prompt"])
    frames = pipe(generator=torch.Generator().manual_seed(seed), **settings).frames
    return frames[:, :, :4]  # the last image's frame is left in latents


def spec_of(model: Any, **changes: Any) -> Any:
    base = {"prompt": PROMPTS[0], "negative_prompt": NEGATIVE, "num_steps": STEPS, "seed": 3, "num_frames": 13}
    return model.spec(**{**base, **changes})


def ours(model: Any, spec: Any, prompts: list[str]) -> Tensor:
    """The stages by hand, since a batch of different prompts is no spec."""
    texts = [wanlab.encode_text(model, spec.with_(prompt=p)) for p in prompts]
    text = {name: {k: torch.cat([t[name][k] for t in texts]) for k in texts[0][name]} for name in texts[0]}
    noise = model.initial_noise(spec, batch=len(prompts))
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec), noise)


def equals(model: Any, pipe: Any, settings: dict[str, Any], media: dict[str, Any]) -> Tensor:
    """diffusers' latents of the first prompt, equal to ours, as are those of a batch of two."""
    steps = {name: settings[name] for name in OTHER if name in settings}
    for batch in (2, 1):
        expected = reference(pipe, prompt=PROMPTS[:batch], **settings)
        found = ours(model, spec_of(model, **steps, **media), PROMPTS[:batch])
        assert found.shape == expected.shape == (batch, 16, 4, 4, 6)
        assert rel(found, expected) <= 1e-5
    return expected


def matters(pipe: Any, expected: Tensor, settings: dict[str, Any], variants: dict[str, Any]) -> None:
    """Each of the variants, and of those that every pipeline has, alone moves the reference."""
    common: dict[str, Any] = {
        "prompt": ["quiet water at night"],
        "negative_prompt": "bright and calm",
        "guidance_scale": 5.5,
        "seed": 4,
    }
    changed = {**common, **variants}
    moved = {name: rel(reference(pipe, **{**settings, name: value}), expected) for name, value in changed.items()}
    assert min(moved.values()) >= 1e-2, moved


@pytest.mark.parametrize("mode", list(MODES))
def test_text_to_video_equals_diffusers(both: tuple[Any, Any], mode: str) -> None:
    model, pipes = both
    expected = equals(model, pipes["text"], MODES[mode], {})
    matters(pipes["text"], expected, MODES[mode], {name: OTHER[name] for name in MODES[mode]})


@pytest.mark.parametrize("mode", ["together", "apart"])
def test_image_to_video_equals_diffusers(both: tuple[Any, Any], mode: str) -> None:
    model, pipes = both
    for media in ({"image": picture(1)}, {"image": picture(1), "last_image": picture(2)}):
        expected = equals(model, pipes["image"], {**MODES[mode], **media}, media)
        matters(pipes["image"], expected, {**MODES[mode], **media}, {name: picture(11) for name in media})


@pytest.mark.parametrize("mode", list(MODES))
def test_going_on_from_a_video_equals_diffusers(both: tuple[Any, Any], mode: str) -> None:
    model, pipes = both
    settings = {**MODES[mode], "video": film(1, 5), "overlap_history": 5, "base_num_frames": 13}
    expected = equals(model, pipes["video"], settings, {"video": frames_of(film(1, 5))})
    matters(pipes["video"], expected, settings, {"video": film(11, 5)})


def test_diffusers_corrects_the_first_step_from_the_wrong_latents(both: tuple[Any, Any]) -> None:
    """It hands its solver a view of the latents and writes the result into them, so UniPC's corrector starts from what
    step 0 made, not from the noise: 7 % off at 5 steps, 0.6 % at 50. SkyReels-V2's own loop hands over such a view, too
    (SkyworkAI/SkyReels-V2 d3bc4fc4, diffusion_forcing_pipeline.py)."""
    import diffusers

    model, pipes = both
    pipe = quiet(diffusers.SkyReelsV2DiffusionForcingPipeline(**pipes["text"].components))
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    found = ours(model, spec_of(model), PROMPTS[:1])
    assert rel(reference(pipe), found) >= 5e-2
    assert rel(reference(pipe, num_inference_steps=1), ours(model, spec_of(model, num_steps=1), PROMPTS[:1])) <= 1e-5


def test_a_cache_and_frames_at_different_steps_are_refused_together(both: tuple[Any, Any]) -> None:
    model, _ = both
    cache = {"method": "fixed", "mask": [True] * STEPS}
    lagging = spec_of(model, ar_step=1, causal_block_size=1, cache=cache)
    rows = len(model.experts(model.resolve(lagging)))
    words = rf"sampler's {STEPS} steps, and with ar_step = 1 .* in the run's {rows}"
    assert rows > STEPS
    with pytest.raises(WanlabError, match=words):
        wanlab.generate(model, lagging)
    together = lagging.with_(ar_step=0)
    assert torch.equal(wanlab.generate(model, together).latents, wanlab.generate(model, together, cache="none").latents)


def test_what_diffusers_leaves_out_is_refused(both: tuple[Any, Any]) -> None:
    """Frames beyond the last whole block stay noise there, and a picture that fills no block is drawn over."""
    model, pipes = both
    noise = model.initial_noise(spec_of(model))
    left = reference(pipes["text"], causal_block_size=3)
    assert torch.equal(left[:, :, 3], noise[:, :, 3])
    kept, drawn = (reference(pipes["image"], image=picture(1), causal_block_size=n)[:, :, :1] for n in (1, 2))
    assert rel(drawn, kept) >= 0.5
    for changes in ({"causal_block_size": 3}, {"causal_block_size": 2, "image": picture(1)}):
        with pytest.raises(wanlab.WanlabError, match="fill blocks"):
            wanlab.generate(model, spec_of(model, **changes))


def test_the_plan_of_steps_is_diffusers(both: tuple[Any, Any]) -> None:
    _, pipes = both
    for num_steps, blocks, lag, ready in itertools.product((1, 3, 6), (1, 2, 5), (0, 1, 4, 9), (0, 1)):
        if ready == blocks:
            continue
        template = torch.arange(num_steps, 0, -1)
        _, index, moves, _ = pipes["text"].generate_timestep_matrix(blocks, template, blocks, lag, ready, 1)
        plan = lagging_steps(num_steps, blocks, lag, ready)
        assert torch.equal(plan, index - 1), (num_steps, blocks, lag, ready)
        assert torch.equal((plan >= 0) & (plan < num_steps), moves), (num_steps, blocks, lag, ready)


@pytest.mark.parametrize("mode", list(MODES))
def test_the_split_is_bit_equal_to_the_network(both: tuple[Any, Any], mode: str) -> None:
    model, pipes = both
    network = pipes["text"].transformer
    spec = spec_of(model, **MODES[mode])
    conditions, text = wanlab.encode_conditions(model, spec), wanlab.encode_text(model, spec)
    latents, timestep = model.initial_noise(spec), torch.tensor([[0, 300, 600, 999]])
    context = StepContext(0, 1, timestep / 1000, timestep=timestep)
    found = model.velocity(latents, context, Branch("cond", text["prompt"], conditions))
    network._set_ar_attention(MODES[mode].get("causal_block_size", 1))
    with torch.no_grad():
        expected = network(latents, timestep, text["prompt"]["embeds"], None, True, return_dict=False)[0]
    assert torch.equal(found, expected)


def test_networks_that_are_told_the_pace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """diffusers takes one sample at a time here: its pace embedding does not broadcast over a batch."""
    import diffusers

    folder, definition = tiny_skyreels(tmp_path_factory.mktemp("pace"), inject_sample_info=True)
    pipe = quiet(diffusers.SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder))
    pipe.scheduler = apart_from_latents(pipe.scheduler)
    model = wanlab.load(definition, device="cpu")
    expected = reference(pipe, fps=16)
    assert rel(ours(model, spec_of(model, fps=16), PROMPTS[:1]), expected) <= 1e-5
    assert rel(ours(model, spec_of(model, fps=24), PROMPTS[:1]), reference(pipe, fps=24)) <= 1e-5
    assert rel(reference(pipe, fps=24), expected) >= 1e-2
    one_by_one = [ours(model, spec_of(model), [p]) for p in PROMPTS]
    with pytest.raises(RuntimeError):
        reference(pipe, prompt=PROMPTS)
    noise = model.initial_noise(spec_of(model), 2)
    assert torch.equal(noise[:1], model.initial_noise(spec_of(model)))
    assert rel(ours(model, spec_of(model), PROMPTS)[:1], one_by_one[0]) <= 1e-5


@pytest.mark.parametrize("sampler", ["unipc", "dpmpp_2m", "euler"])
def test_staggered_frames_take_the_steps_of_the_plain_sampler(both: tuple[Any, Any], sampler: str) -> None:
    """A velocity of each frame alone: whatever the plan, every frame ends where the plain sampler takes it."""
    model, _ = both
    spec = spec_of(model, sampler=sampler)
    plain, apart = make_sampler(model, spec), make_sampler(model, spec.with_(ar_step=2).resolve(model))
    assert isinstance(apart, Staggered)
    noise = model.initial_noise(spec)
    sigmas = plain.sigmas
    expected = sample(plain, lambda x, i: torch.sin(x * 3) + sigmas[i], plain.init(noise)).latents

    def velocity(x: Tensor, i: int) -> Tensor:
        return torch.sin(x * 3) + apart.levels[i][:, None, None]

    done = sample(apart, velocity, apart.init(noise))
    assert torch.equal(done.latents, expected)
    assert apart.num_steps == STEPS + 3 * 2


def test_a_staggered_run_resumes_bit_identically(both: tuple[Any, Any], tmp_path: Any) -> None:
    model, _ = both
    spec = spec_of(model, ar_step=2, image=picture(1)).resolve(model)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    sampler = make_sampler(model, spec)
    velocity = velocity_of(model, spec, sampler, text, conditions)
    state = sample(sampler, velocity, sampler.init(model.initial_noise(spec)), stop=4)
    save_state(state, tmp_path / "state.safetensors")
    resumed = wanlab.denoise(model, spec, text, conditions, load_state(tmp_path / "state.safetensors"))
    assert torch.equal(resumed, wanlab.denoise(model, spec, text, conditions))


def test_the_clock_tells_every_frames_level(both: tuple[Any, Any]) -> None:
    model, _ = both
    seen: list[StepContext] = []
    with model.on_begin(seen.append):
        result = wanlab.generate(model, spec_of(model, ar_step=2, guidance_scale=1))
    assert result.frames.shape == (13, 32, 48, 3)
    assert (
        len(seen) == seen[0].num_steps == STEPS + 3 * 2 == len(model.experts(model.resolve(spec_of(model, ar_step=2))))
    )
    assert [tuple(ctx.sigma.shape) for ctx in seen] == [(1, 4)] * len(seen)
    assert seen[0].timestep.tolist() == [[999, 999, 999, 999]]
    assert seen[-1].timestep[0, :3].tolist() == [0, 0, 0]


def test_branches_as_one_batch(both: tuple[Any, Any]) -> None:
    model, _ = both
    spec = spec_of(model, **MODES["blocks apart"], video=frames_of(film(1, 5)))
    assert rel(ours(model, spec.with_(batch_branches=True), PROMPTS), ours(model, spec, PROMPTS)) <= 1e-5


@pytest.mark.parametrize("mode", ["together", "blocks apart"])
def test_normalized_attention_guidance_and_riflex_reach_the_network(both: tuple[Any, Any], mode: str) -> None:
    model, _ = both
    spec = spec_of(model, guidance_scale=1, **MODES[mode])
    plain = ours(model, spec, PROMPTS[:1])
    assert rel(ours(model, spec.with_(guidance="nag", negative_prompt=PROMPTS[0]), PROMPTS[:1]), plain) <= 1e-5
    assert rel(ours(model, spec.with_(guidance="nag"), PROMPTS[:1]), plain) >= 1e-2
    with pytest.raises(wanlab.WanlabError, match="RIFLEx"):  # these networks are too small for it
        ours(model, spec.with_(riflex="on"), PROMPTS[:1])


@pytest.mark.parametrize("kind", ["text", "image"])
def test_without_diffusion_forcing_it_equals_diffusers_too(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    import diffusers

    folder, definition = tiny_skyreels_plain(tmp_path_factory.mktemp("plain"), kind)
    pipe = quiet(getattr(diffusers, f"SkyReelsV2{KINDS[kind]}").from_pretrained(folder))
    media = {"image": picture(1)} if kind == "image" else {}
    model = wanlab.load(definition, device="cpu")
    expected = equals(model, pipe, media, media)
    matters(pipe, expected, media, {name: picture(11) for name in media})
    with pytest.raises(wanlab.WanlabError, match="ar_step means nothing"):
        wanlab.generate(model, spec_of(model, ar_step=2, **media))


def test_what_cannot_be_made_says_so(both: tuple[Any, Any]) -> None:
    model, _ = both
    for changes, words in (
        ({"num_frames": 33}, "num_frames = 33, and one window of skyreels_df_random has 29"),
        ({"causal_block_size": 3}, "4 latent frames of the video do not fill blocks of causal_block_size = 3"),
        ({"causal_block_size": 2, "image": picture(1)}, "1 latent frames are given, which do not fill"),
        ({"video": frames_of(film(1, 4))}, "has 4 frames"),
        ({"video": frames_of(film(1, 17))}, "has 13 or more frames"),
        ({"last_image": picture(1)}, "no image says where it starts"),
        ({"image": picture(1), "video": frames_of(film(1, 5))}, "not from both"),
        ({"ar_step": 2, "sampler": "lcm"}, "adds noise at every step"),
        ({"denoising_strength": 0.5, "video": frames_of(film(1, 5))}, "does not start from a video"),
    ):
        with pytest.raises(wanlab.WanlabError, match=words):
            wanlab.generate(model, spec_of(model, **changes))
