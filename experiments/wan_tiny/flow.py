"""What trainings of the transformer share: latents with their captions, text in 40 tokens, noise levels, the clock."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import data
import networks
import torch
import torch.nn.functional as F
import whole_clip
from torch import Tensor, nn

from wanlab.shapes.captions import captions, sample_scenes
from wanlab.shapes.renderer import render

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT_TOKENS, PADS, PIPELINE_TOKENS = 32, 8, 512
EMPTY_SHARE, FULL_STOP_SHARE = 0.1, 0.2


class PaddedCrossAttention:
    """Cross-attention over WanPipeline's 512 tokens in 40: the last eight zero rows stand for 480 equal ones.

    Equal keys share one softmax weight, so a bias of log(480 / 8) on each of the eight is exact.
    """

    def __init__(self, device: str) -> None:
        bias = torch.zeros(TEXT_TOKENS + PADS, device=device)
        bias[TEXT_TOKENS:] = math.log((PIPELINE_TOKENS - TEXT_TOKENS) / PADS)
        self.bias = bias

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: object, **kw: object
    ) -> Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        k = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        v = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        mask = self.bias.to(q.dtype).expand(q.shape[0], 1, q.shape[2], -1)
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def prepare_blocks(transformer: nn.Module, compiled: bool) -> None:
    """Give the blocks the short cross-attention and compile each, in place."""
    processor = PaddedCrossAttention(DEVICE)
    for block in transformer.blocks:
        block.attn2.set_processor(processor)
        if compiled:
            block.compile(dynamic=False)


class Latents:
    """A pool of normalised latents with their caption tokens, partly replaced by fresh clips while training goes on.

    `statistics` are the mean and the deviation (16,) of a channel, measured on 1,024 clips where none are given. Clips
    are made `chunk` at a time.
    """

    def __init__(
        self,
        vae: nn.Module,
        num: int,
        generator: torch.Generator,
        statistics: tuple[Tensor, Tensor] | None = None,
        chunk: int = 64,
    ) -> None:
        self.vae, self.generator, self.tokenizer, self.chunk = vae, generator, networks.build_tokenizer(), chunk
        self.mean, self.std = self._measured() if statistics is None else (s.to(DEVICE) for s in statistics)
        frames = 1 + (data.NUM_FRAMES - 1) // vae.config.scale_factor_temporal
        side = data.SIZE // vae.config.scale_factor_spatial
        self.latents = torch.empty(num, vae.config.z_dim, frames, side, side, dtype=torch.bfloat16, device=DEVICE)
        self.ids = torch.zeros(num, TEXT_TOKENS, dtype=torch.long, device=DEVICE)
        self.cursor = 0
        while self.cursor < num - (chunk - 1):
            self.refresh()
        self.latents, self.ids, self.cursor = self.latents[: self.cursor], self.ids[: self.cursor], 0
        self.empty = self.tokens([""])[0]

    def _measured(self) -> tuple[Tensor, Tensor]:
        sample = torch.cat([self._encode(64)[0] for _ in range(16)])
        return sample.mean((0, 2, 3, 4)), sample.std((0, 2, 3, 4))

    @torch.no_grad()
    def _encode(self, num: int) -> tuple[Tensor, list[str]]:
        scenes = sample_scenes(num, self.generator)
        clips = render(scenes, data.NUM_FRAMES, data.SIZE).frames * 2 - 1
        with torch.autocast(DEVICE, torch.bfloat16):
            return whole_clip.encode_mean(self.vae, clips).float(), captions(scenes)

    def tokens(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        )
        return tokens["input_ids"].to(DEVICE)

    def refresh(self) -> None:
        """Replace the oldest entries, a chunk of them."""
        latents, texts = self._encode(self.chunk)
        stops = torch.rand(self.chunk).lt(FULL_STOP_SHARE).tolist()
        rows = slice(self.cursor, self.cursor + self.chunk)
        shape = (1, -1, 1, 1, 1)
        self.latents[rows] = ((latents - self.mean.view(shape)) / self.std.view(shape)).bfloat16()
        self.ids[rows] = self.tokens([t + "." * s for t, s in zip(texts, stops, strict=True)])
        self.cursor = self.cursor + self.chunk
        if self.cursor + self.chunk > len(self.latents) and hasattr(self, "empty"):
            self.cursor = 0

    def batch(self, num: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.latents), (num,), device=DEVICE)
        ids = self.ids[rows]
        drop = torch.rand(num, 1, device=DEVICE) < EMPTY_SHARE
        return self.latents[rows].float(), torch.where(drop, self.empty, ids)


def encode_text(text_encoder: nn.Module, ids: Tensor) -> Tensor:
    """(B, 40, 128): zero after the sentence, as WanPipeline pads."""
    mask = ids.ne(0).long()
    hidden = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return F.pad(hidden * mask[..., None], (0, 0, 0, PADS))


def sample_sigmas(num: int) -> Tensor:
    """Logit-normal, then shifted toward noise by FLOW_SHIFT."""
    sigma = torch.sigmoid(torch.randn(num, device=DEVICE))
    return networks.FLOW_SHIFT * sigma / (1 + (networks.FLOW_SHIFT - 1) * sigma)


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train; the clock decides, whatever a step takes."""

    lr: float
    """Reached after `warm_steps`, kept, then falling to zero over the last `decay` share of the time."""
    budget: float
    """Seconds of steps; the four first ones, which compile, come before."""
    decay: float
    stop: float = math.inf
    """The moment (`time.time()`) by which the last step is over, even if the budget is not used up."""
    warm_steps: int = 200
    save_seconds: float = 100.0


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def train(step: Callable[[float], Tensor], pool: Latents, save: Callable[[], None], plan: Plan) -> list[list[float]]:
    """Call `step(rate)`, which returns its losses, until the time is over; `save()` between.

    Returns rows [steps, seconds, losses averaged over the last 200 steps ...], one every 250 steps and one at the end.
    """
    for _ in range(4):
        step(0.0)
    synchronize()
    start = saved = time.time()
    seconds = min(plan.budget, plan.stop - start)
    steps, last = 0, deque[Tensor](maxlen=200)
    rows: list[list[float]] = []

    def note() -> None:
        means = torch.stack(list(last)).mean(0).flatten().tolist()
        rows.append([steps, round(time.time() - start, 1), *(round(m, 4) for m in means)])
        print("  steps, seconds, losses:", *rows[-1], flush=True)

    while (done := (time.time() - start) / max(seconds, 1e-9)) < 1:
        warm = min(1.0, (steps + 1) / plan.warm_steps)
        last.append(step(plan.lr * warm * min(1.0, (1 - done) / plan.decay)))
        steps += 1
        if steps % 10 == 0:
            synchronize()  # or the clock would run ahead of the GPU
        if steps % 40 == 0:
            pool.refresh()
        if time.time() - saved > plan.save_seconds:
            saved = time.time()
            save()
        if steps % 250 == 0:
            note()
    if steps % 250:
        note()
    return rows
