"""Four ways to name a class that no picture showed: Socher 2013, DeViSE, CLIP, SigLIP.

CIFAR-10 with two classes held out, the pairs of Socher et al. and cat-dog. Whatever could favour a
method is the same for all: one small network trained on the eight seen classes gives the features;
the word vectors of Socher et al. (Huang et al. 2012, 50 numbers) are frozen, and CLIP and SigLIP
read them through a bag-of-words tower; each method's threshold keeps 90 % of held-out pictures of
seen classes, so nothing of an unseen class is used before the end. Heads are trained with several
seeds on one network a pair.

    TRIPTYCH_DATA=FOLDER python benchmarks/unseen_classes.py --out FOLDER [--epochs 5] [--seeds 3]
    python benchmarks/unseen_classes.py --out FOLDER --again   # table and plot of all JSON there

Dimensions: N pictures, D features, E numbers of a word vector, K = 10 classes, S = 8 seen ones.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import measure
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.contrastive.losses import sigmoid_loss, softmax_loss
from triptych.systems.classifier.model import Classifier, ClassifierConfig
from triptych.systems.classifier.model import objective as classify
from triptych.systems.word_space.model import WordSpace, WordSpaceConfig, rank_loss, squared_error
from triptych.systems.word_space.report import (
    Answers,
    answer_by_scores,
    choose_threshold,
    compute_trade_off,
    evaluate_answers,
)
from triptych.systems.word_space.word_vectors import read_word_vectors

NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PAIRS = {  # the five pairs of Socher et al., and the one that words cannot tell apart
    "cat-truck": (3, 9), "cat-dog": (3, 5), "cat-frog": (3, 6), "plane-auto": (0, 1),
    "auto-deer": (1, 4), "deer-ship": (4, 8),
}  # fmt: skip
METHODS = ("Socher, Gaussian", "Socher, outlier", "DeViSE", "DeViSE, tuned", "CLIP", "SigLIP")
CALIBRATION = 250  # training pictures of each seen class that set thresholds and train nothing
KEPT = 0.9  # share of them that stays seen
JOINT = 64  # width of CLIP's and SigLIP's joint space
AREAS = ("area", "area_chance")
POINT = ("all_seen", "all_unseen")
BATCH, STEPS = 256, 1000
TUNING = 80  # steps of 128 pictures in which DeViSE's loss moves the network too


Row = dict[str, Any]  # a report with its pair, seed, method and curve


class Data(NamedTuple):
    """One split of the classes; labels index all ten."""

    train: Tensor  # uint8 (N, 3, 32, 32), seen classes only
    label: Tensor
    calibration: Tensor
    calibration_label: Tensor
    test: Tensor  # test pictures of seen classes, and every picture of the unseen ones
    truth: Tensor


class Features(NamedTuple):
    """What the network makes of each set; the training pictures also mirrored."""

    train: Tensor
    mirrored: Tensor
    calibration: Tensor
    test: Tensor
    mean: Tensor  # of the training pictures: what was subtracted, and what it was divided by
    deviation: Tensor


def cifar10(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test pictures, uint8 (N, 3, 32, 32), with labels, from mosaics of 25 x 40."""

    def tiles(path: Path) -> np.ndarray:
        grid = np.asarray(Image.open(path).convert("RGB")).reshape(25, 32, 40, 32, 3)
        return grid.transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)

    found = []
    for split in ("train", "test"):
        shards = sorted(folder.glob(f"{split}-*.webp"))
        found.append(torch.from_numpy(np.concatenate([tiles(path) for path in shards])))
        found.append(torch.from_numpy(np.load(folder / f"{split}_labels.npy").astype(np.int64)))
    return found[0], found[1], found[2], found[3]


def split_classes(pictures: tuple[Tensor, ...], unseen: tuple[int, ...]) -> Data:
    """Training and calibration pictures of seen classes; the test has more unseen ones than the
    test set alone, since no training picture of an unseen class was trained on.
    """
    image, label, test, truth = pictures
    calibrates = torch.zeros(len(label), dtype=torch.bool)
    for k in range(10):
        calibrates[(label == k).nonzero().flatten()[-CALIBRATION:]] = True
    is_unseen = torch.isin(label, torch.tensor(unseen))
    train, held = ~is_unseen & ~calibrates, ~is_unseen & calibrates
    return Data(
        image[train], label[train], image[held], label[held],
        torch.cat([test, image[is_unseen]]), torch.cat([truth, label[is_unseen]]),
    )  # fmt: skip


