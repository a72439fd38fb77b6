"""Stable Diffusion of its published size, ours against diffusers, the same random weights in both.

    step      one call of the U-Net of 1.x, 512 x 512 with guidance (batch 2)
    xl        the same of XL at 712 x 1024
    decode    latents of 512 x 512 to pixels
    int8      our step in eight bits against our step in float32
    openvino  a step by `--backend openvino` against OpenVINO driven by hand on the peer's network
    picture   a whole picture of 512 x 512 from a prompt, few steps
    start     ours alone, from the start of a process to the end of a first step
    lecture   ours alone, the lecture's example as a process: XL, 712 x 1024, Euler a, guidance 7

`--precision default` takes what each gives its user without being asked: diffusers float32, ours
what `runtime.precision` chooses here. Interleaved pairs; a last line of each measurement compares
the results themselves. `picture` and `start` write a model of 2 GiB into `--folder` once.

    python benchmarks/stable_diffusion.py step [--precision float32|bfloat16|default] [--pairs 20]
"""

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import measure
import torch
from torch import Tensor, nn

from triptych.backends.int8 import int8
from triptych.requests import TextToImage
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder.write import write_diffusers
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.weights.keymap import convert, fill

XL = {
    "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
Timed = Callable[[], float]
Network = TypeVar("Network", bound=nn.Module)


def timed(call: Callable[[], Tensor]) -> tuple[Timed, Callable[[], Tensor]]:
    """The call with a clock, and what it gave last."""
    kept: list[Tensor] = []

    @torch.inference_mode()
    def run() -> float:
        began = time.perf_counter()
        kept[:] = [call()]
        return time.perf_counter() - began

    return run, lambda: kept[0]


def compared(what: str, mine: Callable[[], Tensor], theirs: Callable[[], Tensor],
             options: argparse.Namespace, **facts: Any) -> None:  # fmt: skip
    """Both in turns: medians, the ratio with its interval, and how far apart the results are."""
    (ours, our_result), (peer, peer_result) = timed(mine), timed(theirs)
    ours(), peer()
    error = our_result().float() - peer_result().float()
    ratio_db = 10 * torch.log10(peer_result().float().square().mean() / error.square().mean())
    a, b = measure.pairs(ours, peer, options.pairs)
    ratios = [their / our for our, their in zip(a, b, strict=True)]
    low, high = measure.interval(ratios)
    measure.emit(
        what=what, pairs=options.pairs, ours_s=statistics.median(a), peer_s=statistics.median(b),
        ratio=statistics.median(ratios), low=low, high=high, signal_to_noise_db=float(ratio_db),
        peak_gib=high_water(), **facts,
    )  # fmt: skip


def high_water() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peer_unet(form: dict[str, Any]) -> nn.Module:
    logging.disable(logging.WARNING)
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    settings = {"sample_size": 64, "cross_attention_dim": 768} | form
    network: nn.Module = UNet2DConditionModel(**settings).eval().requires_grad_(False)
    return network


def our_unet(peer: Any) -> LatentUNet:
    config = published_unet.from_diffusers(dict(peer.config))
    with torch.device("meta"):
        network = LatentUNet(config)
    fill(network, convert(peer.state_dict(), published_unet.diffusers_rules(config)))
    return network.eval().requires_grad_(False)


def as_loaded(network: Network, dtype: torch.dtype) -> Network:
    """In the order of numbers that `weights/load.py` gives it."""
    network = network.to(dtype)
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def step(options: argparse.Namespace, form: dict[str, Any], sides: tuple[int, int]) -> None:
    peer = peer_unet(form)
    ours = our_unet(peer)
    mine, theirs = measure.precisions(options.precision)
    ours, peer = as_loaded(ours, mine), peer.to(theirs)
    torch.manual_seed(1)
    x, context = torch.randn(2, 4, *sides), torch.randn(2, 77, ours.config.context)
    at = torch.full((2,), 500.0)
    told: dict[str, Tensor] = {}
    added: dict[str, Any] = {}
    if ours.config.added:
        sizes = torch.tensor([[1024, 712, 0, 0, 1024, 712]] * 2)
        told = {"vector": torch.randn(2, 1280), "sizes": sizes}
        words = {"text_embeds": told["vector"].to(theirs), "time_ids": told["sizes"].to(theirs)}
        added = {"added_cond_kwargs": words}

    def our_call() -> Tensor:
        given = {name: t.to(mine) if t.is_floating_point() else t for name, t in told.items()}
        result: Tensor = ours(x.to(mine), at, context.to(mine), **given)
        return result

    def peer_call() -> Tensor:
        result: Tensor = peer(x.to(theirs), at, context.to(theirs), return_dict=False, **added)[0]
        return result

    facts = {"precision": options.precision, "ours_dtype": str(mine), "latents": [*sides]}
    compared("a step of the U-Net", our_call, peer_call, options, **facts)


def eight_bits(options: argparse.Namespace) -> None:
    """The same network inside and outside: entered once, weights are quantised once."""
    plain = our_unet(peer_unet({}))
    with torch.device("meta"):
        other = LatentUNet(plain.config)
    other.load_state_dict(plain.state_dict(), assign=True)
    dtype = measure.precisions(options.precision)[0]
    plain, other = as_loaded(plain, torch.float32), as_loaded(other.eval(), dtype)
    torch.manual_seed(1)
    x, context, at = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768), torch.full((2,), 500.0)
    began = time.perf_counter()
    with int8(other):
        took = time.perf_counter() - began
        compared(
            "a step in eight bits against float32, both ours",
            lambda: other(x.to(dtype), at, context.to(dtype)), lambda: plain(x, at, context),
            options, quantising_s=took, rest=str(dtype),
        )  # fmt: skip


