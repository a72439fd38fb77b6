"""Training and drawing on one GPU, beside diffusers, open_clip and transformers, in 12 minutes.

    python benchmarks/gpu.py                          every row, each in a process of its own
    python benchmarks/gpu.py --only clip --minutes 5  the rows whose names contain a word
    python benchmarks/gpu.py --device cpu --tiny      tiny models: whether it runs at all

**This has been run with `--device cpu --tiny` alone: no GPU was at hand.** There a compiled row
takes one to five minutes, nearly all of it in the compiler.

Rows: training steps of Stable Diffusion 1.5's U-Net and of CLIP ViT-B/32 in bfloat16 (autocast),
with and without torch.compile; pictures of 512 x 512 in 20 steps with guidance, with and without a
CUDA graph of the U-Net; tokens of Gemma 3 1B, one after another. Weights are random, data are
random and on the device. A row is a line of JSON: pictures or tokens per second (of the median
step, after a warm-up), the most memory that the process had, and the seconds of the warm-up, mostly
the compiler's where it is compiled. A row that fails, or for which there is no time, says so.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import measure
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.diffusion.noise import PictureNoise
from triptych.nn.decoding import decode
from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, TextEncoderConfig, VitConfig
from triptych.systems.clip.model import objective as clip_objective
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.gemma.pipeline import Reader
from triptych.systems.stable_diffusion.model import (
    CLIP_L,
    StableDiffusion,
    StableDiffusionConfig,
    objective,
    sample,
)
from triptych.systems.stable_diffusion.unet import LatentUNetConfig
from triptych.train.optimizer import adam

STEPS = 20
"""Of a drawing."""
WARM_UP, SECONDS, MOST = 3, 6.0, 30
"""Calls before the clock runs; then so many seconds, and at most so many calls."""


class Row(NamedTuple):
    """What a process measures."""

    name: str
    who: str
    how: str  # "", compiled or graph
    call: Callable[["Scale", "Row"], tuple[Callable[[], Any], int]]
    """Makes the work to be timed, and says how many pictures or tokens it is."""

    @property
    def title(self) -> str:
        return "/".join(part for part in (self.name, self.who, self.how) if part)


@dataclass(frozen=True)
class Scale:
    """Sizes: the published ones, or tiny ones that only show that it runs."""

    device: str
    tiny: bool

    def choose(self, published: int, tiny: int) -> int:
        return tiny if self.tiny else published

    @property
    def unet(self) -> LatentUNetConfig:
        if not self.tiny:
            return LatentUNetConfig()
        return LatentUNetConfig(
            widths=(32, 32), blocks=1, transformers=(1, 0), heads=(2, 2), context=32, groups=8
        )

    @property
    def text(self) -> TextEncoderConfig:
        if not self.tiny:
            return CLIP_L
        return TextEncoderConfig(TextConfig(500, 77, 32, 1, 2, 64, end=499))

    @property
    def painter(self) -> StableDiffusionConfig:
        coder = AutoencoderConfig(widths=(8, 8, 8, 8), blocks=1, groups=4)
        coder = coder if self.tiny else AutoencoderConfig()
        return StableDiffusionConfig(self.unet, (self.text,), autoencoder=coder)

    @property
    def side(self) -> int:
        """Of the latents."""
        return self.choose(64, 8)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16)

    def compiled(self, network: Any, row: Row) -> Any:
        return torch.compile(network) if row.how == "compiled" else network


def stepping(scale: Scale, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Any:
    """A training step."""

    def step() -> None:
        with scale.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def their_unet(scale: Scale) -> nn.Module:
    """diffusers' U-Net of the same sizes."""
    from diffusers import UNet2DConditionModel

    if not scale.tiny:
        return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    return UNet2DConditionModel(
        cross_attention_dim=32, attention_head_dim=2, sample_size=8, layers_per_block=1,
        block_out_channels=(32, 32), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def train_unet(scale: Scale, row: Row) -> tuple[Any, int]:
    """A step of noise prediction on latents and states of texts."""
    batch, width = scale.choose(8, 2), scale.unet.context
    x = torch.randn(batch, 4, scale.side, scale.side)
    context = torch.randn(batch, 77, width)
    if row.who == "ours":
        model = StableDiffusion(scale.painter)
        model.text, model.autoencoder = nn.ModuleList(), nn.Identity()  # type: ignore[assignment]
        optimizer = adam(model.unet, 1e-5, weight_decay=1e-2)
        model.unet = scale.compiled(model.unet, row)

        def loss() -> Tensor:
            found = objective(model, x, {"context": context})
            return found.total / found.count

        return stepping(scale, optimizer, loss), batch
    from diffusers import DDPMScheduler

    unet, scheduler = their_unet(scale), DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-5)
    network = scale.compiled(unet, row)

    def their_loss() -> Tensor:
        noise = torch.randn_like(x)
        times = torch.randint(0, 1000, (batch,), device=x.device)
        noisy = scheduler.add_noise(x, noise, times)
        return F.mse_loss(network(noisy, times, context, return_dict=False)[0].float(), noise)

    return stepping(scale, optimizer, their_loss), batch


