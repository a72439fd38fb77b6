"""A judge of drawn emoji: a classifier of their names, and the rank it gives the requested name.

    python benchmarks/emoji_judge.py train emoji --run runs/emoji-judge
    python benchmarks/emoji_judge.py judge emoji --run runs/emoji-judge --model runs/emoji

`emoji` is the folder of `examples/emoji_folder.py`, or its tars. Every name has one picture, so the
judge is trained on augmented ones: turned, scaled, moved, recoloured, blurred and noised. Its
ceiling is its own accuracy on real emoji in augmentations that it has not seen. It shares nothing
with the model that it judges.
"""

import argparse
import json
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from triptych import runtime
from triptych.config import write_json
from triptych.data.order.batches import to_images
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.loading import load
from triptych.scores.accuracy import wilson_interval
from triptych.scores.fid import kernel_distance
from triptych.scores.memorisation import memorisation, nearest_neighbours
from triptych.systems.classifier.model import Classifier, ClassifierConfig, objective
from triptych.systems.stable_diffusion.draw_prompts import draw_prompts
from triptych.train import checkpoint
from triptych.train.optimizer import adam
from triptych.vision.grids import contact_sheet
from triptych.vision.images import save_picture
from triptych.weights.loaded import Card

SIZE, BATCH, RATE = 64, 128, 4e-3
WIDTHS = (32, 64, 128)
COLOURS = ("red", "green", "blue", "yellow", "purple")
THINGS = (
    "apple",
    "heart",
    "car",
    "cat",
    "book",
    "fish",
    "flower",
    "balloon",
    "house",
    "hat",
    "cake",
    "bird",
)


def read_pictures(source: Source) -> tuple[Tensor, list[str]]:
    """Every picture in [-1, 1] with its name, the first caption."""
    rows = source.read(range(source.info.length or 0))
    names = [text if isinstance(text, str) else text[0] for text in rows["caption"]]
    return to_images(rows["image"]), names


