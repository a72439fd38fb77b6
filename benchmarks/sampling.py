"""What sampling costs besides the network, and end to end against diffusers.

First a network that does nothing: milliseconds that a sampler and guidance add to a step. Then one
U-Net of 4.4 M parameters, the peer's weights in ours, four pictures of 32 x 32 x 3, 20 steps: ours
and the peer's scheduler loop (what its pipelines run) in interleaved pairs, at one precision and
with what each takes without being asked.

    python benchmarks/sampling.py [--pairs 20] [--threads 2]
"""

import argparse
import statistics
import time

import measure
import torch
from train_unet import peer_model

from triptych.backends.bfloat16 import bfloat16_weights
from triptych.diffusion.denoiser import conditional_denoiser, denoiser
from triptych.diffusion.guidance import classifier_free
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.sampling import DETERMINISTIC, STOCHASTIC, run_sampler
from triptych.diffusion.schedule import Discrete, betas
from triptych.diffusion.spacing import Spacing, levels
from triptych.systems.pixel_diffusion.published import DIFFUSERS
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig
from triptych.weights.keymap import convert, fill

SD = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
STEPS = 50
SHAPE = (4, 64, 64)  # a picture's latents in Stable Diffusion


def idle() -> None:
    """Milliseconds a step of every sampler, guided, around a network that does nothing."""
    answer = torch.zeros(2, *SHAPE)
    denoise = conditional_denoiser(lambda x, time, cond: answer, SD, "noise")
    told = {"context": torch.zeros(1, 77, 8)}
    guided = classifier_free(denoise, told, told, 7.5)
    spacing = Spacing("trailing", whole_times=True)
    for name in sorted({*DETERMINISTIC, *STOCHASTIC}):
        spent = []
        for _ in range(7):
            noise = PictureNoise([0])
            x = noise.start(SHAPE)
            began = time.perf_counter()
            for _ in run_sampler(name, guided, x, levels(SD, STEPS, spacing), noise):
                pass
            spent.append((time.perf_counter() - began) / STEPS * 1e3)
        measure.emit(
            what="sampler and guidance, a step", sampler=name, ms=statistics.median(spent[1:]),
            target_ms=0.3,
        )  # fmt: skip


def idle_peer() -> None:
    """The same of the peer's schedulers, guided as its pipelines do."""
    import diffusers

    answer = torch.zeros(2, *SHAPE)
    for name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler",
                 "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):  # fmt: skip
        scheduler = getattr(diffusers, name)(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        spent = []
        for _ in range(7):
            x = torch.randn(1, *SHAPE)
            began = time.perf_counter()
            scheduler.set_timesteps(STEPS)
            x = x * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                scheduler.scale_model_input(torch.cat([x, x]), t)
                away, towards = answer.chunk(2)
                x = scheduler.step(away + 7.5 * (towards - away), t, x, return_dict=False)[0]
            spent.append((time.perf_counter() - began) / STEPS * 1e3)
        measure.emit(what="the peer's scheduler", scheduler=name, ms=statistics.median(spent[1:]))


def end_to_end(pairs: int, precision: str) -> None:
    from diffusers import DPMSolverMultistepScheduler

    peer = peer_model().eval()
    unet = UNet(UNetConfig(3, 3)).eval().requires_grad_(False)  # as loading does
    fill(unet, convert(peer.state_dict(), DIFFUSERS))
    half = measure.precisions(precision)[0] == torch.bfloat16
    if not half:
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    table = Discrete(tuple(betas("linear")))
    spacing = Spacing("linspace", whole_times=True, include_cleanest=False)
    noise = PictureNoise(range(4))
    start = noise.start((3, 32, 32))
    reached: dict[str, torch.Tensor] = {}

    def ours() -> float:
        began = time.perf_counter()
        with (
            bfloat16_weights(unet, half),
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, half),
        ):
            denoise = denoiser(lambda x, time_: unet(x, time_), table, "noise")
            *_, last = run_sampler("dpmpp_2m", denoise, start, levels(table, 20, spacing), noise)
        reached["ours"] = last.x
        return time.perf_counter() - began

    def theirs() -> float:
        began = time.perf_counter()
        scheduler = DPMSolverMultistepScheduler(timestep_spacing="linspace")
        scheduler.set_timesteps(20)
        with torch.inference_mode():
            x = start
            for t in scheduler.timesteps:
                output = peer(x, t, return_dict=False)[0]
                x = scheduler.step(output, t, x, return_dict=False)[0]
        reached["peer"] = x
        return time.perf_counter() - began

    ours(), theirs()
    a, b = measure.pairs(ours, theirs, pairs)
    ratios = [their / our for our, their in zip(a, b, strict=True)]
    low, high = measure.interval(ratios)
    error = reached["ours"] - reached["peer"]
    decibels = 10 * torch.log10(reached["peer"].square().mean() / error.square().mean())
    measure.emit(
        what="4 pictures, 20 steps of DPM++ 2M: peer over ours", precision=precision, pairs=pairs,
        ours_s=statistics.median(a), peer_s=statistics.median(b), ratio=statistics.median(ratios),
        low=low, high=high, signal_to_noise_db=float(decibels),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure.emit(machine=measure.machine())
    with torch.inference_mode():
        idle()
    idle_peer()
    for precision in ("float32", "default"):
        end_to_end(options.pairs, precision)


if __name__ == "__main__":
    main()
