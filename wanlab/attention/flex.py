"""PyTorch's flex_attention, the base for masks and score changes; compiled on a GPU, plain operators on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION
from wanlab.sites import AttentionSite


@ATTENTION.register("flex")
def flex(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, mask: Tensor | None = None) -> Tensor:
    """Dense attention through flex_attention; (B, L, H, D) in and out.

    Raises WanlabError for a mask tensor: flex takes masks as functions, so a call that has one needs another backend.
    """
    if mask is not None:
        raise WanlabError(f"flex takes no mask tensor, and {site.role} attention has one", remedy="Use sdpa there")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and torch.compiler.is_compiling():  # torch 2.13's CPU kernel cannot take views
        q, k, v = (x.contiguous() for x in (q, k, v))
    run = flex_attention if q.device.type == "cpu" or torch.compiler.is_compiling() else _compiled()
    return run(q, k, v).transpose(1, 2)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)  # uncompiled, it holds all scores in memory
