"""One process of a training in several: `python -m tests.train.ranks WHAT FOLDER`."""

import atexit
import errno
import importlib
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from triptych import training as runs
from triptych.cli import train as train_command
from triptych.cli.main import main as command
from triptych.data.order.batches import Batches
from triptych.requests import (
    Answers,
    Towers,
    TrainAutoencoder,
    TrainClassifier,
    TrainClip,
    TrainCvae,
    Training,
    TrainLanguage,
    TrainRequest,
    TrainSiglip,
    TrainTextToImage,
    TrainVlm,
    TrainWgan,
)
from triptych.runtime import key
from triptych.systems.stable_diffusion import model as stable_diffusion
from triptych.train import checkpoint, loop
from triptych.train.distributed import World

TOWERS = Towers(
    width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2, vocabulary=520,
    hard_negative_pool=2, crop=0.6, flip=True, patch_dropout=0.25,
)  # fmt: skip


def training(data: str, size: int = 16, **changed: Any) -> Training:
    """Three steps of small batches, every row in the journal."""
    given: dict[str, Any] = {
        "steps": 3, "batch_size": 12, "log_every": 1, "sample_every": 0, "ema_halflife": 2.0
    }  # fmt: skip
    return Training(data, size, **given | changed)


def requests(captioned: Path) -> dict[str, TrainRequest]:
    """Every kind of objective; `captioned` holds pictures of which some share a caption."""
    pictures, whole = str(captioned), replace(TOWERS, patch_dropout=0.0)
    return {
        "clip": TrainClip(training(pictures, accumulate=2), TOWERS, dim=8),
        "clip-resnet": TrainClip(training(pictures, 32), whole, "resnet", resnet_width=8, dim=8),
        "siglip": TrainSiglip(training(pictures), replace(whole, gradient_cache=3)),
        "cvae": TrainCvae(training("digits", 0), latent=4, widths=(8, 8, 16)),
        "wgan": TrainWgan(
            training("digits", 0), latent=4, generator_widths=(16, 8), critic_widths=(8, 16),
            critic_steps=2, generator="norms",
        ),
        "classifier": TrainClassifier(training("digits", 0), widths=(8, 8, 8)),
        "autoencoder": TrainAutoencoder(
            training(pictures, batch_size=4), widths=(8, 8), groups=4, adversarial=0.5,
            discriminator_widths=(8, 8),
        ),
    }  # fmt: skip


def sharded(captioned: Path, texts: Path) -> dict[str, TrainRequest]:
    """What can be sharded, with every setting that changes how."""
    pictures = training(str(captioned), 32, shard=True, batch_size=8)
    return {
        "text-to-image": TrainTextToImage(
            pictures, patch=2, widths=(8, 16), transformers=(0, 1), head_width=8, groups=4,
            blocks=1, text_width=16, text_layers=2, text_heads=2, length=16, vocabulary=520,
        ),
        "muon": TrainTextToImage(
            pictures, patch=2, widths=(8, 16), transformers=(0, 1), head_width=8, groups=4,
            blocks=1, text_width=16, text_layers=0, text_pool="mean", length=16, vocabulary=520,
            optimizer="muon",
        ),
        "clip": TrainClip(replace(pictures, recompute=True), TOWERS, dim=8),
        "siglip": TrainSiglip(
            replace(pictures, recompute=True),
            replace(TOWERS, gradient_cache=2, patch_dropout=0.0),
        ),
        "vlm": TrainVlm(
            pictures,
            Answers(
                tasks=("caption",), patch=8, stem=(8, 8, 8), image_width=16, image_layers=1,
                image_heads=2, vocabulary=330, length=32,
            ),
            width=16, layers=2, heads=2, head_width=8, hidden=32,
        ),
        "language": language(texts, shard=True, steps=4),
        "bfloat16": language(texts, shard=True, steps=4, precision="bfloat16"),
    }  # fmt: skip


def language(texts: Path, **changed: Any) -> TrainLanguage:
    """A language model; it draws nothing, so that its numbers depend on the data alone."""
    return TrainLanguage(
        training(str(texts), 0, **{"batch_size": 8} | changed), length=16, vocabulary=330, width=24,
        layers=2, heads=2, kv_heads=1, head_width=8, hidden=32,
    )  # fmt: skip


