"""Attention as it is written: softmax(q k^T / sqrt(D)) v in float32. Slow, takes L * S floats per head; a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from wanlab.registry import ATTENTION
from wanlab.sites import AttentionSite


@ATTENTION.register("math")
def math(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, mask: Tensor | None = None) -> Tensor:
    """Dense attention with every product and sum in float32; (B, L, H, D) in and out, of the dtype of `q`.

    `mask` broadcasts to (B, H, L, S): boolean keeps where True, floats are added.
    """
    scores = torch.einsum("blhd,bshd->bhls", q.float(), k.float()) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    return torch.einsum("bhls,bshd->blhd", scores.softmax(dim=-1), v.float()).to(q.dtype)
