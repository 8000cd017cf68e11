"""Train wan_tiny's text encoder and transformer by flow matching on latents of the frozen autoencoder.

python experiments/wan_tiny/train_dit.py --out OUT --vae vae_mean.safetensors --budget 400
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import data
import networks
import torch
import torch.nn.functional as F
import whole_clip
from optim import Average, Optimizers
from safetensors.torch import load_file, save_file
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


class Latents:
    """A pool of normalised latents with their caption tokens, partly replaced by fresh clips while training goes on."""

    def __init__(self, vae: nn.Module, num: int, generator: torch.Generator) -> None:
        self.vae, self.generator, self.tokenizer = vae, generator, networks.build_tokenizer()
        sample = torch.cat([self._encode(64)[0] for _ in range(16)])
        self.mean, self.std = sample.mean((0, 2, 3, 4)), sample.std((0, 2, 3, 4))
        self.latents = torch.empty(num, *sample.shape[1:], dtype=torch.bfloat16, device=DEVICE)
        self.ids = torch.zeros(num, TEXT_TOKENS, dtype=torch.long, device=DEVICE)
        self.cursor = 0
        while self.cursor < num - 63:
            self.refresh(64)
        self.latents, self.ids, self.cursor = self.latents[: self.cursor], self.ids[: self.cursor], 0
        self.empty = self.tokens([""])[0]

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

    def refresh(self, num: int) -> None:
        """Replace the oldest `num` entries."""
        latents, texts = self._encode(num)
        stops = torch.rand(num).lt(FULL_STOP_SHARE).tolist()
        rows = slice(self.cursor, self.cursor + num)
        shape = (1, -1, 1, 1, 1)
        self.latents[rows] = ((latents - self.mean.view(shape)) / self.std.view(shape)).bfloat16()
        self.ids[rows] = self.tokens([t + "." * s for t, s in zip(texts, stops, strict=True)])
        self.cursor = self.cursor + num
        if self.cursor + num > len(self.latents) and hasattr(self, "empty"):
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


class Trainer:
    def __init__(self, args: argparse.Namespace, pool: Latents) -> None:
        torch.manual_seed(int(time.time()) if args.resume else 0)
        self.args, self.pool = args, pool
        self.text_encoder = networks.build_text_encoder(len(pool.tokenizer)).to(DEVICE)
        self.transformer = networks.build_transformer().to(DEVICE)
        if args.resume:
            load_networks(Path(args.resume), self.text_encoder, self.transformer)
        processor = PaddedCrossAttention(DEVICE)
        for block in self.transformer.blocks:
            block.attn2.set_processor(processor)
            if DEVICE == "cuda":
                block.compile(dynamic=False)
        modules = [self.text_encoder, self.transformer]
        self.optimizer = Optimizers(modules, args.lr, muon=True, decay=0.01)
        self.average = Average(modules, 0.9995)

    def step(self, lr: float) -> Tensor:
        latents, ids = self.pool.batch(self.args.batch)
        noise, sigma = torch.randn_like(latents), sample_sigmas(len(latents))
        s = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(DEVICE, torch.bfloat16):
            text = encode_text(self.text_encoder, ids)
            velocity = self.transformer((1 - s) * latents + s * noise, sigma * 1000, text, return_dict=False)[0]
        loss = F.mse_loss(velocity.float(), noise - latents)
        loss.backward()
        self.optimizer.step(lr)
        self.average.update()
        return loss.detach().clone()  # mse_loss returns its scalar in storage of the whole batch (torch 2.11, 2.13)

    def train(self) -> int:
        for _ in range(3):
            self.step(0.0)
        start, saved, losses = time.time(), time.time(), []
        while (done := (time.time() - start) / self.args.budget) < 1:
            warm = min(1.0, (len(losses) + 1) / 200)
            losses.append(self.step(self.args.lr * warm * min(1.0, (1 - done) / self.args.decay)))
            if len(losses) % 40 == 0:
                self.pool.refresh(64)
            if time.time() - saved > 100:
                saved = time.time()
                save_networks(self.args.out, self.pool, self)
            if len(losses) % 500 == 0:
                loss, used = torch.stack(losses[-200:]).mean(), torch.cuda.memory_allocated() / 1e9
                print(f"  step {len(losses)} {time.time() - start:.0f}s loss {loss:.4f}, {used:.1f} GB", flush=True)
        return len(losses)

    @torch.no_grad()
    def sample(self, texts: list[str], num_steps: int = 20, guidance_scale: float = 5.0) -> Tensor:
        """Euler with classifier-free guidance, decoded: (B, 3, T, H, W); a look, not the score."""
        steps = torch.linspace(1, 0, num_steps + 1, device=DEVICE)
        sigmas = networks.FLOW_SHIFT * steps / (1 + (networks.FLOW_SHIFT - 1) * steps)
        x = torch.randn(len(texts), *self.pool.latents.shape[1:], device=DEVICE)
        ids = torch.cat([self.pool.tokens(texts), self.pool.empty.expand(len(texts), -1)])
        with torch.autocast(DEVICE, torch.bfloat16):
            text = encode_text(self.text_encoder, ids)
            for now, then in itertools.pairwise(sigmas):
                t = (now * 1000).expand(2 * len(texts))
                c, u = self.transformer(torch.cat([x, x]), t, text, return_dict=False)[0].float().chunk(2)
                x = x + (then - now) * (u + guidance_scale * (c - u))
            x = x * self.pool.std.view(1, -1, 1, 1, 1) + self.pool.mean.view(1, -1, 1, 1, 1)
            return whole_clip.decode(self.pool.vae, x).float().clamp(-1, 1)


def save_networks(folder: Path, pool: Latents, trainer: Trainer) -> None:
    """Averaged weights in float16 in files under 16 MB, and the latents' statistics."""
    trainer.average.swap()
    state = {f"text_encoder.{k}": v for k, v in trainer.text_encoder.state_dict().items()}
    state |= {f"transformer.{k}".replace("._orig_mod", ""): v for k, v in trainer.transformer.state_dict().items()}
    state = {k: v.detach().half().cpu().contiguous().clone() for k, v in state.items()}
    trainer.average.swap()
    names = sorted(state)
    for index in range(2):
        save_file({n: state[n] for n in names[index::2]}, folder / f"dit_{index}.safetensors")
    save_file({"mean": pool.mean.cpu(), "std": pool.std.cpu()}, folder / "latents.safetensors")