@contextmanager
def draws_of_one_process(rank: int, size: int) -> Iterator[None]:
    """Random numbers as one process draws them for the whole batch, of which each keeps its rows.

    In descents alone: evaluation and samples are drawn by one process anyway.
    """
    descend, real = loop.descend, {name: getattr(torch, name) for name in ("rand", "randn")}

    def rows(draw: Callable[..., torch.Tensor], *shape: Any, **options: Any) -> torch.Tensor:
        sides = shape if shape and isinstance(shape[0], int) else tuple(shape[0])
        if not sides:
            return draw((), **options)
        whole = draw((sides[0] * size, *sides[1:]), **options)
        return whole[rank * sides[0] : (rank + 1) * sides[0]]

    def descend_with_draws(*arguments: Any) -> dict[str, float]:
        torch.rand = lambda *a, **k: rows(real["rand"], *a, **k)
        torch.randn = lambda *a, **k: rows(real["randn"], *a, **k)
        like, torch.randn_like = torch.randn_like, lambda x: torch.randn(x.shape, dtype=x.dtype)
        try:
            return descend(*arguments)
        finally:
            torch.rand, torch.randn, torch.randn_like = real["rand"], real["randn"], like

    def levels(schedule: Any, count: int, device: Any) -> Any:
        whole = even(schedule, count * size, device)
        return type(whole)(*(x[rank * count : (rank + 1) * count] for x in whole))

    even, stable_diffusion.training_levels = stable_diffusion.training_levels, levels
    loop.descend, loop.key = descend_with_draws, lambda seed, rank, step: key(seed, 0, step)
    try:
        yield
    finally:
        loop.descend, loop.key = descend, key
        stable_diffusion.training_levels = even


def equal(folder: Path, rank: int, size: int, names: str) -> None:
    """Systems with the draws of one process; then one with draws of its own, resumed, and one that
    is stopped.
    """
    written: list[str] = []

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and str(arguments[1]).strip("rb") not in ("", "None")
        if (writes or event in ("os.mkdir", "os.rename")) and str(folder) in str(arguments[0]):
            written.append(str(arguments[0]))

    sys.addaudithook(seen)
    importlib.import_module("torch._dynamo")  # before there is a group, as `joined` does and why
    dist.init_process_group("gloo")
    with draws_of_one_process(rank, size):
        for name in names.split():
            request = requests(folder / "pictures")[name]
            for _ in runs.train(request, folder / "ranks" / name):
                pass
            if name != "clip":
                continue
            sharded = replace(request, training=replace(request.training, shard=True))
            for _ in runs.train(sharded, folder / "shards" / name):
                pass
    longer = TrainCvae(training("digits", 0, steps=6, save_every=4), latent=4, widths=(8, 8, 16))
    for _ in runs.train(longer, folder / "whole"):
        pass
    drawn = torch.default_generator.initial_seed()
    if rank == 0:
        kept = shutil.ignore_patterns("step-000006", "model.safetensors")
        shutil.copytree(folder / "whole", folder / "resumed", ignore=kept)
        shutil.copy(folder / "whole/step-000004/model.safetensors", folder / "resumed/step-000004")
    dist.barrier()
    for _ in runs.train(longer, folder / "resumed"):
        pass
    told = {
        "seed": drawn,
        "written": written,
        "code": interrupted(longer, folder, World(rank, size)),
    }
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, told)
    if rank == 0:
        (folder / "told.json").write_text(json.dumps(everyone))
    dist.barrier()
    dist.destroy_process_group()


def interrupted(request: TrainRequest, folder: Path, world: World) -> int:
    """The exit code of the command in this process, when the last one gets a Ctrl-C in step 3."""
    # A shell starts jobs in the background deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    act_at_third_batch(world.rank, lambda: signal.raise_signal(signal.SIGINT))
    options = train_command.RunOptions(run=folder / "stopped")
    return train_command._train(request, options, world)


