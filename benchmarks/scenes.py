"""The built-in world and its reader: their speed, and how exact the reader is.

python benchmarks/scenes.py                        JSON lines: speed, accuracy, robustness, fakes
python benchmarks/scenes.py --pictures 500         the same with fewer pictures (5,000)
python benchmarks/scenes.py --calibrate            quantiles of true objects' distances by side
python benchmarks/scenes.py --learn 180            what a small network learns in 180 CPU seconds
python benchmarks/scenes.py --sheet scenes.png     a labelled sheet of the world
"""

import argparse
import io
import json
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from triptych.data.scene_source import SceneSource
from triptych.scenes.captions import ASPECTS, Claim, altered, write
from triptych.scenes.descriptions import captions, choices, claims, fits, relation
from triptych.scenes.drawing import draw_all
from triptych.scenes.judge import Share, agreement, satisfies
from triptych.scenes.reader import DISTANCE, READER_VERSION, Reading, match_regions, read
from triptych.scenes.scene import (
    COLOURS,
    GROUND_COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTURES,
    Ground,
    GroundColour,
    Scene,
    Thing,
)
from triptych.scenes.world import SPLITS, WORLD_VERSION, Split, scene, scenes
from triptych.systems.classifier.model import Classifier, ClassifierConfig, objective

SEED, CALIBRATED = 5, 1000  # the test uses other scenes than the calibration


def say(**figures: Any) -> None:
    print(json.dumps({"world": WORLD_VERSION, "reader": READER_VERSION, **figures}), flush=True)


def shown(share: Share) -> dict[str, Any]:
    return {
        "share": round(share.value, 5),
        "of": share.of,
        "interval": [round(x, 5) for x in share.interval],
    }


def batches(count: int, seed: int, side: int) -> Iterator[tuple[Scene, np.ndarray]]:
    for start in range(0, count, 64):
        some = scenes(seed, range(start, min(count, start + 64)), "test")
        yield from zip(some, draw_all(some, side), strict=True)


def speed() -> None:
    """CPU seconds of this process, so that what else runs here counts less; best of five."""
    source, best = SceneSource(), 0.0
    source.read(range(64))
    for turn in range(5):
        start = time.process_time()
        for batch in range(16):
            source.read(range((turn * 16 + batch) * 64, (turn * 16 + batch + 1) * 64))
        best = max(best, 1024 / (time.process_time() - start))
    say(
        what="pictures with captions per second and core, 64 x 64, batches of 64", value=round(best)
    )
    pictures = [picture for _, picture in batches(128, SEED, 64)]
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for picture in pictures:
            read(picture)
        best = max(best, len(pictures) / (time.process_time() - start))
    say(what="pictures read per second and core, 64 x 64", value=round(best), **measure.machine())


def wrong(scene: Scene, reading: Reading) -> set[str]:
    """Which attributes were read wrong: objects are paired by place, not by what they look like."""
    found = set()
    if len(reading.things) != len(scene.things) or reading.unread:
        found.add("count")
    if (reading.ground, reading.texture) != (scene.ground.colour, scene.ground.texture):
        found.add("ground")
    for thing in scene.things:
        near = min(
            reading.things, default=None, key=lambda t: abs(t.x - thing.x) + abs(t.y - thing.y)
        )
        for name in ("shape", "colour", "size", "pattern"):
            if near is None or getattr(near, name) != getattr(thing, name):
                found.add(name)
        if near is None or abs(near.x - thing.x) + abs(near.y - thing.y) > 0.02:
            found.add("place")
    return found


def proof(count: int, side: int) -> None:
    whole, names = 0, Counter[str]()
    for picture_scene, picture in batches(count, SEED, side):
        mistakes = wrong(picture_scene, read(picture))
        whole += not mistakes
        names.update(mistakes)
    say(what=f"true scenes read right as a whole, {side} x {side}", **shown(Share(whole, count)))
    for name in ("count", "shape", "colour", "size", "pattern", "ground", "place"):
        share = shown(Share(count - names[name], count))
        say(what=f"scenes with every {name} read right, {side} x {side}", **share)


def true_of(claim: Claim, scene: Scene) -> bool:
    """Plain truth about a scene; a relation is true even where it hardly dominates."""
    if claim.ground not in (None, scene.ground.colour):
        return False
    if claim.texture not in (None, scene.ground.texture):
        return False
    return len(claim.things) == len(scene.things) and any(
        all(fits(d, t) for d, t in zip(claim.things, order, strict=True))
        and (claim.relation is None or relation(order[0], order[1], 1.0) == claim.relation)
        for order in permutations(scene.things)
    )