def as_input(image: Tensor) -> Tensor:
    return image.float().div_(127.5).sub_(1)


def trained_network(data: Data, seen: list[int], epochs: int, seed: int) -> Classifier:
    """A small ResNet on the seen classes: mirrored and shifted pictures, AdamW, one cycle."""
    torch.manual_seed(seed)
    network = Classifier(ClassifierConfig(32, 32, 3, (len(seen),), (32, 64, 128)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=8e-3, weight_decay=5e-2, fused=True)
    per_epoch = len(data.train) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 8e-3, total_steps=max(2, epochs * per_epoch), pct_start=0.2
    )
    place = torch.full((10,), -1)
    place[seen] = torch.arange(len(seen))
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(data.train))[: per_epoch * 128].split(128):
            image = mirrored_by_chance(as_input(data.train[rows]))
            loss = classify(network, image, place[data.label[rows]], shift=2)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def mirrored_by_chance(image: Tensor) -> Tensor:
    return torch.where(torch.rand(len(image), 1, 1, 1) < 0.5, image.flip(3), image)


@torch.no_grad()
def read(network: Classifier, image: Tensor) -> Tensor:
    """Features of pictures as bytes."""
    return torch.cat([network.features(as_input(chunk)) for chunk in image.split(500)])


def features_of(network: Classifier, data: Data) -> Features:
    """Standardised by the training pictures' mean and deviation, the same for every method."""
    train = read(network, data.train)
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    others = (data.train.flip(3), data.calibration, data.test)
    sets = (train, *(read(network, image) for image in others))
    return Features(*((features - mean) / deviation for features in sets), mean, deviation)


