"""PyTorch's scaled_dot_product_attention: exact, picks the device's best kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from wanlab.registry import ATTENTION
from wanlab.sites import AttentionSite


@ATTENTION.register("sdpa")
def sdpa(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite, mask: Tensor | None = None) -> Tensor:
    """Dense attention; q, k, v and the result are (B, L, H, D), the mask broadcasts to (B, H, L, S).

    Bit-equal to diffusers' backend `native`.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
