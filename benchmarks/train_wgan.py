"""Steps of `fit` on a WGAN-GP of 1.5 M parameters at 32 x 32, against the bare step below.

A step is three critic updates and one generator update at batch 64, 32 x 32 x 3. The bare step is
what one writes without a library: the same networks in plain torch, AdamW, pictures already floats
in memory. `fit` reads bytes in keyed order and does all that the loop does. Interleaved pairs.

    python benchmarks/train_wgan.py [float32|bfloat16 ...]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.requests import Training, TrainWgan
from triptych.train.loop import fit
from triptych.training import build

BATCH, LATENT, CLASSES, SIDE, PICTURES, PAIRS = 64, 100, 10, 32, 2000, 20


class Generator(nn.Module):
    """The layers of `TrainWgan(generator_widths=(256, 128, 64))`."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(LATENT + CLASSES, 256 * 16, bias=False)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(256), nn.ReLU(), nn.ConvTranspose2d(256, 128, 4, 2, 1),
            nn.BatchNorm2d(128), nn.ReLU(), nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.layers(self.project(torch.cat([z, c], 1)).view(-1, 256, 4, 4))


class Critic(nn.Module):
    """The layers of `TrainWgan(critic_widths=(64, 128, 256))`, the label as planes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3 + CLASSES, 64, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(128, 256, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(256 * 16, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        planes = c[:, :, None, None].expand(-1, -1, SIDE, SIDE)
        return self.layers(torch.cat([x, planes], 1))


def bare(path: Path, precision: str) -> Callable[[], float]:
    arrays = np.load(path)
    pictures = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = F.one_hot(torch.from_numpy(arrays["y_train"]), CLASSES).float()
    generator, critic = Generator(), Critic()
    moving = {m: torch.optim.AdamW(m.parameters(), 2e-4, (0.0, 0.9)) for m in (generator, critic)}

    def critic_loss(x: Tensor, c: Tensor) -> Tensor:
        with torch.no_grad():
            fake = generator(torch.randn(BATCH, LATENT), c)
        share = torch.rand(BATCH, 1, 1, 1)
        mixed = (share * x + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(mixed, c).sum(), mixed, create_graph=True)
        penalty = ((gradient.flatten(1).norm(2, 1) - 1) ** 2).mean()
        return critic(fake, c).mean() - critic(x, c).mean() + 10 * penalty

    def move(model: nn.Module, loss: Tensor) -> None:
        moving[model].zero_grad()
        loss.backward()
        moving[model].step()

    def step() -> None:
        for _ in range(3):
            rows = torch.randint(PICTURES, (BATCH,))
            with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
                loss = critic_loss(pictures[rows], labels[rows])
            move(critic, loss)
        with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
            c = labels[rows]
            loss = -critic(generator(torch.randn(BATCH, LATENT), c), c).mean()
        move(generator, loss)

    def seconds() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    step()
    return seconds


def ours(path: Path, precision: str, run: Path) -> Callable[[], float]:
    training = Training(
        data=str(path), steps=10**6, batch_size=BATCH, precision=precision, save_every=10**6,
        sample_every=0, device="cpu",
    )  # fmt: skip
    request = TrainWgan(
        training, latent=LATENT, generator_widths=(256, 128, 64), critic_widths=(64, 128, 256)
    )
    steps = fit(build(request), training, run)

    def seconds() -> float:
        began = time.perf_counter()
        next(steps)
        return time.perf_counter() - began

    next(steps)
    return seconds


def main(precisions: list[str]) -> None:
    torch.set_num_threads(2)
    draw = np.random.default_rng(0)
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pictures.npz"
            x = draw.integers(0, 256, (PICTURES, SIDE, SIDE, 3), dtype=np.uint8)
            y = draw.integers(0, CLASSES, PICTURES)
            np.savez(path, x_train=x, y_train=y, x_test=x[:200], y_test=y[:200])
            run = Path(folder) / "run"
            a, b = measure.pairs(ours(path, precision, run), bare(path, precision), PAIRS)
        ratios = [theirs / mine for mine, theirs in zip(a, b, strict=True)]
        measure.emit(
            benchmark="train_wgan",
            precision=precision,
            batch=BATCH,
            pairs=PAIRS,
            fit_seconds_per_step=statistics.median(a),
            bare_seconds_per_step=statistics.median(b),
            ratio=statistics.median(ratios),
            interval=measure.interval(ratios),
            **measure.machine(),
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["float32", "bfloat16"])