def descend(parameters: list[nn.Parameter], loss: Callable[[Tensor], Tensor], count: int) -> None:
    """AdamW on random batches of row numbers; the rate falls to zero as a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(torch.randint(count, (BATCH,))).backward()
        optimizer.step()
        schedule.step()


def either(features: Features, rows: Tensor) -> Tensor:
    """Features of these training pictures, each mirrored by chance."""
    coin = torch.rand(len(rows), 1) < 0.5
    return torch.where(coin, features.train[rows], features.mirrored[rows])


def word_space(
    method: str, network: Classifier, words: Tensor, seen: list[int], data: Data, features: Features
) -> WordSpace:
    """Socher's or DeViSE's map, trained on the features of a network that stays as it is."""
    points = len(data.calibration)
    settings = WordSpaceConfig(
        network.config, tuple(seen), 10, words.shape[1], method, points=points
    )  # type: ignore[arg-type]
    model = WordSpace(settings)
    model.network.load_state_dict(network.state_dict())
    model.set_words(words)
    of_seen = model.words[seen]
    place = torch.full((10,), -1)
    place[seen] = torch.arange(len(seen))
    objective = squared_error if method == "socher" else rank_loss

    def loss(rows: Tensor) -> Tensor:
        return (
            objective(model.map(either(features, rows)), place[data.label[rows]], of_seen) / BATCH
        )

    descend(list(model.map.parameters()), loss, len(data.label))
    return model.eval().requires_grad_(False)


def socher(
    network: Classifier, words: Tensor, seen: list[int], data: Data, features: Features
) -> dict[str, tuple[Answers, Tensor]]:
    """Answers on the test, and novelty of the calibration pictures, by both detectors."""
    model = word_space("socher", network, words, seen, data, features)
    calibration, test = model.map(features.calibration), model.map(features.test)
    model.fit_novelty(calibration, data.calibration_label)
    among_unseen = answer_by_scores(model.scores(test), seen).among_unseen
    (logits,) = network.logits(features.test * features.deviation + features.mean)
    among_seen = torch.tensor(seen)[logits.argmax(1)]
    found = {}
    for name, detector in (("Socher, Gaussian", "gaussian"), ("Socher, outlier", "outlier")):
        novelty = model.novelty(test, detector)  # type: ignore[arg-type]
        own = model.novelty(calibration, detector)  # type: ignore[arg-type]
        found[name] = (Answers(among_seen, among_unseen, novelty), own)
    return found


def devise(
    network: Classifier, words: Tensor, seen: list[int], data: Data, features: Features
) -> dict[str, tuple[Answers, Tensor]]:
    """The linear map alone, and then with the network."""
    model = word_space("devise", network, words, seen, data, features)

    def scored(of_calibration: Tensor, of_test: Tensor) -> tuple[Answers, Tensor]:
        novelty = answer_by_scores(model.scores(model.map(of_calibration)), seen).novelty
        return answer_by_scores(model.scores(model.map(of_test)), seen), novelty

    found = {"DeViSE": scored(features.calibration, features.test)}
    model.network.requires_grad_(True).train()
    model.map.requires_grad_(True)
    place = torch.full((10,), -1)
    place[seen] = torch.arange(len(seen))
    moving = [*model.network.parameters(), *model.map.parameters()]
    optimizer = torch.optim.AdamW(moving, lr=5e-4, weight_decay=1e-2, fused=True)
    rows = torch.randperm(len(data.train)).split(128)[:TUNING]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(rows))
    for batch in rows:
        image = mirrored_by_chance(as_input(data.train[batch]))
        mapped = model.map((model.network.features(image) - features.mean) / features.deviation)
        loss = rank_loss(mapped, place[data.label[batch]], model.words[seen]) / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    tuned = [
        (read(model.network, image) - features.mean) / features.deviation
        for image in (data.calibration, data.test)
    ]
    found["DeViSE, tuned"] = scored(tuned[0], tuned[1])
    return found


def contrastive(
    kind: str, words: Tensor, seen: list[int], data: Data, features: Features
) -> tuple[Answers, Tensor]:
    """CLIP's or SigLIP's towers: linear maps of the features and of the frozen word vector.

    The text tower is the bag of words of a single word. Pictures of one class in a batch share
    their text, so they are positives of one another's texts (`groups`).
    """
    image_tower = nn.Linear(features.train.shape[1], JOINT, bias=False)
    text_tower = nn.Linear(words.shape[1], JOINT, bias=False)
    scale = nn.Parameter(torch.tensor(1 / 0.07 if kind == "CLIP" else 10.0).log())
    bias = nn.Parameter(torch.tensor(-10.0))
    words = F.normalize(words)

    def loss(rows: Tensor) -> Tensor:
        label = data.label[rows]
        image = F.normalize(image_tower(either(features, rows)))
        text = F.normalize(text_tower(words[label]))
        if kind == "CLIP":
            return softmax_loss(image, text, scale, groups=label)
        return sigmoid_loss(image, text, scale, bias, groups=label)

    towers = [*image_tower.parameters(), *text_tower.parameters()]
    descend([*towers, scale, *([bias] if kind == "SigLIP" else [])], loss, len(data.label))

    @torch.inference_mode()
    def scores(of: Tensor) -> Tensor:
        return F.normalize(image_tower(of)) @ F.normalize(text_tower(words)).T

    own = answer_by_scores(scores(features.calibration), seen).novelty
    return answer_by_scores(scores(features.test), seen), own


def run_pair(
    pictures: tuple[Tensor, ...], words: Tensor, name: str, epochs: int, seeds: int
) -> list[Row]:
    """One row a method and seed."""
    unseen = PAIRS[name]
    seen = [k for k in range(10) if k not in unseen]
    data = split_classes(pictures, unseen)
    began = time.monotonic()
    network = trained_network(data, seen, epochs, seed=0)
    features = features_of(network, data)
    print(f"{name}: network {time.monotonic() - began:.0f} s", flush=True)
    rows: list[Row] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found = socher(network, words, seen, data, features)
        found |= devise(network, words, seen, data, features)
        for kind in ("CLIP", "SigLIP"):
            found[kind] = contrastive(kind, words, seen, data, features)
        for method, (given, calibration) in found.items():
            threshold = choose_threshold(calibration, KEPT)
            numbers = dataclasses.asdict(evaluate_answers(given, data.truth, seen, 10, threshold))
            curve = compute_trade_off(given, data.truth, seen, 10)
            grid = torch.linspace(0, len(curve.seen) - 1, 101).round().long()
            rows.append(
                {"pair": name, "seed": seed, "method": method} | numbers
                | {"curve": [curve.seen[grid].tolist(), curve.unseen[grid].tolist()]}
            )  # fmt: skip
    print(f"{name}: {time.monotonic() - began:.0f} s in all", flush=True)
    return rows


def value(row: Row, key: str) -> float:
    """A number of a report, or the share of one of its accuracies."""
    found = row[key]
    return float(found["value"] if isinstance(found, dict) else found)


def table(rows: list[Row], pairs: list[str]) -> str:
    """Markdown, per cent: the mean over seeds and, in brackets, the least and the most."""

    def cell(found: list[Row], key: str) -> str:
        values = [100 * value(row, key) for row in found]
        spread = f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    def of_ten(found: list[Row]) -> str:  # as in CIFAR-10: eight seen pictures to two unseen ones
        shares = [80 * value(r, "all_seen") + 20 * value(r, "all_unseen") for r in found]
        return f"{statistics.mean(shares):.1f}"

    columns = ("seen", "unseen", "all_seen", "all_unseen", "harmonic", "detection")
    heads = (
        "held out", "method", "seen of 8", "unseen of 2", "seen of 10", "unseen of 10", "harmonic",
        "detection", "all of 10", "area", "area by chance",
    )  # fmt: skip
    lines = [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        "| | chance | 12.5 | 50 | 10 | 10 | 10 | 50 | 10 | | |",
    ]
    for pair in pairs:
        for method in METHODS:
            found = [r for r in rows if r["pair"] == pair and r["method"] == method]
            if found:
                cells = [cell(found, key) for key in columns] + [of_ten(found)]
                cells += [f"{statistics.mean(value(r, k) for r in found):.2f}" for k in AREAS]
                lines.append(f"| {pair} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], pairs: list[str], path: Path) -> None:
    """A panel a pair: accuracy on unseen over seen classes; the curve is that of the first seed."""
    import matplotlib
    from matplotlib.figure import Figure

    colours = ("#3b6ea5", "#7ba7d1", "#c9a66b", "#8a6d3b", "#c0504d", "#4f8a5b")
    across = min(3, len(pairs))
    down = -(-len(pairs) // across)
    style: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure: Any = Figure(figsize=(3.1 * across, 2.7 * down + 0.5), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, pair in zip(panels, pairs, strict=False):
            for method, colour in zip(METHODS, colours, strict=True):
                found = [r for r in rows if r["pair"] == pair and r["method"] == method]
                if found:
                    axes.plot(*found[0]["curve"], color=colour, lw=1.3, label=method)
                    at = [statistics.mean(value(r, k) for r in found) for k in POINT]
                    axes.plot(*([v] for v in at), "o", color=colour, ms=3.5)
            first = next(r for r in rows if r["pair"] == pair)
            axes.plot([0, value(first, "seen")], [0.5, 0], ls=":", color="#9aa0a6", lw=1)
            axes.set(title=f"{pair} held out", xlim=(0, 1), ylim=(0, 1))
        for axes in panels[len(pairs) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
        figure.supxlabel("accuracy on seen classes, among ten")
        figure.supylabel("accuracy on unseen classes, among ten")
        figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/unseen"))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.again:
        found = [json.loads(path.read_text())["rows"] for path in sorted(given.out.glob("*.json"))]
        write([row for rows in found for row in rows], given.out)
        return
    folder = Path(os.environ["TRIPTYCH_DATA"])
    pictures = cifar10(folder / "cifar10")
    file = folder / "word_vectors" / "socher2013" / "cifar10_huang2012_50d.json"
    words = torch.from_numpy(read_word_vectors(file).of(NAMES))
    rows: list[Row] = []
    for pair in given.pairs:
        began, cpu = time.monotonic(), time.process_time()
        rows += run_pair(pictures, words, pair, given.epochs, given.seeds)
        setting = measure.machine() | {
            "epochs": given.epochs, "seeds": given.seeds, "kept": KEPT,
            "pair_seconds": round(time.monotonic() - began),
            "pair_cpu_seconds": round(time.process_time() - cpu),
        }  # fmt: skip
        (given.out / "unseen.json").write_text(json.dumps({"setting": setting, "rows": rows}))
        write(rows, given.out)


def write(rows: list[Row], out: Path) -> None:
    """`table.md` and `unseen.png` of what is there."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    (out / "table.md").write_text(table(rows, pairs) + "\n")
    draw(rows, pairs, out / "unseen.png")
    print(table(rows, pairs), flush=True)


if __name__ == "__main__":
    main()