def by_openvino(options: argparse.Namespace) -> None:
    """Both networks are converted, compiled and called; by hand with the size of the pictures
    known to the compiler, as OpenVINO's own notebooks do.
    """
    from triptych.backends.openvino import Input, convert, find_conversion, trace
    from triptych.systems.stable_diffusion.openvino import OpenVinoUNet, Positional, unet_inputs

    peer = peer_unet({})
    unet = our_unet(peer)
    torch.manual_seed(1)
    x, at, context = torch.randn(2, 4, 64, 64), torch.full((2,), 500.0), torch.randn(2, 77, 768)
    half = measure.precisions(options.precision)[0] == torch.bfloat16
    conversion = find_conversion(unet, unet.config, "unet", tiling=False)
    began = time.perf_counter()
    convert(Positional(unet), unet_inputs(StableDiffusionConfig()), conversion)
    converted = time.perf_counter() - began
    ours = OpenVinoUNet(unet.config, conversion.folder, half)
    facts = {"converting_s": converted}

    class ByHand(nn.Module):
        def forward(self, x: Tensor, at: Tensor, context: Tensor) -> Tensor:
            result: Tensor = peer(x, at, context, return_dict=False)[0]
            return result

    import openvino

    inputs = [Input(one, tuple(one.shape)) for one in (x, at, context)]
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}  # fmt: skip
    by_hand = openvino.Core().compile_model(trace(ByHand(), inputs), "CPU", hint)
    compared(
        "a step by OpenVINO, against OpenVINO by hand on the peer's network",
        lambda: ours(x, at, context),
        lambda: torch.from_numpy(by_hand([t.numpy() for t in (x, at, context)])[0]), options,
        precision=options.precision, **facts,
    )  # fmt: skip
    compared(
        "our step by OpenVINO against our step by torch", lambda: ours(x, at, context),
        lambda: unet(x, at, context), options, precision="ours by torch float32",
    )  # fmt: skip


def decode(options: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    peer = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
        sample_size=512,
    ).eval().requires_grad_(False)  # fmt: skip
    ours = Autoencoder(AutoencoderConfig())
    fill(ours, convert(peer.state_dict(), published_autoencoder.diffusers_rules(peer.state_dict())))
    ours.eval().requires_grad_(False)
    mine, theirs = measure.precisions(options.precision)
    ours, peer = as_loaded(ours, mine), peer.to(theirs)
    latents = torch.randn(1, 4, 64, 64)
    scale = ours.config.scale
    compared(
        "decoding 512 x 512", lambda: ours.decode(latents.to(mine)),
        lambda: peer.decode((latents / scale).to(theirs), return_dict=False)[0], options,
        precision=options.precision, ours_dtype=str(mine),
    )  # fmt: skip


def folder_of(options: argparse.Namespace) -> Path:
    """A folder of 1.x's size in bfloat16, written once, with random weights."""
    folder = Path(options.folder)
    if not (folder / "model_index.json").is_file():
        from triptych.text.tokenizer import clip_tokenizer

        torch.manual_seed(0)
        tokenizer = clip_tokenizer(Path(options.vocabulary))
        model = StableDiffusion(StableDiffusionConfig()).to(torch.bfloat16)
        nn.init.normal_(model.unet.conv_out.weight, 0, 0.02)
        write_diffusers(model, (tokenizer,), folder)
    return folder