def train_clip(scale: Scale, row: Row) -> tuple[Any, int]:
    """A step of ViT-B/32 on pairs."""
    batch, side, words = scale.choose(256, 8), scale.choose(224, 32), scale.choose(49_408, 500)
    pixels = torch.randn(batch, 3, side, side)
    tokens = torch.randint(1, words - 2, (batch, 77))
    tokens[:, -1] = words - 1
    if row.who == "ours":
        config = ClipConfig()
        if scale.tiny:
            vit = VitConfig(32, 16, 32, 1, 2, 64)
            config = ClipConfig(16, vit, text=TextConfig(words, 77, 32, 1, 2, 64, end=words - 1))
        model = Clip(config)
        optimizer = adam(model, 1e-4, weight_decay=0.2)
        for tower in ("image", "text"):
            setattr(model, tower, scale.compiled(model.get_submodule(tower), row))

        def loss() -> Tensor:
            found = clip_objective(model, pixels, tokens)
            return found.total / found.count

        return stepping(scale, optimizer, loss), batch
    import open_clip

    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": words, "width": 512, "heads": 8, "layers": 12}
    if scale.tiny:
        vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
        text |= {"width": 32, "heads": 2, "layers": 1}
    theirs = open_clip.CLIP(scale.choose(512, 16), vision, text)
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-4, weight_decay=0.2)
    network, measure_loss = scale.compiled(theirs, row), open_clip.ClipLoss()
    return stepping(scale, optimizer, lambda: measure_loss(*network(pixels, tokens)[:3])), batch


