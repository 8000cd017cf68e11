"""Train wan_tiny's autoencoder within a budget of seconds; see README.md for the plan and LOG.md for what happened.

python experiments/wan_tiny/train_vae.py --out OUT --budget 480 --compare 40
python experiments/wan_tiny/train_vae.py --out OUT --budget 300 --resume vae_live.safetensors --decay 0.5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import data
import networks
import torch
import whole_clip
from optim import Average, Optimizers
from safetensors.torch import load_file, save_file
from torch import Tensor

VARIANTS: dict[str, tuple[dict[str, object], bool]] = {
    "residual-adamw": ({}, False),
    "residual-muon": ({}, True),
    "plain-muon": ({"is_residual": False, "decoder_base_dim": 32, "dim_mult": [1, 2, 3]}, True),
}
PHASES = ((1, 512, 0.08), (9, 48, 0.40), (33, 16, 1.0))
"""(frames, batch, until this share of the budget): single frames are cheap, whole clips are the truth."""
LATENT_NOISE = 0.1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def loss_of(vae: torch.nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Half the loss for all pixels, half for pixels at objects (inverse area); latents noised a little, kept near 1."""
    latents = whole_clip.encode_mean(vae, x)
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    error = (whole_clip.decode(vae, noisy).float() - x).abs()
    error = (error + error.square()).mean(1)
    near = (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)
    return 0.5 * (error.mean() + near.mean()) + 1e-4 * latents.float().square().mean(), latents


def spread_in_time(vae: torch.nn.Module) -> None:
    """After single frames: other temporal taps start at zero, resampling in time at "take the last, repeat it"."""
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :2] = 0
                if name.endswith("time_conv"):
                    eye = torch.eye(module.in_channels, device=module.weight.device)
                    repeats = module.out_channels // module.in_channels
                    module.weight[:, :, 2, 0, 0] = eye.repeat(repeats, 1)
                    module.bias.zero_()


class Trainer:
    def __init__(self, args: argparse.Namespace, changes: dict[str, object], muon: bool) -> None:
        torch.manual_seed(0)
        self.args, self.changes = args, changes
        self.vae = networks.build_vae(**changes).to(DEVICE)
        if args.resume:
            self.vae.load_state_dict(load_file(args.resume))
        if args.channels_last:
            for p in self.vae.parameters():
                if p.ndim in (4, 5):
                    layout = torch.channels_last if p.ndim == 4 else torch.channels_last_3d
                    p.data = p.data.contiguous(memory_format=layout)
        self.optimizer = Optimizers([self.vae], args.lr, muon)
        self.average = Average([self.vae], 0.998)
        self.generator = torch.Generator(DEVICE).manual_seed(int(time.time()))
        self.steps = 0

    def step(self, pool: data.Pool, num_frames: int, batch: int, lr: float) -> Tensor:
        x, weight = pool.batch(batch, num_frames, self.generator)
        if self.args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss, _ = loss_of(self.vae, x, weight)
        loss.backward()
        self.optimizer.step(lr * min(1.0, (self.steps + 1) / 50))
        self.average.update()
        self.steps += 1
        return loss.detach()

    def phase(self, pool: data.Pool, num_frames: int, batch: int, seconds: float, rates: Iterator[float]) -> float:
        """Train for `seconds`, not counting the first three (compiling) steps; returns the mean loss of the last 30."""
        losses: list[Tensor] = []
        for _ in range(3):
            self.step(pool, num_frames, batch, 0.0)
        synchronize()
        start = time.time()
        while time.time() - start < seconds:
            losses.append(self.step(pool, num_frames, batch, next(rates)))
            if len(losses) % 20 == 0:
                synchronize()
            if len(losses) % 200 == 0:
                loss = torch.stack(losses[-100:]).mean()
                print(f"  T={num_frames} step {len(losses)} {time.time() - start:.0f}s loss {loss:.4f}")
        print(f"phase T={num_frames} B={batch}: {len(losses)} steps in {time.time() - start:.0f} s")
        return float(torch.stack(losses[-30:]).mean())

    @torch.no_grad()
    def evaluate(self, held_out: data.Pool, picture: Path | None = None) -> dict[str, float]:
        """PSNR of the averaged weights on held-out clips, whole and inside the main object's box."""
        self.average.swap()
        whole, boxed, shown = [], [], []
        for rows in torch.arange(len(held_out.frames), device=DEVICE).split(10):
            x = held_out.frames[rows].float() / 127.5 - 1
            with torch.autocast(DEVICE, torch.bfloat16):
                y = whole_clip.decode(self.vae, whole_clip.encode_mean(self.vae, x)).clamp(-1, 1)
            whole.append(data.psnr(x, y))
            boxed.append(data.psnr(x, y, data.box_mask(held_out.boxes[rows])))
            shown.append((x, y))
        if picture:
            data.save_grid(picture, shown[0][0], shown[0][1])
        self.average.swap()
        w, b = torch.cat(whole), torch.cat(boxed)
        result = {"whole": w.mean(), "box": b.mean(), "whole_worst": w.min(), "box_worst": b.min()}
        return {k: round(float(v), 2) for k, v in result.items()}


