"""A training step of one U-Net: ours against diffusers' `UNet2DModel`, the peer's weights in both.

4.4 M parameters, 32 x 32 x 3, noise prediction on random pictures: add noise, forward, backward,
AdamW. The peer's step is written as its own examples write it (DDPMScheduler, AdamW as it comes);
ours is the objective of `models/pixel_diffusion.py` with the fused AdamW of the loop. Interleaved
pairs; each side's peak memory in a process of its own.

    python benchmarks/train_unet.py [float32|bfloat16|default] [--batch 64] [--pairs 20]
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import measure
import torch
from torch.nn import functional as F

from triptych.diffusion.denoiser import PARAMETERISATIONS
from triptych.diffusion.objective import matching, training_levels
from triptych.diffusion.schedule import Discrete, betas
from triptych.systems.pixel_diffusion.published import DIFFUSERS
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig
from triptych.train.optimizer import adam
from triptych.weights.keymap import convert, fill

Step = Callable[[], float]


def peer_model() -> torch.nn.Module:
    logging.disable(logging.WARNING)
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(64, 128, 128), attention_head_dim=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def peer(batch: int, dtype: torch.dtype) -> Step:
    from diffusers import DDPMScheduler

    model, scheduler = peer_model(), DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    x = torch.randn(batch, 3, 32, 32)

    def step() -> float:
        began = time.perf_counter()
        noise, time_ = torch.randn_like(x), torch.randint(0, 1000, (batch,))
        noisy = scheduler.add_noise(x, noise, time_)
        with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            loss = F.mse_loss(model(noisy, time_, return_dict=False)[0].float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return step


def ours(batch: int, dtype: torch.dtype) -> Step:
    model = UNet(UNetConfig(3, 3))
    fill(model, convert(peer_model().state_dict(), DIFFUSERS))
    schedule, kind = Discrete(tuple(betas("linear"))), PARAMETERISATIONS["noise"]
    optimizer = adam(model, 1e-4, weight_decay=1e-2)
    x = torch.randn(batch, 3, 32, 32)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            levels = training_levels(schedule, batch)
            loss = matching(lambda x, time_: model(x, time_), kind, x, torch.randn_like(x), levels)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return step


def peak(side: str, options: argparse.Namespace) -> float:
    """GiB of a process that only takes three steps."""
    command = [sys.executable, __file__, options.precision, "--alone", side]
    command += ["--batch", str(options.batch), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_gib"])


def high_water() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("precision", nargs="?", default="float32", choices=measure.PRECISIONS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", choices=["ours", "peer"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides = {"ours": ours, "peer": peer}
    dtypes = dict(zip(sides, measure.precisions(options.precision), strict=True))
    if options.alone:
        step = sides[options.alone](options.batch, dtypes[options.alone])
        for _ in range(3):
            step()
        measure.emit(peak_gib=high_water())
        return
    measure.emit(machine=measure.machine())
    memory = {side: peak(side, options) for side in sides}
    mine, theirs = (make(options.batch, dtypes[side]) for side, make in sides.items())
    mine(), theirs()
    a, b = measure.pairs(mine, theirs, options.pairs)
    ratios = [their / our for our, their in zip(a, b, strict=True)]
    low, high = measure.interval(ratios)
    measure.emit(
        what="training step of UNet2DModel's 4.4 M network, peer over ours", batch=options.batch,
        precision=options.precision, pairs=options.pairs, ours_s=statistics.median(a),
        peer_s=statistics.median(b), ours_pictures_s=options.batch / statistics.median(a),
        peer_pictures_s=options.batch / statistics.median(b),
        ratio=statistics.median(ratios), low=low, high=high,
        ours_peak_gib=memory["ours"], peer_peak_gib=memory["peer"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
