"""Teach wan_tiny's transformer to go on from a first frame, by the text as before; no parameter is added.

    python experiments/wan_tiny/train_i2v.py --out OUT --budget 300 [--limit 400]

Every step takes half of its clips as text-to-video, one timestep a clip, and half with a clean first latent frame whose
tokens are at timestep 0; there the loss covers the other frames only. Autoencoder and text encoder stay as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data
import first_frame
import flow
import networks
import torch
import whole_clip
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from flow import DEVICE, Latents
from optim import Average, Optimizers
from torch import Tensor
from transformers import UMT5EncoderModel

from wanlab.files import resource
from wanlab.shapes.captions import sample_scenes
from wanlab.shapes.renderer import render

TASKS = ("t2v", "i2v")


def velocity_error(transformer: torch.nn.Module, latents: Tensor, text: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mean square error of the velocity over the frames of `latents` (B, C, T, H, W) at noise levels `sigma` (B,)."""
    s = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(DEVICE, torch.bfloat16):
        velocity = transformer((1 - s) * latents + s * noise, sigma * 1000, text, return_dict=False)[0]
    return (velocity.float() - (noise - latents)).square().mean()


def velocity_error_after_first(
    transformer: torch.nn.Module, latents: Tensor, text: Tensor, noise: Tensor, sigma: Tensor
) -> Tensor:
    """`velocity_error` where the first latent frame is given: clean, its tokens at timestep 0, not in the error."""
    s = sigma.view(-1, 1, 1, 1, 1)
    given = first_frame.put_first((1 - s) * latents + s * noise, latents[:, :, :1])
    timesteps = first_frame.token_timesteps(sigma * 1000, latents)
    with torch.autocast(DEVICE, torch.bfloat16):
        velocity = transformer(given, timesteps, text, return_dict=False)[0]
    return (velocity.float() - (noise - latents))[:, :, 1:].square().mean()


class Trainer:
    def __init__(self, args: argparse.Namespace, folder: Path, pool: Latents) -> None:
        torch.manual_seed(args.seed)
        self.args, self.pool = args, pool
        text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").float().to(DEVICE)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer").float().to(DEVICE)
        self.transformer.train().requires_grad_(True)
        flow.prepare_blocks(self.transformer, compiled=args.compile)
        self.optimizer = Optimizers([self.transformer], args.lr, muon=True, decay=0.01)
        self.average = Average([self.transformer], 0.999)

    @torch.no_grad()
    def text(self, ids: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return flow.encode_text(self.text_encoder, ids)

    def losses(self, latents: Tensor, ids: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of both tasks, each on its half of the batch."""
        text = self.text(ids)
        halves = [x.chunk(2) for x in (latents, text, noise, sigma)]
        t2v, i2v = zip(*halves, strict=True)
        return velocity_error(self.transformer, *t2v), velocity_error_after_first(self.transformer, *i2v)

    def step(self, lr: float) -> Tensor:
        latents, ids = self.pool.batch(self.args.batch)
        losses = self.losses(latents, ids, torch.randn_like(latents), flow.sample_sigmas(len(latents)))
        (sum(losses) / len(losses)).backward()
        self.optimizer.step(lr)
        self.average.update()
        return torch.stack([loss.detach() for loss in losses])

    def validate(self, latents: Tensor, ids: Tensor) -> dict[str, float]:
        """Errors on these clips with noise that is always the same."""
        generator = torch.Generator(DEVICE).manual_seed(5)
        noise = torch.randn(latents.shape, generator=generator, device=DEVICE)
        sigma = (torch.arange(self.args.batch, device=DEVICE) % (self.args.batch // 2) + 0.5) / (self.args.batch // 2)
        found = []
        for x, i, n in zip(*(t.split(self.args.batch) for t in (latents, ids, noise)), strict=True):
            # not in no_grad: the blocks would be compiled once more
            found.append(torch.stack([loss.detach() for loss in self.losses(x.float(), i, n, sigma)]))
        return dict(zip(TASKS, torch.stack(found).mean(0).tolist(), strict=True))

    def save(self) -> None:
        """The averaged weights as they ship: bfloat16, two shards under 15 MB."""
        self.average.swap()
        save_transformer(self.args.out / "transformer", self.transformer)
        self.average.swap()

    def keep_better(self, latents: Tensor, ids: Tensor) -> dict[str, Any]:
        """Save the averaged or the last weights, whichever err less on fresh clips; says which and the errors."""
        live = self.validate(latents, ids)
        self.average.swap()
        mean = self.validate(latents, ids)
        kept = "mean" if sum(mean.values()) <= sum(live.values()) else "live"
        if kept == "live":
            self.average.swap()
        save_transformer(self.args.out / "transformer", self.transformer)
        return {"live": live, "mean": mean, "kept": kept}


def save_transformer(folder: Path, transformer: torch.nn.Module) -> None:
    shipped = networks.build_transformer()
    shipped.load_state_dict(transformer.state_dict())
    shipped.to(torch.bfloat16).save_pretrained(folder, max_shard_size="14MB")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300, help="seconds of training")
    parser.add_argument("--limit", type=float, default=400, help="seconds by which all is over, preparations included")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.75)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pool", type=int, default=32768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=int, default=1024, help="clips")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=DEVICE == "cuda")
    args = parser.parse_args()
    if args.batch % 2 or args.validation % args.batch:
        parser.error("--batch must be even and --validation a multiple of it")
    return args


def main() -> None:
    begin, args = time.time(), arguments()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    folder = resource("assets", "wan_tiny")
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae").float().to(DEVICE).eval().requires_grad_(False)
    clips = render(sample_scenes(4, torch.Generator(DEVICE).manual_seed(6)), data.NUM_FRAMES, data.SIZE)
    alone = first_frame.difference_alone(vae, clips.frames * 2 - 1)
    assert alone < 1e-3, f"an image's latents differ from its clip's first ones by {alone:.3g}"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    whole_clip.patch_for_training(compiled=False)
    generator, statistics = torch.Generator(DEVICE).manual_seed(args.seed + 100), first_frame.statistics(vae)
    fresh = Latents(vae, args.validation, generator, statistics, chunk=min(64, args.validation))
    pool = Latents(vae, args.pool, generator, statistics, chunk=min(64, args.pool))
    prepared = time.time() - begin
    print(f"{len(pool.latents)} latents in {prepared:.0f} s; an image alone differs by {alone:.2g}", flush=True)
    trainer = Trainer(args, folder, pool)
    before = trainer.validate(fresh.latents, fresh.ids)
    print("before", before, f"{time.time() - begin:.0f} s", flush=True)
    reserve = 15.0 if DEVICE == "cuda" else 0.0  # for the last validation and saving
    plan = flow.Plan(args.lr, args.budget, args.decay, stop=begin + args.limit - reserve, save_seconds=60)
    rows = flow.train(trainer.step, pool, trainer.save, plan)
    report = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "torch": torch.__version__,
        "batch": args.batch, "lr": args.lr, "decay": args.decay, "budget": args.budget, "compiled": args.compile,
        "image_alone_differs": alone, "prepared_seconds": round(prepared, 1), "before": before,
        **trainer.keep_better(fresh.latents, fresh.ids), "rows": rows, "seconds": round(time.time() - begin, 1),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if DEVICE == "cuda" else None,
    }  # fmt: skip
    (args.out / "train_i2v.json").write_text(json.dumps(report, indent=1))
    print({k: v for k, v in report.items() if k != "rows"}, flush=True)


if __name__ == "__main__":
    main()