class Graph(nn.Module):
    """A network whose kernels are launched as one CUDA graph, for inputs of one shape."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.graph: torch.cuda.CUDAGraph | None = None

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        if self.graph is None:
            self.inputs = [x.clone() for x in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.network(*self.inputs, **options)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.network(*self.inputs, **options)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output


def draw(scale: Scale, row: Row) -> tuple[Any, int]:
    """Pictures from states of texts: 20 steps of DPM++ 2M with guidance 7.5, then the decoder."""
    batch, width = scale.choose(4, 1), scale.unet.context
    pixels = scale.choose(512, 64)
    context, empty = torch.randn(2, batch, 77, width, dtype=torch.bfloat16).unbind()
    if row.who == "ours":
        config = scale.painter
        sampling = replace(config.sampling, height=pixels, width=pixels)
        model = StableDiffusion(replace(config, sampling=sampling)).bfloat16().eval()
        if row.how == "graph":
            model.unet = Graph(model.unet)  # type: ignore[assignment]

        def paint() -> Tensor:
            *_, last = sample(
                model, {"context": context}, {"context": empty}, PictureNoise(range(batch)),
                sampler="dpmpp_2m", steps=STEPS, guidance=7.5,
            )  # fmt: skip
            return model.autoencoder.decode(last.x.bfloat16(), (pixels, pixels))

        return in_inference(scale, paint), batch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

    unet, scheduler = their_unet(scale).bfloat16().eval(), DPMSolverMultistepScheduler()
    wide = (8, 8, 8, 8) if scale.tiny else (128, 256, 512, 512)
    coder = AutoencoderKL(
        block_out_channels=wide, latent_channels=4, norm_num_groups=scale.choose(32, 4),
        layers_per_block=scale.choose(2, 1), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).bfloat16().eval()  # fmt: skip
    network = Graph(unet) if row.how == "graph" else unet
    both = torch.cat([empty, context])

    def their_paint() -> Tensor:
        scheduler.set_timesteps(STEPS, device=both.device)
        x = torch.randn(batch, 4, scale.side, scale.side).to(both)
        for at in scheduler.timesteps:
            out = network(torch.cat([x, x]), at.reshape(1), both, return_dict=False)[0]
            without, given = out.chunk(2)
            x = scheduler.step(without + 7.5 * (given - without), at, x, return_dict=False)[0]
        decoded: Tensor = coder.decode(x / coder.config.scaling_factor, return_dict=False)[0]
        return decoded

    return in_inference(scale, their_paint, cast=False), batch


def in_inference(scale: Scale, work: Callable[[], Any], *, cast: bool = True) -> Callable[[], Any]:
    """The work without gradients, and with autocast where ours computes so."""

    def run() -> Any:
        with torch.inference_mode(), scale.autocast() if cast else nullcontext():
            return work()

    return run


def write(scale: Scale, row: Row) -> tuple[Any, int]:
    """Tokens of Gemma 3 1B after a prompt of 128."""
    count = scale.choose(128, 8)
    prompt = list(range(100, 100 + scale.choose(128, 8)))
    sizes = (262_144, 1152, 26, 4, 1, 256, 6912) if not scale.tiny else (400, 32, 2, 2, 1, 16, 64)
    if row.who == "ours":
        model = Gemma(GemmaConfig(*sizes)).bfloat16().eval()

        def say() -> None:
            reader = Reader(model)
            list(decode(reader.logits(prompt), reader.step, limit=count))

        return say, count
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    words, width, layers, heads, shared, head, hidden = sizes
    theirs = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=words, hidden_size=width, num_hidden_layers=layers, head_dim=head,
            num_attention_heads=heads, num_key_value_heads=shared, intermediate_size=hidden,
            query_pre_attn_scalar=head, sliding_window=512, max_position_embeddings=32_768,
        )
    ).bfloat16().eval()  # fmt: skip
    tokens = torch.tensor([prompt])
    return (
        lambda: theirs.generate(
            tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        ),
        count,
    )


ROWS = [
    *(Row("text-to-image", who, how, train_unet) for how in ("", "compiled")
      for who in ("ours", "diffusers")),
    *(Row("clip", who, how, train_clip) for how in ("", "compiled")
      for who in ("ours", "open_clip")),
    *(Row("draw", who, how, draw) for how in ("", "graph") for who in ("ours", "diffusers")),
    *(Row("gemma", who, "", write) for who in ("ours", "transformers")),
]  # fmt: skip


def measure_row(scale: Scale, row: Row) -> None:
    """One row, in this process."""
    torch.manual_seed(0)
    cuda = scale.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    with torch.device(scale.device):
        work, amount = row.call(scale, row)
    began = time.perf_counter()
    for _ in range(WARM_UP):
        work()
    wait()
    warm = time.perf_counter() - began
    taken: list[float] = []
    while len(taken) < MOST and sum(taken) < SECONDS:
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * peak_kib()
    measure.emit(
        row=row.title, unit="tokens/s" if row.name == "gemma" else "pictures/s",
        rate=amount / statistics.median(taken), peak_gb=peak / 1e9, calls=len(taken),
        warm_up_s=warm,
    )  # fmt: skip


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all rows together")
    parser.add_argument("--row", type=int, default=-1, help="measure this row in this process")
    options = parser.parse_args()
    scale = Scale(options.device, options.tiny)
    if scale.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU: `--device cpu --tiny` shows whether it runs")
    if options.row >= 0:
        measure_row(scale, ROWS[options.row])
        return
    gpu = torch.cuda.get_device_name() if scale.device == "cuda" else ""
    measure.emit(**measure.machine(), gpu=gpu, tiny=scale.tiny)
    end = time.monotonic() + 60 * options.minutes
    for number, row in enumerate(ROWS):
        if options.only in row.title:
            if row.how == "graph" and scale.device == "cpu":
                print(json.dumps({"row": row.title, "left_out": "a CPU has no CUDA graphs"}))
                continue
            run_row(row, number, end)


def run_row(row: Row, number: int, end: float) -> None:
    """One row in a process of its own, which is ended when the time is over."""
    command = [sys.executable, *sys.argv, "--row", str(number)]
    left = end - time.monotonic()
    try:
        if left < 10:
            raise subprocess.TimeoutExpired(command, left)
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        print(json.dumps({"row": row.title, "left_out": "the time is over"}), flush=True)
        return
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        print(json.dumps({"row": row.title, "failed": last[0][:300]}), flush=True)
    else:
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
