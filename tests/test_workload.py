"""Counted operations: equal to FlopCounterMode on real forwards, part by part, and to the published tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import wanlab
from tests.test_shrink import RUNS, given
from tests.tiny import tiny_flux, tiny_wan
from tests.tiny_relatives import tiny_animate, tiny_phantom, tiny_skyreels, tiny_skyreels_plain
from tests.tiny_video import film, frames_of, picture, tiny_i2v, tiny_v2v, tiny_vace
from wanlab import catalog, stages
from wanlab.errors import WanlabError
from wanlab.models import describe, shrink
from wanlab.models._workload import Workload
from wanlab.registry import GUIDANCE
from wanlab.sites import StepContext, Streams

FRAMES = 9
CLIP_2 = {"video_2": frames_of(film(9, FRAMES, 64, 48))}
Tiny = Callable[[Path], dict[str, Any]]


def case(build: Callable[..., tuple[Path, dict[str, Any]]], *arguments: Any, **options: Any) -> Tiny:
    return lambda folder: build(folder, *arguments, **options)[1]


CASES: dict[str, tuple[Tiny, dict[str, Any]]] = {
    "wan": (case(tiny_wan), {}),
    "wan, two experts": (case(tiny_wan, experts=2), {"max_text_tokens": 77}),
    "wan, image": (case(tiny_i2v, "2.1"), {}),
    "wan, first and last": (case(tiny_i2v, "flf"), {}),
    "wan 2.2, image": (case(tiny_i2v, "2.2"), {}),
    "wan 5b, image": (case(tiny_i2v, "5b"), {}),
    "wan, video": (case(tiny_v2v), {}),
    "wan, nag": (case(tiny_wan), {"guidance": "nag"}),
    "wan, image, nag": (case(tiny_i2v, "2.1"), {"guidance": "nag"}),
    "vace": (case(tiny_vace), {}),
    "vace, two controls": (case(tiny_vace), CLIP_2),
    "vace, two experts": (case(tiny_vace, experts=2), {"references": [picture(1), picture(2)]}),
    "phantom": (case(tiny_phantom), {"references": [picture(1), picture(2)], "guidance": "dual"}),
    "skyreels": (case(tiny_skyreels_plain, "text"), {}),
    "skyreels, image": (case(tiny_skyreels_plain, "image"), {}),
    "skyreels_df": (case(tiny_skyreels), {}),
    "skyreels_df, pace and blocks": (
        case(tiny_skyreels, inject_sample_info=True, num_frame_per_block=2),
        {"image": None, "last_image": None, "num_frames": 13},
    ),
    "wan_animate": (case(tiny_animate), {}),
    "flux": (case(tiny_flux), {"height": 64}),
    "flux, told nothing": (case(tiny_flux, guidance_embeds=False), {"guidance": "cfg"}),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Attention runs as two products inside: what the CPU takes else is in no table of FlopCounterMode."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def context_of(model: Any, spec: Any) -> StepContext:
    sampler = stages.make_sampler(model, spec)
    sigma, timestep = sampler.clock(0, 1)
    return StepContext(0, sampler.num_steps, sigma, timestep=timestep, expert=model.experts(spec)[0])


def branches_of(model: Any, spec: Any) -> tuple[StepContext, list[Any], Any]:
    spec = model.resolve(spec)
    text, conditions = wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec)
    ctx = context_of(model, spec)
    rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
    latents = model.place(model.start(spec, conditions, model.initial_noise(spec)), ctx, conditions)
    return ctx, rule.branches(ctx, text, conditions), latents


def counted(
    model: Any, spec: Any, branch: int = 0
) -> tuple[Workload, int, dict[str, dict[str, int]], Streams, Streams]:
    """(our count, FlopCounterMode's, its count of each part of each block, what entered the stack and left it)."""
    ctx, branches, latents = branches_of(model, spec)
    stack = model.stacks[ctx.expert]
    found: dict[str, dict[str, int]] = {entry.name: {} for entry in stack}
    streams: list[Streams] = []

    def through(call: Any, entering: Streams, **span: Any) -> Streams:
        streams.extend((entering, call(entering, **span)))
        return streams[1]

    model.begin(ctx)
    with counting() as counter, ExitStack() as hooks:
        hooks.enter_context(stack.site.wrap(through, "recorder"))
        ours = model.workload(spec, branches[branch], ctx.expert)
        for entry in ours.entries:
            for part in entry.parts:
                block = next(e.module for e in stack if e.name == entry.name)
                module = getattr(block, part, block)  # a face block is its attention
                hooks.enter_context(_tallied(module, found[entry.name], part, counter))
        model.velocity(latents, ctx, branches[branch])
    return ours, counter.get_total_flops(), found, *streams


@contextmanager
def _tallied(module: Any, into: dict[str, int], name: str, counter: FlopCounterMode) -> Iterator[None]:
    before: list[int] = []

    def leave(*_: Any) -> None:
        into[name] = into.get(name, 0) + counter.get_total_flops() - before.pop()

    handles = [
        module.register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops())),
        module.register_forward_hook(leave),
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_equals_the_flop_counter(name: str, tmp_path: Path) -> None:
    """In all and part by part, to the last operation; names, lengths and changed streams as the real stack has them."""
    build, settings = CASES[name]
    model = wanlab.load(build(tmp_path), device="cpu")
    media = given(model) if model.accepts else {}
    spec = model.spec(prompt="a kite", num_steps=2, **{**media, **settings})
    ours, theirs, parts, entering, leaving = counted(model, spec)
    assert ours.total == theirs
    stack = model.stacks[model.experts_present[0]]
    assert [(entry.name, entry.kind) for entry in ours.entries] == [(entry.name, entry.kind) for entry in stack]
    assert {entry.name: dict(entry.parts) for entry in ours.entries} == parts
    assert ours.tokens == {key: tuple(value.shape[1:]) for key, value in entering.tokens.items()}
    assert set(ours.changed) == set(leaving.residual(entering))
    assert ours.linear + ours.attention == ours.total
    assert ours.total == ours.embed + ours.head + sum(entry.total for entry in ours.entries)