def load_networks(folder: Path, text_encoder: nn.Module, transformer: nn.Module) -> None:
    state = {**load_file(folder / "dit_0.safetensors"), **load_file(folder / "dit_1.safetensors")}
    for prefix, module in (("text_encoder.", text_encoder), ("transformer.", transformer)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--budget", type=float, required=True, help="seconds of training")
    parser.add_argument("--resume", default="", help="folder of earlier dit_*.safetensors")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pool", type=int, default=32768)
    args = parser.parse_args()
    begin = time.time()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    whole_clip.patch_for_training(compiled=False)
    vae = networks.build_vae().to(DEVICE).eval().requires_grad_(False)
    vae.load_state_dict({k: v.float() for k, v in load_file(args.vae).items()})
    pool = Latents(vae, args.pool, torch.Generator(DEVICE).manual_seed(int(time.time())))
    print(f"{len(pool.latents)} latents in {time.time() - begin:.0f} s; std {pool.std.mean():.3f}", flush=True)
    trainer = Trainer(args, pool)
    steps = trainer.train()
    save_networks(args.out, pool, trainer)
    scenes = sample_scenes(12, torch.Generator(DEVICE).manual_seed(3), "held_out")
    trainer.average.swap()
    data.save_grid(args.out / "samples.png", trainer.sample(captions(scenes)))
    (args.out / "captions.txt").write_text("\n".join(captions(scenes)))
    report = {"steps": steps, "batch": args.batch, "seconds": time.time() - begin}
    (args.out / "dit.json").write_text(json.dumps(report))
    print(report)


if __name__ == "__main__":
    main()
