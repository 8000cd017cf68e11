"""What attention looks at: entropy, mass and maps against a dense float64 reference, in chunks that stay small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import probe
from wanlab.attention.sdpa import sdpa
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.probe._attention import LOOKS, Look
from wanlab.sites import AttentionSite, Layout

GRID = (3, 4, 5)
HEADS, WIDTH, TEXT = 2, 8, 7
SIZES = {"self": (60, 60), "cross": (60, TEXT), "joint": (60 + TEXT, 60 + TEXT), "image_cross": (60, 11)}
WANTED = {
    "self": {"entropy", "mass"},
    "cross": {"entropy", "mass", "text_map"},
    "image_cross": {"entropy", "mass"},
    "joint": {"entropy", "mass", "text_mass", "text_map"},
}


def site(role: str) -> AttentionSite:
    return AttentionSite(role, role, sdpa, Layout(GRID, (0, TEXT) if role == "joint" else (0, 0)), WIDTH)


def draw(role: str, batch: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    queries, keys = SIZES[role]
    return tuple(2 * torch.randn(batch, n, HEADS, WIDTH, generator=g) for n in (queries, keys))


def dense(q: Tensor, k: Tensor, role: str, keep: Tensor | None = None) -> dict[str, Tensor]:
    """The definitions on the whole matrix, in float64, sample by sample and query by query."""
    scores = torch.einsum("blhd,bmhd->bhlm", q.double(), k.double()) / WIDTH**0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    p = scores.exp() / scores.exp().sum(-1, keepdim=True)
    text = TEXT if role == "joint" else (0 if role == "self" else k.shape[1])
    offset = TEXT if role == "joint" else 0
    seen = p[:, :, offset:].mean(1)  # of queries in the picture
    found = {"entropy": -(p * p.clamp(min=1e-300).log()).sum(-1).mean(2)}
    if role in ("self", "joint"):
        mass = torch.zeros(len(q), GRID[0], dtype=torch.float64)
        for i in range(60):
            for j in range(60):
                mass[:, abs(i // 20 - j // 20)] += seen[:, i, offset + j] / 60
        found["mass"] = mass
    else:
        found["mass"] = seen.mean(1)
    found["text_mass"] = seen[:, :, :text].mean(1)
    found["text_map"] = seen[:, :, :text].transpose(1, 2).unflatten(2, GRID)
    return {name: value.unflatten(0, (2, -1)).mean(1) for name, value in found.items() if name in WANTED[role]}


@pytest.mark.parametrize("chunk_bytes", [1 << 24, 40_000, 6_500])
@pytest.mark.parametrize("role", SIZES)
def test_looks_equal_a_dense_reference(role: str, chunk_bytes: int) -> None:
    q, k = draw(role)
    found = Look(WANTED[role], chunk_bytes)(q, k, site(role), None, 2)
    for name, value in dense(q, k, role).items():
        assert found[name].shape == value.shape, name
        assert torch.allclose(found[name].double(), value, rtol=2e-5, atol=1e-6), name
    assert found.keys() == WANTED[role]
    if role in ("self", "cross"):
        assert torch.allclose(found["mass"].sum(-1), torch.ones(2))
    if role == "joint":
        assert torch.allclose(found["mass"].sum(-1) + found["text_mass"].sum(-1), torch.ones(2))


@pytest.mark.parametrize("role", ["self", "cross"])
@pytest.mark.parametrize("rows", [1, 60])
def test_looks_follow_a_mask(role: str, rows: int) -> None:
    q, k = draw(role)
    keep = torch.rand(4, HEADS, rows, k.shape[1], generator=torch.Generator().manual_seed(2)) > 0.5
    keep[..., 0] = True
    added = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)
    for mask in (keep, added):
        found = Look(WANTED[role], 20_000)(q, k, site(role), mask, 2)
        for name, value in dense(q, k, role, keep).items():
            assert torch.allclose(found[name].double(), value, rtol=2e-5, atol=1e-6), name


def test_maps_of_chosen_tokens() -> None:
    for role in ("cross", "joint"):
        q, k = draw(role)
        every = Look({"text_map"}, 20_000)(q, k, site(role), None, 2)["text_map"]
        some = Look({"text_map"}, 20_000, (1, 4))(q, k, site(role), None, 2)["text_map"]
        assert torch.equal(some, every[:, [1, 4]])
        with pytest.raises(WanlabError, match="no text token 7; attention reads 7"):
            Look({"text_map"}, 20_000, (7,))(q, k, site(role), None, 2)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made inside."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.num_bytes = max(self.num_bytes, tensor.numel() * tensor.element_size())
        return out


def test_memory_follows_chunk_bytes() -> None:
    length, layout = 1500, Layout((3, 20, 25))
    q, k = torch.randn(2, 1, length, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    where, inputs = AttentionSite("a", "self", sdpa, layout, WIDTH), length * HEADS * WIDTH * 4
    for chunk_bytes in (1 << 20, 1 << 18):
        with Largest() as largest:
            Look({"entropy", "mass"}, chunk_bytes)(q, k, where, None, 1)
        assert largest.num_bytes <= max(chunk_bytes // 3, inputs)
        assert largest.num_bytes < length * length * HEADS * 4 / 50, "never the whole matrix"
    with pytest.raises(WanlabError, match="One row of a's attention takes 36,000 bytes"):
        Look({"entropy"}, 35_999)(q, k, where, None, 1)


def test_looking_waits_for_nothing() -> None:
    q = torch.empty(2, 60, HEADS, WIDTH, device="meta")
    found = Look({"entropy", "mass"}, 20_000)(q, q, site("self"), None, 2)
    assert {name: value.shape for name, value in found.items()} == {"entropy": (2, HEADS), "mass": (2, 3)}


@pytest.fixture(scope="module", params=["wan", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    build = {"wan": tiny_wan, "flux": tiny_flux}[request.param]
    return wanlab.load(build(tmp_path_factory.mktemp(request.param))[1], device="cpu")


def test_a_model_s_attention_is_what_is_measured(model: Model) -> None:
    """Recorded numbers equal those of the queries and keys that the attention function really got."""
    stack = model.stacks["transformer"]
    entry = stack[2]
    part, attention = list(entry.attentions.items())[-1]
    got: list[tuple[Tensor, Tensor]] = []

    def spy(call: Any, q: Tensor, k: Tensor, v: Tensor, where: AttentionSite, mask: Any = None) -> Tensor:
        got.append((q.clone(), k.clone()))
        return call(q, k, v, where, mask)

    name = f"{entry.name}.{part}"
    legal = [n for n in model.sites(f"{name}.*") if n.rsplit(".")[-1] in LOOKS]
    with attention.wrap(spy, "recorder"), probe.record(model, *legal, chunk_bytes=1 << 20) as trace:
        spec = model.spec(prompt="a cat", num_steps=2)
        wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec))
    entropy = trace.array(f"{entry.name}.{attention.role}.entropy")
    num_branches = len(entropy.axes["branch"])
    assert len(got) == 2 * num_branches
    for i, (q, k) in enumerate(got):
        scores = torch.einsum("blhd,bmhd->bhlm", q.double(), k.double()) / q.shape[-1] ** 0.5
        p = scores.softmax(-1)
        step, branch = divmod(i, num_branches)
        assert np.allclose(entropy[step, 0, branch], torch.special.entr(p).sum(-1).mean((0, 2)), rtol=1e-5)
        maps = trace.array(f"{name}.text_map")[step, 0, branch]
        start, stop = attention.text if attention.role == "joint" else (0, k.shape[1])
        seen = p[0, :, stop if attention.role == "joint" else 0 :, start:stop].mean(0)
        assert np.allclose(maps.reshape(len(maps), -1), seen.T, rtol=1e-4, atol=1e-7)
    assert maps.shape[1:] == attention.grid


def test_normalized_guidance_calls_an_attention_twice(tmp_path: Any) -> None:
    """The negative prompt's attention is told apart from the prompt's."""
    model = wanlab.load(tiny_wan(tmp_path)[1], device="cpu")
    spec = model.spec(prompt="a cat", negative_prompt="a dog", num_steps=2, guidance={"method": "nag"})
    with probe.record(model, "blocks.*.cross.entropy", "blocks.*.self.entropy") as trace:
        wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec))
    assert trace.array("blocks.*.cross.entropy").axes["stream"] == ("attention", "attention_2")
    assert "stream" not in trace.array("blocks.*.self.entropy").axes
