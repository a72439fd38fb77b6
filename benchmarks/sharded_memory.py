"""Memory of sharded training: measured on processes of this CPU, and by arithmetic for real models.

    python benchmarks/sharded_memory.py measure      1, 2 and 4 processes (gloo), a language model
    python benchmarks/sharded_memory.py arithmetic   Stable Diffusion 1.5 and XL, CLIP L/14,
                                                     PaliGemma 3B: nothing is computed

`measure` prints for each process, in MB above what it had before the model was built, the most that
it needed to build the model and share it out, to train, and to save beside training. `arithmetic`
counts the weights of models that are not in memory, and what autograd keeps of one picture
(FakeTensorMode), in bfloat16 as `--precision bfloat16` computes.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from triptych.nn import cache
from triptych.nn.spatial_transformer import ContextBlock
from triptych.nn.transformer import Block as TransformerBlock
from triptych.requests import Training, TrainLanguage
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.gemma.model import GemmaBlock
from triptych.systems.paligemma.model import PaliGemma, PaliGemmaConfig
from triptych.systems.stable_diffusion.unet import Block, LatentUNet, LatentUNetConfig, Middle
from triptych.train.distributed import join_processes
from triptych.train.held_weights import recompute_blocks
from triptych.train.loop import fit
from triptych.train.recipe import Recipe
from triptych.training import build

WORDS = "the red green blue circle square above left of a small grey star".split()  # noqa: SIM905
MB = 1e6


def request(texts: Path, shard: bool) -> TrainLanguage:
    """A language model of 30 million weights, nearly all in its blocks, on few tokens."""
    training = Training(
        str(texts), steps=5, batch_size=4, sample_every=0, save_every=100, log_every=1, shard=shard
    )
    return TrainLanguage(
        training, length=16, vocabulary=330, width=512, layers=8, heads=8, kv_heads=1,
        head_width=64, hidden=2048,
    )  # fmt: skip


def resident(name: str) -> float:
    """A figure of this process's memory: VmRSS now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")) / MB


