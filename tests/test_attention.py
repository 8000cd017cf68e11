"""Attention backends against the float32 reference, and swapping them at chosen sites, blocks and steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_flux, tiny_wan
from wanlab import attention, models
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.registry import ATTENTION
from wanlab.sites import AttentionSite, Branch, Layout, StepContext

BACKENDS = ("sdpa", "math", "flex")


@pytest.fixture(scope="module", params=["wan", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    build = {"wan": tiny_wan, "flux": tiny_flux}[request.param]
    return models.load(build(tmp_path_factory.mktemp(request.param))[1], device="cpu")


@pytest.fixture(autouse=True)
def functions_are_restored(request: pytest.FixtureRequest) -> Iterator[None]:
    sites = (
        request.getfixturevalue("model").stacks["transformer"].attentions() if "model" in request.fixturenames else []
    )
    before = [site.fn for site in sites]
    yield
    assert [site.fn for site in sites] == before


def forward(model: Model, step: int = 0) -> Tensor:
    ctx = StepContext(step, 4, 0.5, timestep=500.0)
    model.begin(ctx)
    text = model.encode_text(model.spec(prompt="a cat"))["prompt"]
    return model.velocity(model.initial_noise(model.resolve(model.spec())), ctx, Branch("cond", text, guidance=3.5))


def reference(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """Attention in float64, one head at a time."""
    out = torch.empty_like(q, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h].double() @ k[b, :, h].double().T / q.shape[-1] ** 0.5
            if keep is not None:
                scores = scores.masked_fill(~keep.expand(q.shape[0], q.shape[2], *scores.shape)[b, h], -torch.inf)
            weights = (scores - scores.max(-1, keepdim=True).values).exp()
            out[b, :, h] = weights / weights.sum(-1, keepdim=True) @ v[b, :, h].double()
    return out


@torch.no_grad()
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("queries", "keys"), [(24, 24), (24, 7), (1, 130)])
def test_backend_equals_the_reference(name: str, queries: int, keys: int) -> None:
    torch.manual_seed(0)
    site = AttentionSite("a", "self", ATTENTION.get(name), Layout(), 16)
    q, k, v = torch.randn(2, queries, 3, 16), torch.randn(2, keys, 3, 16), torch.randn(2, keys, 3, 16)
    kept = [t.clone() for t in (q, k, v)]
    out = site(q, k, v)
    assert torch.allclose(out.double(), reference(q, k, v), atol=2e-6)
    assert all(map(torch.equal, kept, (q, k, v)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["sdpa", "math"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 3, 8, 9), (2, 3, 8, 9)])
def test_backend_with_a_mask(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 8, 3, 16), torch.randn(2, 9, 3, 16), torch.randn(2, 9, 3, 16)
    keep = torch.rand(shape) > 0.4
    keep[..., 0] = True
    site = AttentionSite("a", "self", ATTENTION.get(name), Layout(), 16)
    floats = torch.zeros(shape).masked_fill(~keep, -torch.inf)
    for mask in (keep, floats):
        assert torch.allclose(site(q, k, v, mask).double(), reference(q, k, v, keep), atol=2e-6)


def test_flex_refuses_a_mask() -> None:
    q = torch.randn(1, 4, 1, 16)
    with pytest.raises(WanlabError, match="flex takes no mask"):
        AttentionSite("a", "cross", ATTENTION.get("flex"), Layout(), 16)(q, q, q, torch.ones(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_math_accumulates_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 64, 2, 16).to(dtype) for _ in range(3))
    out = ATTENTION.get("math")(q, k, v, None)
    assert out.dtype == dtype
    assert torch.equal(out, reference(q, k, v).to(dtype)) or torch.allclose(
        out.double(), reference(q, k, v), atol=torch.finfo(dtype).eps
    )


def test_swapping_is_real_and_restored(model: Model) -> None:
    """Backends differ from one another in the last bits, and a broken one changes the result."""
    plain = forward(model)
    for name in ("math", "flex"):
        with attention.using(model, name) as used:
            out = forward(model)
        assert used.kernel == name
        assert torch.allclose(out, plain, rtol=1e-4, atol=1e-4)
        assert not torch.equal(out, plain)
    with attention.using(model, "auto") as used:
        assert torch.equal(forward(model), plain)
    assert used.kernel == "sdpa"
    with attention.using(model, lambda q, k, v, site, mask=None: 0 * q):
        assert not torch.allclose(forward(model), plain, rtol=1e-2)
    assert torch.equal(forward(model), plain)


class Spy:
    """Exact attention that remembers where it ran."""

    def __init__(self) -> None:
        self.sites: list[AttentionSite] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, mask: Tensor | None = None) -> Tensor:
        self.sites.append(site)
        out: Tensor = ATTENTION.get("sdpa")(q, k, v, site, mask)
        return out


def test_blocks_kinds_and_steps_choose_the_sites(model: Model) -> None:
    stack, spy = model.stacks["transformer"], Spy()
    kind = stack.attentions()[0].role
    with attention.using(model, spy, blocks=range(1, 3), kinds=[kind], steps=[1, 2]) as used:
        for step, calls in enumerate([0, 2, 4, 4]):
            forward(model, step)
            assert len(spy.sites) == calls
    names = [site.name for entry in list(stack)[1:3] for site in entry.attentions.values() if site.role == kind]
    assert used.sites == names
    assert {site.name for site in spy.sites} == set(names)
    assert used.steps == (1, 2)


def test_site_says_what_a_kernel_needs(model: Model) -> None:
    spy = Spy()
    with attention.using(model, spy):
        forward(model)
    assert {site.role for site in spy.sites} == ({"self", "cross"} if model.family == "wan" else {"joint"})
    assert {site.head_dim for site in spy.sites} == {12 if model.family == "wan" else 16}
    assert {site.grid for site in spy.sites} == {(3, 2, 3) if model.family == "wan" else (1, 8, 12)}
    assert {site.text for site in spy.sites} == {(0, 0) if model.family == "wan" else (0, 64)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "sdpb"}, "Did you mean 'sdpa'"),
        ({"name": "math", "blocks": [99]}, "no block 99"),
        ({"name": "math", "kinds": ["audio"]}, "No attention of kind"),
    ],
)
def test_wrong_choices_are_errors(model: Model, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(WanlabError, match=says), attention.using(model, **arguments):
        pass


def test_errors_restore(model: Model) -> None:
    def fail(error: type[BaseException]) -> None:
        with attention.using(model, "math"), attention.using(model, "flex", steps=[0]):
            forward(model)
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)


def test_available_lists_every_backend() -> None:
    assert set(attention.available()) >= set(BACKENDS)
    assert not any(attention.available()[name] for name in BACKENDS)