def shard(folder: Path, rank: int, size: int) -> None:
    """Everything that can be sharded, with the draws of one process."""
    importlib.import_module("torch._dynamo")
    dist.init_process_group("gloo")
    with draws_of_one_process(rank, size):
        for name, request in sharded(folder / "pictures", folder / "texts").items():
            for _ in runs.train(request, folder / f"{size}" / name):
                pass
    for name in ("at once", "delayed"):
        with delayed_writing() if name == "delayed" and rank == 0 else nullcontext():
            longer = language(folder / "texts", shard=True, steps=6, save_every=2, keep=5)
            for _ in runs.train(longer, folder / f"{size}" / name):
                pass
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def delayed_writing() -> Iterator[None]:
    """Each checkpoint is completed only after the next step of training, but the last one."""
    take_step, complete = loop.take_step, checkpoint.complete
    done = [threading.Event() for _ in range(7)]

    def take(*arguments: Any) -> Any:
        taken = take_step(*arguments)
        done[arguments[2]].set()
        return taken

    def wait(run: Path, step: int, *arguments: Any) -> Path:
        if step < 6 and not done[step + 1].wait(600):
            raise RuntimeError("training waits for its checkpoint")
        return complete(run, step, *arguments)

    loop.take_step, checkpoint.complete = take, wait
    try:
        yield
    finally:
        loop.take_step, checkpoint.complete = take_step, complete


def die(folder: Path, rank: int) -> NoReturn:
    """The console script; in each of the first twenty lives of a training one process is killed at
    a random moment after its first step.
    """
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    draw = random.Random(life)
    victim, moment = draw.randrange(2), draw.uniform(0, 1)
    take_step, started = loop.take_step, threading.Event()

    def kill() -> None:
        (folder / f"killed-{life:02d}").write_text(f"{rank} after {moment:.2f} s\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def take(*arguments: Any) -> Any:
        if life < 20 and rank == victim and not started.is_set():
            started.set()
            threading.Timer(moment, kill).start()
        return take_step(*arguments)

    loop.take_step = take
    sys.argv[1:] = command_of(folder / "texts", folder / "killed", 600)
    command()
    raise AssertionError("the console script ends the process")


def command_of(texts: Path, run: Path, steps: int) -> list[str]:
    """The command line of a sharded training of a small language model."""
    small = "--width 24 --layers 2 --heads 2 --kv-heads 1 --head-width 8 --hidden 32 --length 16"
    often = "--batch-size 8 --vocabulary 330 --log-every 1 --save-every 3 --ema-halflife 2"
    where = ["--data", str(texts), "--run", str(run), "--steps", f"{steps}", "--shard"]
    return ["train", "language", *where, *small.split(), *often.split()]


def fill_disk(folder: Path, rank: int) -> NoReturn:
    """The console script; the disk of the second process is full at the second checkpoint."""
    write, count = HuggingFaceStorageWriter.write_data, 0

    def writes(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2 and rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shares")
        return write(*arguments)

    HuggingFaceStorageWriter.write_data = writes  # type: ignore[method-assign]
    sys.argv[1:] = command_of(folder / "texts", folder / "full", 60)
    command()
    raise AssertionError("the console script ends the process")


def act_at_third_batch(rank: int, act: Callable[[], None]) -> None:
    """Have the last process act while it reads its third batch from now on."""
    read, count = Batches.__next__, 0

    def reads(batches: Batches) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 3 and rank == 1:
            act()
        return read(batches)

    Batches.__next__ = reads  # type: ignore[method-assign]


def fail(folder: Path, rank: int, how: str) -> NoReturn:
    """The console script, whose last process meets its end while it reads batch 3."""

    def act() -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("picture 17 is a film")

    act_at_third_batch(rank, act)
    options = ["--steps", "500", "--batch-size", "12", "--widths", "8", "8", "16"]
    atexit.register((folder / f"torn-down-{rank}").touch)
    sys.argv[1:] = ["train", "cvae", "--run", str(folder / "run"), *options]
    command()
    raise AssertionError("the console script ends the process")


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "equal":
        equal(place, rank, size, sys.argv[3])
    elif what == "shard":
        shard(place, rank, size)
    elif what in ("die", "fill_disk"):
        {"die": die, "fill_disk": fill_disk}[what](place, rank)
    else:
        fail(place, rank, what)
