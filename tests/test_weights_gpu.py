"""On a GPU: the same bits as on the CPU, through pinned buffers, in little host memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import layouts
from tests.test_weights_layouts import CLASSES, ORIGINAL, as_gguf, load, save, state_of
from wanlab import weights

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["float", "fp8", "int8", "gguf", "pickle"])
@pytest.mark.parametrize("chunk", [1000, 64 << 20])
def test_a_gpu_gets_the_same_bits(kind: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in many small reads, whose buffers are used again while their copies may still run."""
    state = ORIGINAL["t2v"](state_of("t2v"))
    file = tmp_path / {"gguf": "x.gguf", "pickle": "x.pth"}.get(kind, "x.safetensors")
    if kind == "gguf":
        as_gguf(state, file, "Q8_0")
    elif kind == "pickle":
        torch.save(state, file)
    else:
        save({"fp8": layouts.scaled_fp8, "int8": layouts.quanto_int8}.get(kind, lambda s: (s, s))(state)[0], file)
    here = load("t2v", file, dtype=torch.bfloat16, allow_pickle=kind == "pickle")
    monkeypatch.setattr("wanlab.weights._read.CHUNK", chunk)
    cls, config = CLASSES["t2v"]
    component = weights.Component("x", (file,), config, allow_pickle=kind == "pickle")
    there = weights.load_component(cls, component, torch.bfloat16, "cuda")
    for (name, a), (_, b) in zip(here.state_dict().items(), there.state_dict().items(), strict=True):
        assert b.device.type == "cuda"
        assert torch.equal(a, b.cpu()), name


def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    cls, config = CLASSES["t2v"]
    component = weights.Component("x", (save(state_of("t2v"), tmp_path / "x.safetensors"),), config)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    module = weights.load_component(cls, component, torch.float32, "cuda")
    tables = sum(b.numel() * b.element_size() for b in module.buffers())
    assert torch.cuda.memory_allocated() - before > tables
    weights.unload(module)
    assert torch.cuda.memory_allocated() - before <= tables + 512 * sum(1 for _ in module.buffers())