def rejection(count: int) -> None:
    accepted, rejected = [0, 0], {aspect: [0, 0] for aspect in ASPECTS}
    for picture_scene, picture in batches(count, SEED, 64):
        reading, pick = read(picture), choices(picture_scene.key, 99)
        for caption in captions(picture_scene):
            accepted[0] += satisfies(reading, caption).whole
            accepted[1] += 1
        for aspect in ASPECTS:
            for claim in claims(picture_scene):
                changed = altered(claim, aspect, pick)
                if changed is None or len(changed.things) > 4 or true_of(changed, picture_scene):
                    continue
                rejected[aspect][0] += not satisfies(reading, write(changed, pick)).whole
                rejected[aspect][1] += 1
    say(what="true captions accepted", **shown(Share(*accepted)))
    for aspect, (right, of) in rejected.items():
        say(what=f"false captions rejected, {aspect} changed", **shown(Share(right, of)))
    total = Share(*(sum(pair[k] for pair in rejected.values()) for k in (0, 1)))
    say(what="false captions rejected, all", **shown(total))


def jpeg(picture: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file))


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def tolerance(count: int) -> None:
    rng = np.random.default_rng(0)

    def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
        noise = rng.normal(0, sigma, picture.shape)
        return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)

    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {"none": lambda p: p}
    for sigma in (0.3, 0.5, 0.7, 1.0):
        changes[f"blur, sigma {sigma} pixels"] = lambda p, s=sigma: blurred(p, s)  # type: ignore[misc]
    for level in (2, 4, 8, 12):
        changes[f"noise, sigma {level} of 255"] = lambda p, s=level: noisy(p, s)  # type: ignore[misc]
    for quality in (95, 90, 75):
        changes[f"JPEG {quality}, 4:4:4"] = lambda p, q=quality: jpeg(p, q, 0)  # type: ignore[misc]
        changes[f"JPEG {quality}, 4:2:0"] = lambda p, q=quality: jpeg(p, q, 2)  # type: ignore[misc]
    for name, change in changes.items():
        whole, objects, seen, mistaken = 0, 0, 0, 0
        for picture_scene, picture in batches(count, SEED + 1, 64):
            reading = read(change(picture))
            mistakes = wrong(picture_scene, reading)
            whole += not mistakes
            objects += len(picture_scene.things)
            seen += len(reading.things)
            mistaken += not reading.unread and bool(mistakes)
        say(
            what=f"tolerance: {name}",
            **shown(Share(whole, count)),
            objects_read=round(seen / objects, 4),
            all_read_but_wrong=mistaken,
        )


def fakes(count: int) -> None:
    """What is no object of the world; one object a picture, drawn on a true ground."""
    side = 64
    down, across = np.mgrid[:side, :side] + 0.5
    accepted, tried = Counter[str](), Counter[str]()
    for index in range(count):
        whole = scene(SEED + 2, index, "test", "one")
        (thing,) = whole.things
        picture, empty = draw_all([whole, Scene((), whole.ground, whole.style, whole.key)], side)
        x, y, radius = thing.x * side, thing.y * side, thing.radius * side
        colour = picture[int(y), int(x)] if thing.shape == "circle" else np.array([222, 45, 45])
        soft = np.exp(-((across - x) ** 2 + (down - y) ** 2) / (0.8 * radius) ** 2)[..., None]
        smear = np.mean([np.roll(picture, k, axis=1) for k in range(-3, 4)], axis=0)
        half = np.where((across < x)[..., None], picture, empty)
        turned = np.asarray(
            Image.fromarray(picture).rotate(25, Image.Resampling.BICUBIC, center=(x, y))
        )
        inside = np.hypot(across - x, (down - y) / 0.7) < radius * 0.95
        ellipse = np.where(inside[..., None], colour, empty)
        made = {
            "blob": empty + soft * (colour - empty.astype(float)),
            "smear": smear,
            "half": half,
            "ellipse": ellipse,
            "wrong colour": np.where(np.ptp(picture, axis=-1, keepdims=True) > 60,
                                     255 - picture, picture),
        }  # fmt: skip
        if thing.shape not in ("circle", "ring") and thing.pattern == "plain":
            patched = np.where(
                (np.hypot(across - x, down - y) < radius * 1.05)[..., None], turned, empty
            )
            made["rotated"] = patched
        for name, fake in made.items():
            accepted[name] += len(read(np.clip(fake, 0, 255).astype(np.uint8)).things) > 0
            tried[name] += 1
    for name, of in tried.items():
        say(what=f"fake objects not read, {name}", **shown(Share(of - accepted[name], of)))