def measure_layouts(args: argparse.Namespace, pool: data.Pool) -> None:
    """Time ten steps in both memory layouts and keep the faster."""
    times = {}
    for args.channels_last in (False, True):
        trainer = Trainer(args, {}, False)
        for i in range(13):
            if i == 3:
                synchronize()
                start = time.time()
            trainer.step(pool, 9, 48, 0.0)
        synchronize()
        times[args.channels_last] = (time.time() - start) / 10
    args.channels_last = min(times, key=times.__getitem__)
    print("seconds a step, channels first / last:", times)


def rates(args: argparse.Namespace, start: float) -> Iterator[float]:
    """Constant, then linear to zero over the last `decay` share of the budget."""
    while True:
        done = (time.time() - start) / args.budget
        yield args.lr * min(1.0, max(0.0, (1 - done) / args.decay) if args.decay else 1.0)


def save(trainer: Trainer, out: Path) -> None:
    state = {k: v.half().contiguous() for k, v in trainer.vae.state_dict().items()}
    save_file(state, out / "vae_live.safetensors")
    trainer.average.swap()
    save_file({k: v.half().contiguous() for k, v in trainer.vae.state_dict().items()}, out / "vae_mean.safetensors")
    trainer.average.swap()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True, help="seconds of training")
    parser.add_argument("--compare", type=float, default=0, help="seconds to try each variant before")
    parser.add_argument("--variant", default="residual-muon", choices=list(VARIANTS))
    parser.add_argument("--resume", default="")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--pool", type=int, default=8192)
    parser.add_argument("--channels-last", action="store_true", default=None)
    args = parser.parse_args()
    begin = time.time()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    whole_clip.patch_for_training(compiled=DEVICE == "cuda")
    generator = torch.Generator(DEVICE).manual_seed(1 if not args.resume else int(time.time()))
    pool = data.Pool.rendered(args.pool, generator)
    held_out = data.Pool.rendered(100, torch.Generator(DEVICE).manual_seed(7), "held_out")
    print(f"pool {time.time() - begin:.0f} s")
    if args.channels_last is None:
        measure_layouts(args, pool)
    if args.compare:
        results = {}
        for name, (changes, muon) in VARIANTS.items():
            trainer = Trainer(args, changes, muon)
            results[name] = trainer.phase(pool, 9, 48, args.compare, iter(lambda: args.lr, None))
            print(name, f"{results[name]:.4f}", trainer.evaluate(held_out), f"{time.time() - begin:.0f} s", flush=True)
        args.variant = min(results, key=results.__getitem__)
    changes, muon = VARIANTS[args.variant]
    print("training", args.variant, f"{time.time() - begin:.0f} s", flush=True)
    trainer = Trainer(args, changes, muon)
    start = time.time()
    schedule = rates(args, start)
    for num_frames, batch, until in PHASES[-1:] if args.resume else PHASES:
        trainer.phase(pool, num_frames, batch, until * args.budget - (time.time() - start), schedule)
        if num_frames == 1:
            spread_in_time(trainer.vae)
            trainer.average = Average([trainer.vae], 0.998)
        print(
            trainer.evaluate(held_out, args.out / f"vae_{num_frames}.png"), f"{time.time() - begin:.0f} s", flush=True
        )
        save(trainer, args.out)
    report = dict(
        variant=args.variant,
        **trainer.evaluate(held_out),
        seconds=time.time() - begin,
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
    )
    (args.out / "vae.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
