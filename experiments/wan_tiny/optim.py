"""Muon for hidden matrices and convolutions, AdamW for the rest; exponential moving average of weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def _orthogonalise(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) on (N, rows, columns)."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; updates have the size of AdamW's (0.2 rms, Liu et al. 2025, arXiv:2502.16982)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.flatten(1).shape].append(p)
            for (rows, columns), params in shapes.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum"] for p in params]
                grads = [p.grad for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                mixed = torch._foreach_lerp(grads, buffers, group["momentum"])
                update = _orthogonalise(torch.stack([m.flatten(1) for m in mixed]))
                update *= 0.2 * max(rows, columns) ** 0.5
                if group["decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["decay"])
                for p, u in zip(params, update.unbind(0), strict=True):
                    p.add_(u.view_as(p), alpha=-group["lr"])


def _is_matrix(p: nn.Parameter) -> bool:
    return p.ndim >= 2 and min(p.flatten(1).shape) > 8


class Optimizers:
    """One handle on both; `lr` scales both together."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, muon: bool, decay: float = 0.0) -> None:
        named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
        edge = ("conv_in", "conv_out", "patch_embedding", "proj_out", "shared", "embed_tokens", "relative", "table")
        hidden = [p for n, p in named if muon and _is_matrix(p) and not any(e in n for e in edge)]
        known = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in known]
        self.parameters = [p for _, p in named]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=rest[0].is_cuda)
        ]
        if hidden:
            self.all.append(Muon(hidden, lr=lr, decay=decay))

    def step(self, lr: float) -> float:
        """One step at rate `lr`; returns the gradient norm before clipping to 1."""
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm


class Average:
    """Exponential moving average of modules' parameters, with a warm-up of the decay."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.params = [p for m in modules for p in m.parameters()]
        self.decay, self.steps = decay, 0
        self.mean = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.params], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the live weights."""
        for p, m in zip(self.params, self.mean, strict=True):
            live = p.clone()
            p.copy_(m)
            m.copy_(live)