def most_since() -> float:
    """The most since the last call."""
    most = resident("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return most


def train(folder: Path, shard: bool) -> None:
    """One process."""
    torch.set_num_threads(1)
    asked = request(folder / "texts", shard)
    with join_processes(asked.training) as world:
        if world.shards:
            import triptych.train.shards  # noqa: F401
        before = resident("VmRSS")
        most_since()
        recipe = world.run_on_all(lambda: build(asked, world))
        count = sum(parameter.numel() for parameter in recipe.model.parameters())
        reports = fit(recipe, asked.training, folder / "run", world)
        next(reports)
        peaks = {"start": most_since()}
        for _ in range(3):
            next(reports)
        peaks["train"] = most_since()
        for _ in reports:
            pass
        peaks["save"] = most_since()
        above = {name: round(peak - before) for name, peak in peaks.items()}
        for line in world.gather((world.rank, above)):
            if world.first:
                measure.emit(processes=world.size, rank=line[0], millions=count / 1e6, **line[1])


def measure_all(sizes: list[int]) -> None:
    measure.emit(**measure.machine())
    for size in sizes:
        with tempfile.TemporaryDirectory() as name, socket.socket() as free:
            folder = Path(name)
            (folder / "texts").mkdir()
            for i in range(10):
                words = [WORDS[(7 * k * k + i) % len(WORDS)] for k in range(600)]
                (folder / "texts" / f"{i}.txt").write_text(" ".join(words))
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
            free.close()
            command = [sys.executable, __file__, "train", "--folder", name]
            settings = {"WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            settings |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is let go leaves the process
            started = [
                subprocess.Popen(
                    command,
                    env=os.environ | settings | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
                )
                for rank in range(size)
            ]
            if any(process.wait() for process in started):
                raise SystemExit(f"{size} processes failed")


BLOCKS = (Middle, Block, ContextBlock, TransformerBlock, GemmaBlock)
XL = LatentUNetConfig(
    widths=(320, 640, 1280), transformers=(0, 2, 10), middle=10, heads=(5, 10, 20), context=2048,
    added=2816,
)  # fmt: skip
L14 = ClipConfig(
    768,
    VitConfig(224, 14, 1024, 24, 16, 4096),
    text=TextConfig(width=768, layers=12, heads=12, hidden=3072),
)


def unet_step(side: int, config: LatentUNetConfig) -> Callable[[Any], Tensor]:
    def step(unet: Any) -> Tensor:
        more = {}
        if config.added:
            more = {"vector": torch.randn(1, 1280), "sizes": torch.zeros(1, 6)}
        x, context = torch.randn(1, 4, side, side), torch.randn(1, 77, config.context)
        loss: Tensor = unet(x, torch.zeros(1), context, **more).float().square().sum()
        return loss

    return step


def clip_step(model: Any) -> Tensor:
    image = model.embed_image(torch.randn(1, 3, 224, 224))
    text = model.text.states(torch.zeros(1, 77, dtype=torch.long))
    loss: Tensor = image.sum() + text[:, -1].sum()
    return loss


def paligemma_step(model: Any) -> Tensor:
    # the true mask depends on values, which do not exist here
    cache.visible = lambda queries, keys, *_: torch.ones(1, 1, len(queries), len(keys)).bool()
    pixels, tokens = torch.randn(1, 3, 224, 224), torch.zeros(1, 64, dtype=torch.long)
    logits = model(pixels, tokens, torch.full((1,), 8)).float()
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "SD 1.5, 512 px": (lambda: LatentUNet(LatentUNetConfig()), unet_step(64, LatentUNetConfig())),
    "SD XL, 1024 px": (lambda: LatentUNet(XL), unet_step(128, XL)),
    "CLIP L/14": (lambda: Clip(L14), clip_step),
    "PaliGemma 3B, 64 tokens": (lambda: PaliGemma(PaliGemmaConfig()), paligemma_step),
}


def kept(model: nn.Module, step: Callable[[Any], Tensor]) -> float:
    """Bytes that autograd keeps of a step, weights apart."""
    owned = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in owned:
            storages[key] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        keep_alive = step(model)
    assert keep_alive is not None
    return float(sum(storages.values()))


def arithmetic(only: str) -> None:
    for name, (make, step) in MODELS.items():
        if only not in name:
            continue
        with FakeTensorMode():
            model = make()
            count = sum(p.numel() for p in model.parameters())
            blocks = [block for block in model.modules() if isinstance(block, BLOCKS)]
            inner = {id(p) for block in blocks for p in block.parameters()}
            rest = sum(p.numel() for p in model.parameters() if id(p) not in inner)
            nested = {id(b) for block in blocks for b in block.modules() if b is not block}
            largest = max(sum(p.numel() for p in own_parameters(block, nested)) for block in blocks)
            for block in blocks:
                gather_in_bfloat16(block)
            everything = kept(model, step)
            recipe = Recipe(model, model, (), lambda k: iter(()), lambda *_: None, blocks=BLOCKS)
            recompute_blocks(recipe)
            again = kept(model, step)
        measure.emit(
            model=name, millions=count / 1e6, outside_blocks=rest / 1e6, largest=largest / 1e6,
            state_gb=16 * count / 1e9, activations_mb=everything / MB, recomputed_mb=again / MB,
        )  # fmt: skip


def gather_in_bfloat16(block: nn.Module) -> None:
    """What sharded training in bfloat16 computes with."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().bfloat16()))


def own_parameters(block: nn.Module, nested: set[int]) -> list[nn.Parameter]:
    """The parameters of a block without those of blocks inside it."""
    inside = {
        id(p)
        for module in block.modules()
        if module is not block and id(module) in nested and isinstance(module, BLOCKS)
        for p in module.parameters()
    }
    return [p for p in block.parameters() if id(p) not in inside]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("measure", "arithmetic", "train"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--only", default="", help="models whose names contain this")
    parser.add_argument("--folder", type=Path, help="of one process that `measure` starts")
    options = parser.parse_args()
    if options.what == "train":
        train(options.folder, shard=int(os.environ["WORLD_SIZE"]) > 1)
    else:
        measure_all(options.processes) if options.what == "measure" else arithmetic(options.only)


if __name__ == "__main__":
    main()