def picture(options: argparse.Namespace) -> None:
    from diffusers import StableDiffusionPipeline

    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.stable_diffusion.pipeline import load_model

    folder = folder_of(options)
    request = TextToImage(
        "a lighthouse at dusk, oil on canvas", model=str(folder), size="512x512", seed=1,
        steps=options.steps, sampler="euler", quantize=options.quantize, guidance=7.5,
        precision="auto" if options.precision == "default" else options.precision,
    )  # fmt: skip
    loaded = load_model(request, load)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=measure.precisions(options.precision)[1], safety_checker=None
    )
    from diffusers import EulerDiscreteScheduler

    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> Tensor:
        *_, last = run(request, loaded)
        return torch.from_numpy(last.pictures.astype("float32"))

    def peer() -> Tensor:
        drawn = pipeline(
            request.prompt, num_inference_steps=options.steps, guidance_scale=7.5, height=512,
            width=512, generator=[torch.Generator().manual_seed(1)], output_type="np",
        ).images  # fmt: skip
        return torch.from_numpy(drawn * 255)

    facts = {"precision": options.precision, "steps": options.steps, "quantize": options.quantize}
    compared("a picture of 512 x 512", ours, peer, options, **facts)


def start(options: argparse.Namespace) -> None:
    """Process start to the end of a first step, less a warm step; the peak while loading."""
    folder = folder_of(options)
    precision = "auto" if options.precision == "default" else options.precision
    program = f"""
import time, resource
import torch
imported = time.perf_counter()
torch.set_num_threads({options.threads})
from triptych.loading import load
from triptych.systems.stable_diffusion.pipeline import load_model
from triptych.requests import TextToImage
request = TextToImage("a", model={str(folder)!r}, precision={precision!r})
model = load_model(request, load).model
loaded, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dtype = next(model.unet.parameters()).dtype
x, context = torch.randn(1, 4, 8, 8, dtype=dtype), torch.randn(1, 77, 768, dtype=dtype)
with torch.inference_mode():
    model.unet(x, torch.ones(1), context); first = time.perf_counter()
    model.unet(x, torch.ones(1), context); warm = time.perf_counter() - first
print(imported, loaded, first - warm, peak / 2**20, warm)
"""
    for _ in range(options.pairs):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        imported, loaded, first, peak, warm = map(float, done.stdout.split())
        measure.emit(
            what="start of a model of 1.x's size", precision=options.precision,
            import_torch_s=imported - began, loaded_s=loaded - began,
            first_step_less_a_warm_one_s=first - began,
            beyond_import_torch_s=first - imported, warm_s=warm, peak_gib=peak,
        )  # fmt: skip


LECTURE = "Steps: {}, Sampler: Euler a, CFG scale: 7.0, Seed: 1117431804, Size: 712x1024"


def lecture(options: argparse.Namespace) -> None:
    """A model of XL's size, random weights, drawn by `triptych generate --from-parameters`."""
    from triptych.systems.stable_diffusion.published.folder.read import parse_configs
    from triptych.text.tokenizer import clip_tokenizer
    from triptych.weights.skeleton import skeleton

    folder = Path(options.folder)
    if not (folder / "model_index.json").is_file():
        names = {"unet": "config", "vae": "config", "text_encoder": "config",
                 "text_encoder_2": "config", "scheduler": "scheduler_config"}  # fmt: skip
        told = Path(options.configurations)
        index = json.loads((told / "model_index.json").read_text())
        parts = {
            name: json.loads((told / name / f"{file}.json").read_text())
            for name, file in names.items()
        }
        config, _ = parse_configs(index, parts)
        model = skeleton(lambda: StableDiffusion(config)).to(torch.bfloat16).to_empty(device="cpu")
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                nn.init.constant_(weight, float("norm" in name and name.endswith("weight")))
            else:
                nn.init.normal_(weight, 0, 0.02)
        tokenizer = clip_tokenizer(Path(options.vocabulary))
        write_diffusers(model, (tokenizer, tokenizer), folder)
        del model
    line = "a lighthouse at dusk, oil on canvas\n" + LECTURE.format(options.steps)
    command = [sys.executable, "-m", "triptych", "generate", "--from-parameters", line]
    began = time.perf_counter()
    subprocess.run([*command, "--model", str(folder), "--out", "runs/lecture"], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    measure.emit(what="the lecture's example, XL at 712 x 1024", steps=options.steps,
                 seconds=time.perf_counter() - began, peak_gib=peak)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choices = ["step", "xl", "decode", "int8", "openvino", "picture", "start", "lecture"]
    parser.add_argument("what", choices=choices)
    parser.add_argument("--precision", default="float32", choices=measure.PRECISIONS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quantize", default="", choices=["", "int8"])
    parser.add_argument("--folder", default="runs/random-sd15")
    parser.add_argument("--configurations", default="", help="XL's published folder, no weights")
    parser.add_argument("--vocabulary", default="", help="a folder with CLIP's vocabulary")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure.emit(machine=measure.machine())
    if options.what == "step":
        step(options, {}, (64, 64))
    elif options.what == "xl":
        step(options, XL, (128, 89))
    else:
        others = {"decode": decode, "int8": eight_bits, "openvino": by_openvino}
        (others | {"picture": picture, "start": start, "lecture": lecture})[options.what](options)


if __name__ == "__main__":
    main()