def calibrate(count: int) -> None:
    """Distances of true objects, whatever the threshold: what `DISTANCE` is rounded from."""
    for side, value in DISTANCE:
        distances = [
            match[1]
            for _, picture in batches(count, CALIBRATED, side)
            for match in match_regions(picture)[0]
            if match is not None
        ]
        at = {str(q): round(float(np.quantile(distances, q)), 4) for q in (0.5, 0.99, 0.999)}
        say(what=f"distance of true objects, {side} x {side}", objects=len(distances), quantiles=at,
            threshold=value)  # fmt: skip


def learn(seconds: float) -> None:
    """A small ResNet on single objects at 32 x 32: what it reads, and whether the reader agrees.

    The time is CPU seconds, making the pictures included.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    groups = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "pattern": PATTERNS,
              "ground": GROUND_COLOURS, "texture": TEXTURES}  # fmt: skip
    model = Classifier(ClassifierConfig(32, 32, 3, tuple(len(names) for names in groups.values())))

    def labelled(split: Split, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        some = scenes(SEED, range(start, start + count), split, "one")
        pictures = torch.from_numpy(draw_all(some, 32)).permute(0, 3, 1, 2)
        rows = [
            (t.shape, t.colour, t.size, t.pattern, s.ground.colour, s.ground.texture)
            for s in some for t in s.things
        ]  # fmt: skip
        lists = list(groups.values())
        indices = [[n.index(v) for n, v in zip(lists, row, strict=True)] for row in rows]  # type: ignore[arg-type]
        return pictures, torch.tensor(indices)

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    start, step, spent = time.process_time(), 0, 0.0  # of one thread, whatever else runs here
    while (spent := time.process_time() - start) < seconds:
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 50) * (1 - spent / seconds)
        picture, label = labelled("train", step * 128, 128)
        loss = objective(model, picture / 127.5 - 1, label, smoothing=0.0)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        step += 1
    model.eval()
    picture, label = labelled("test", 0, 4000)
    with torch.no_grad():
        answers = [a.argmax(1) for a in model(picture / 127.5 - 1)]
    for (name, _), answer, truth in zip(groups.items(), answers, label.T, strict=True):
        share = Share(int((answer == truth).sum()), len(truth))
        say(what=f"a small network reads {name}, one object, 32 x 32", cpu_seconds=seconds,
            steps=step,
            **shown(share), **measure.machine())  # fmt: skip
    readings = [read(p) for p in picture[:1000].numpy()]
    witness = {name: a[:1000].numpy() for name, a in zip(groups, answers, strict=True)}
    for name, share in agreement(readings, witness, groups).items():
        say(what=f"the reader and that network agree, {name}", **shown(share))


def sheet(path: Path) -> None:
    """Some scenes of every split with one of their captions, and every shape and pattern."""
    tile, columns, text = 180, 5, 100
    font = ImageFont.load_default(12)
    rows: list[list[tuple[Scene, str]]] = []
    for split, indices in zip(
        SPLITS, ((2, 3, 9, 12, 21), (5, 8, 11), (4, 6), (7, 10, 13)), strict=True
    ):
        chosen = [scene(1, i, split) for i in indices]
        rows.append(
            [(s, f"{split}: {captions(s)[i % len(captions(s))]}") for i, s in enumerate(chosen)]
        )
    flat = [item for row in rows for item in row]
    grounds: tuple[GroundColour, GroundColour] = ("white", "black")
    kinds = []
    for k, ground in enumerate(grounds):
        things = tuple(
            Thing(SHAPES[4 * k + n], COLOURS[4 * k + n], "small", PATTERNS[n % 3], x, y, 0.17)
            for n, (x, y) in enumerate(product((0.26, 0.74), repeat=2))
        )
        kinds.append(Scene(things, Ground(ground)))
    flat += [(s, "eight shapes, eight colours; plain, striped, dotted") for s in kinds]
    height = -(-len(flat) // columns)
    page = Image.new("RGB", (columns * (tile + 8) + 8, height * (tile + text) + 8), "white")
    pen = ImageDraw.Draw(page)
    for n, (drawn, caption) in enumerate(flat):
        left, top = 8 + n % columns * (tile + 8), 8 + n // columns * (tile + text)
        page.paste(Image.fromarray(draw_all([drawn], tile)[0]), (left, top))
        lines = "\n".join(textwrap.wrap(caption, 31))
        pen.text((left, top + tile + 3), lines, fill="black", font=font, spacing=2)
    page.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--learn", type=float, metavar="SECONDS")
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    if given.sheet:
        return sheet(given.sheet)
    if given.learn:
        return learn(given.learn)
    if given.calibrate:
        return calibrate(given.pictures)
    speed()
    proof(given.pictures, 64)
    proof(max(1, given.pictures // 10), 32)
    proof(max(1, given.pictures // 10), 128)
    rejection(max(1, given.pictures // 5))
    tolerance(max(1, given.pictures // 20))
    fakes(max(1, given.pictures // 10))


if __name__ == "__main__":
    main()
