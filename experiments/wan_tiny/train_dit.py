"""Train wan_tiny's text encoder and transformer by flow matching on latents of the frozen autoencoder.

python experiments/wan_tiny/train_dit.py --out OUT --vae vae_mean.safetensors --budget 400
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import data
import flow
import networks
import torch
import torch.nn.functional as F
import whole_clip
from flow import DEVICE, Latents, encode_text, sample_sigmas
from optim import Average, Optimizers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wanlab.shapes.captions import captions, sample_scenes


class Trainer:
    def __init__(self, args: argparse.Namespace, pool: Latents) -> None:
        torch.manual_seed(int(time.time()) if args.resume else 0)
        self.args, self.pool = args, pool
        self.text_encoder = networks.build_text_encoder(len(pool.tokenizer)).to(DEVICE)
        self.transformer = networks.build_transformer().to(DEVICE)
        if args.resume:
            load_networks(Path(args.resume), self.text_encoder, self.transformer)
        flow.prepare_blocks(self.transformer, compiled=DEVICE == "cuda")
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
        plan = flow.Plan(self.args.lr, self.args.budget, self.args.decay)
        rows = flow.train(self.step, self.pool, lambda: save_networks(self.args.out, self.pool, self), plan)
        return int(rows[-1][0])

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