@pytest.mark.parametrize("name", ["wan_i2v_480p_14b", "vace_14b", "wan_animate_14b", "skyreels_df_1_3b"])
def test_of_a_shrunk_model(name: str, tmp_path: Path) -> None:
    model = wanlab.load(shrink(name, tmp_path), device="cpu")
    spec = model.spec(prompt="a kite", num_frames=FRAMES, height=48, width=64, **given(model))
    ours, theirs, *_ = counted(model, spec)
    assert ours.total == theirs


def test_attention_is_what_the_sites_compute(tmp_path: Path) -> None:
    """Without the products inside attention functions, the counter sees the linear share alone."""
    model = wanlab.load(tiny_wan(tmp_path)[1], device="cpu")
    spec = model.spec(prompt="a kite")
    ctx, branches, latents = branches_of(model, spec)
    model.begin(ctx)
    with ExitStack() as hooks, FlopCounterMode(display=False) as counter:
        for site in model.stacks[ctx.expert].attentions():
            hooks.enter_context(site.wrap(lambda call, q, k, v, *rest: torch.zeros_like(q), "edit"))
        model.velocity(latents, ctx, branches[0])
    assert counter.get_total_flops() == model.workload(spec).linear


def test_a_branch_without_layers(tmp_path: Path) -> None:
    model = wanlab.load(tiny_wan(tmp_path)[1], device="cpu")
    spec = model.spec(prompt="a kite", guidance={"method": "slg", "layers": (1, 2), "start": 0.0, "scale": 2.0})
    whole, _, *_ = counted(model, spec, 0)
    skipped, theirs, *_ = counted(model, spec, 2)
    assert skipped.total == theirs
    assert [e.name for e in whole.entries if e not in skipped.entries] == ["blocks.1", "blocks.2"]


# perf_flops: Wan's formula with 512 text tokens, and without patches, time and the text's embedding.
@pytest.mark.parametrize(
    ("model", "size", "teraflops", "attention"),
    [
        ("wan_t2v_1_3b", (832, 480, 81), (82.1, 200.9, 283.0), 0.71),
        ("wan_t2v_14b", (832, 480, 81), (785.0, 893.0, 1678.0), 0.53),
        ("wan_t2v_14b", (1280, 720, 81), (1810.0, 4714.0, 6523.0), 0.72),
        ("wan22_ti2v_5b", (1280, 704, 121), (237.0, 280.0, 517.0), 0.54),
    ],
)
def test_equals_the_published_table(model: str, size: Any, teraflops: Any, attention: float) -> None:
    """Within half of the last digit that the table prints, and 0.01 % for the terms that its formula leaves out."""
    described = describe(model)
    width, height, num_frames = size
    work = described.workload(described.spec(width=width, height=height, num_frames=num_frames))
    for ours, published in zip((work.linear, work.attention, work.total), teraflops, strict=True):
        digit = 0.05 if published < 300 and published != int(published) else 0.5
        assert abs(ours / 1e12 - published) <= digit + 1e-4 * published
    assert round(work.attention_share, 2) == attention


