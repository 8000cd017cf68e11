"""The reductions behind the cheap quantities: without waits, and in float32 whatever the tensors are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from wanlab.probe._measure import Measure, token_norms


def test_measuring_waits_for_nothing() -> None:
    """On tensors without values: whatever asked for one would raise."""
    wanted = {"in", "out", "change", "cosine", "residual", "ratio"}
    measure = Measure(wanted, branches=2)
    before, after = (torch.empty(4, 6, 8, device="meta", dtype=torch.bfloat16) for _ in range(2))
    _, previous = measure(before, after, None, token_norms)
    sums, previous = measure(before, after + 1, previous, token_norms)
    assert {value.shape for value in sums.values()} == {(2,)}
    assert {value.dtype for value in sums.values()} == {torch.float32}
    assert measure.finish(sums, after)(np.ones((len(sums), 2), np.float32)).keys() == wanted
    with pytest.raises(RuntimeError):
        float(sums["ratio"][0])


def test_half_precision_is_summed_in_float32() -> None:
    before, then, now = torch.randn(3, 1, 400, 64, generator=torch.Generator().manual_seed(0))
    now = then + 0.05 * now
    measure = Measure({"in", "out", "change", "cosine", "residual", "ratio"}, branches=1)

    def values(*tensors: Tensor) -> dict[str, np.ndarray]:
        start, first, second = (x[None] for x in tensors)
        _, previous = measure(start, first, None, token_norms)
        sums, _ = measure(start, second, previous, token_norms)
        return measure.finish(sums, second)(torch.stack(list(sums.values())).numpy())

    rounded = [x.bfloat16() for x in (before[0], then[0], now[0])]
    short, exact = values(*rounded), values(*(x.double().float() for x in rounded))
    for name, value in exact.items():
        assert np.allclose(short[name], value, rtol=2e-4), name