def computes_fast() -> bool:
    """Whether this machine is fast in bfloat16."""
    return runtime.precision("auto", torch.device("cpu")) == "bfloat16"


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture turned by up to 12 degrees, scaled by 0.8 to 1.1, moved by up to 4 pixels on
    white paper, with channels scaled by 0.9 to 1.1, and half of them blurred, and all noised.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(image), generator=generator)

    angle, scale = draw(-0.21, 0.21), 1 / draw(0.8, 1.1)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    move = [draw(-8 / SIZE, 8 / SIZE) for _ in range(2)]  # a side is 2 long
    rows = [torch.stack([cosine, -sine, move[0]], 1), torch.stack([sine, cosine, move[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    ink = F.grid_sample(1 - image, grid, align_corners=False)  # white paper is 0
    gains = torch.stack([draw(0.9, 1.1) for _ in range(3)], 1)[:, :, None, None]
    soft = F.interpolate(F.avg_pool2d(ink, 2), scale_factor=2.0, mode="bilinear")
    ink = torch.where(draw(0, 1)[:, None, None, None] < 0.5, soft, ink) * gains
    noise = torch.randn(ink.shape, generator=generator) * draw(0, 0.15)[:, None, None, None]
    return (1 - ink + noise).clamp(-1, 1)


def train(folder: str, run: Path, minutes: float, steps: int) -> None:
    """Train a judge for some minutes of CPU time at most, and save it."""
    image, names = read_pictures(open_train_and_test(folder, size=SIZE)[0])
    torch.manual_seed(runtime.key(0, "weights"))
    config = ClassifierConfig(SIZE, SIZE, 3, (len(names),), WIDTHS)
    model = Classifier(config).train()
    optimizer = adam(model, RATE, weight_decay=1e-2)
    schedule = OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    fast = computes_fast()
    generator, began = runtime.generator(0), time.process_time()
    for step in range(1, steps + 1):
        rows = torch.randint(len(names), (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = objective(model, augment(image[rows], generator), rows)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        schedule.step()
        spent = (time.process_time() - began) / 60
        if step % 100 == 0:
            accuracy = float(loss.terms["accuracy"])
            print(f"step {step}: accuracy {accuracy:.3f}, {spent:.1f} minutes", flush=True)
        if spent > minutes:
            print(f"stopped after {step} of {steps} steps")
            break
    run.mkdir(parents=True, exist_ok=True)
    card = Card("classifier", to_json(config), classes=tuple(names), triptych=version("triptych"))
    checkpoint.export(run, model.eval(), to_json(card))
    print(json.dumps({"ceiling": ceiling(model, image)}))


@torch.inference_mode()
def read(model: Classifier, image: Tensor) -> tuple[Tensor, Tensor]:
    """The judge's features of each picture, and its logits of the names."""
    features = torch.cat([model.features(part) for part in image.split(BATCH)])
    return features, model.logits(features)[0]


def ranks(logits: Tensor) -> Tensor:
    """The rank, from 1, of name i for picture i."""
    return (logits > logits.diagonal()[:, None]).sum(1) + 1


def ceiling(model: Classifier, image: Tensor) -> dict[str, object]:
    """The judge's own figures on real emoji in fresh augmentations."""
    generator = runtime.generator(1)
    fresh = torch.cat([augment(part, generator) for part in image.split(BATCH)])
    return figures(ranks(read(model, fresh)[1]))


def figures(rank: Tensor) -> dict[str, object]:
    """The shares of ranks 1 and up to 10, with their 95 % intervals."""
    row: dict[str, object] = {"names": len(rank)}
    for name, most in (("rank_1", 1), ("within_10", 10)):
        hits = int((rank <= most).sum())
        row[name] = {"value": hits / len(rank), "interval": wilson_interval(hits, len(rank))}
    return row


def nearest_is_own(drawn: Tensor, real: Tensor) -> dict[str, object]:
    """How often the real picture that is nearest to drawing i, in the judge's features, is the
    i-th."""
    hits = int((torch.cdist(drawn, real).argmin(1) == torch.arange(len(real))).sum())
    interval = wilson_interval(hits, len(real))
    return {"value": hits / len(real), "interval": interval, "by_chance": 1 / len(real)}


def judge(folder: str, run: Path, name: str, out: Path, options: dict[str, object]) -> None:
    """Draw every name once, the names held out of training, and the made-up ones; print what the
    judge says, and write sheets of pictures.
    """
    train_source, test_source = open_train_and_test(folder, size=SIZE)
    (image, names), (held_out, unseen) = read_pictures(train_source), read_pictures(test_source)
    reader, drawer = load(str(run), dtype="float32"), load(name, dtype="float32")
    if list(reader.card.classes) != names:
        raise SystemExit(f"{run} was trained on other names than those of {folder}")
    model = reader.model
    assert isinstance(model, Classifier)

    def draw(prompts: list[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_fast()):
            return draw_prompts(drawer.model, drawer.tokenizers, prompts, **options)  # type: ignore[arg-type]

    pictures, others = draw(names), draw(unseen)
    features, logits = read(model, to_images(pictures))
    rank = ranks(logits)
    real, real_unseen = read(model, image)[0], read(model, held_out)[0]
    drawn_unseen = read(model, to_images(others))[0]
    distance, index = nearest_neighbours(features, real)
    kernel = [kernel_distance(one, real_unseen) for one in (features, real)]
    result = {
        "drawn": figures(rank),
        "ceiling": ceiling(model, image),
        "copies": {
            "nearest_is_its_name": float((index == torch.arange(len(names))).float().mean()),
            **asdict(memorisation(distance, nearest_neighbours(real_unseen, real)[0])),
        },
        "kid_against_unseen_emoji": {"drawn": asdict(kernel[0]), "real": asdict(kernel[1])},
        "unseen_names": {
            "nearest_is_its_picture": nearest_is_own(drawn_unseen, real_unseen),
        },
    }
    made_up = [f"{colour} {thing}" for thing in THINGS for colour in COLOURS]
    made_up = [name for name in made_up if name not in {*names, *unseen}][:50]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "emoji.json", result)
    chosen = np.random.default_rng(0).choice(len(names), 100, replace=False)
    for title, some, words in (
        ("100 of the names it has learned", pictures[chosen], [names[i] for i in chosen]),
        ("names it has not seen", others, unseen),
        ("made-up names", draw(made_up), made_up),
    ):
        path = out / f"{title.replace(' ', '-')}.png"
        save_picture(path, contact_sheet(list(some), words, title))
    print(json.dumps(result))
    worst = rank.argsort(descending=True)[:20].tolist()
    print("farthest from their names:", ", ".join(f"{names[i]} ({int(rank[i])})" for i in worst))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "judge"):
        command = commands.add_parser(name)
        command.add_argument("data")
        command.add_argument("--run", type=Path, default=Path("runs/emoji-judge"))
        if name == "train":
            command.add_argument("--minutes", type=float, default=15.0)
            command.add_argument("--steps", type=int, default=1500)
        else:
            command.add_argument("--model", default="emoji")
            command.add_argument("--out", type=Path, default=Path("runs/emoji-judged"))
            command.add_argument("--guidance", type=float, default=None)
            command.add_argument("--sampler", default="")
            command.add_argument("--steps", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.command == "train":
        train(chosen.data, chosen.run, chosen.minutes, chosen.steps)
    else:
        more = {name: getattr(chosen, name) for name in ("guidance", "sampler", "steps")}
        judge(chosen.data, chosen.run, chosen.model, chosen.out, more)