@pytest.mark.parametrize(("dim", "ffn", "layers", "name"), [(1536, 8960, 30, "1_3b"), (5120, 13824, 40, "14b")])
def test_equals_the_published_formula(dim: int, ffn: int, layers: int, name: str) -> None:
    """Exactly, in the blocks."""
    model = describe(f"wan_t2v_{name}")
    length, text = 32_760, 512
    linear = (2 * length * (6 * dim**2 + 2 * dim * ffn) + 2 * text * 2 * dim**2) * layers
    attention = (4 * length**2 * dim + 4 * length * text * dim) * layers
    work = model.workload(model.spec(width=832, height=480, num_frames=81))
    assert sum(entry.linear for entry in work.entries) == linear
    assert work.attention == attention
    assert (work.embed + work.head) / work.total < 1e-3


def test_all_models_describe_and_resolve_in_ten_seconds() -> None:
    start = time.perf_counter()
    for name in [*RUNS, "flux_dev"]:
        model = describe(name)
        media = {"references": given(model)["references"]} if model.needs == ("references",) else {}
        resolved = model.resolve(model.spec(**media))
        assert model.latent_shape(resolved)[0] == model.geometry.channels
        assert len(model.sigmas(resolved)) == resolved.sampling.num_run + 1
        assert set(model.experts(resolved)) <= set(model.experts_present)
        assert model.workload(resolved).total > 0
        assert not any(part.loaded for part in model.parts.values())
    assert time.perf_counter() - start < 10
    assert len(RUNS) + 1 == 30


def test_described_equals_loaded(tmp_path: Path) -> None:
    definition = shrink("wan_i2v_480p_14b", tmp_path)
    real, described = wanlab.load(definition, device="cpu"), describe(definition)
    assert described.default_spec == real.default_spec
    assert described.resolve(described.spec()) == real.resolve(real.spec())
    assert described.offers == real.offers
    assert described.workload(described.spec()) == real.workload(real.spec())
    assert described.accepts == real.accepts


@pytest.mark.parametrize(
    "touch",
    [
        lambda m: m.parts["vae"].module,
        lambda m: m.stacks["transformer"],
        lambda m: m.fingerprint,
        lambda m: wanlab.encode_text(m, m.spec()),
        lambda m: wanlab.generate(m, m.spec()),
    ],
    ids=["part", "stack", "fingerprint", "text", "generate"],
)
def test_what_needs_weights_says_how_to_load_them(touch: Callable[[Any], Any]) -> None:
    model = describe("wan_t2v_1_3b")
    with pytest.raises(WanlabError, match=r"weights are not loaded.*wanlab\.load\('wan_t2v_1_3b'\)"):
        touch(model)
    assert not model.lock.owner
    assert model.attachments() == []


def test_describing_takes_the_choice_of_weights() -> None:
    model = describe("wan_t2v_14b", dtype="bfloat16", stored_as="int8")
    resolved = model.resolve(model.spec())
    assert (resolved.weights.dtype, resolved.weights.stored_as) == ("bfloat16", "int8")
    assert "described" in model._repr_html_()
    with pytest.raises(WanlabError, match="stored as gguf"):
        describe("wan_t2v_1_3b", stored_as="gguf")
    with pytest.raises(WanlabError, match="load takes no 'prompt'"):
        describe("wan_t2v_1_3b", prompt="a kite")


def test_a_missing_definition_of_a_known_family_is_described() -> None:
    phantom = catalog.find("phantom_1_3b").with_(missing="not yet")
    with pytest.raises(WanlabError, match="cannot run yet"):
        wanlab.load(phantom)
    assert describe(phantom).workload(phantom_spec()).total > 0
    with pytest.raises(WanlabError, match="Unknown model family"):
        describe(catalog.find("phantom_1_3b").with_(family="nobody"))


def phantom_spec() -> Any:
    return describe("phantom_1_3b").spec(references=[picture(1)])


def test_no_expert_of_that_name() -> None:
    model = describe("wan_t2v_1_3b")
    with pytest.raises(WanlabError, match="no expert 'transformer_2'"):
        model.workload(model.spec(), expert="transformer_2")
