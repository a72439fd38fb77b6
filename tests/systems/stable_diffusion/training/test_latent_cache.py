"""The cache of latents and text states: the same training as without, and never a stale file."""

import fcntl
import gc
import json
import os
import shutil
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.systems.autoencoder.coder import saved_autoencoder
from tests.systems.stable_diffusion.tiny_stable_diffusion import config, model, saved, tokenizer
from tests.train.test_loop import same
from triptych import runtime
from triptych.data.disk.table import first_pictures
from triptych.data.order.batches import batches
from triptych.data.order.buckets import assign_buckets, bucket_batches, bucket_shapes
from triptych.data.sources import open_source
from triptych.requests import Training, TrainTextToImage
from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.systems.autoencoder.tiny_model import TinyAutoencoderConfig
from triptych.systems.stable_diffusion.draw_prompts import encode_texts
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.training import cached_latents, fill_cache
from triptych.systems.stable_diffusion.training.encode_latents import batch_latents
from triptych.systems.stable_diffusion.training.frozen import separate_unet
from triptych.systems.stable_diffusion.training.latent_cache import LatentCache
from triptych.train.loop import fit
from triptych.training import build
from triptych.weights.files.weight_file import read_safetensors

CPU = torch.device("cpu")
CODER = AutoencoderConfig(widths=(8, 8), blocks=1, groups=4, scale=0.5, shift=0.2)


def write(folder: Path, count: int = 11, classes: bool = False) -> Path:
    """Pictures of two shapes, with one or two captions each, or in folders of two classes."""
    draw = np.random.default_rng(0)
    for split, many in (("train", count), ("test", 2)):
        for number in range(many):
            into = folder / split / ("red_cat", "dog")[number % 2] if classes else folder / split
            into.mkdir(parents=True, exist_ok=True)
            height, width = (32, 32) if number % 3 else (24, 48)
            pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(into / f"{number:02d}.png")
            if not classes:
                lines = ["a red cat", f"a blue dog {number}"][: 1 + number % 2]
                (into / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures")


@pytest.fixture
def small() -> StableDiffusion:
    return model(config(autoencoder=CODER))


def cache_of(folder: Path, made: StableDiffusion, root: Path, **more) -> LatentCache:
    source = more.pop("source", None) or open_source(str(folder), size=32)
    return LatentCache(root, source, made, [tokenizer()] * len(made.text), **more)


def files(cache: LatentCache) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in cache.folder.glob("*.safe*")}


def test_latents_and_states_are_those_of_the_model(folder, small, tmp_path) -> None:
    """The deviation too: a draw with given noise is the autoencoder's own draw."""
    cache = cache_of(folder, small, tmp_path / "cache")
    source, found = cache.files.source, cache.open_latents()
    batch = next(batches(found, 11, seed=1))
    plain = next(batches(source, 11, seed=1))
    assert batch["caption"] == plain["caption"] and "image" not in batch
    with torch.inference_mode():
        noise = torch.randn(batch["mean"].shape, generator=runtime.generator(0))
        expected = small.autoencoder.encode(plain["image"], noise)
        torch.testing.assert_close(batch["mean"] + batch["deviation"] * noise, expected)
        said = [*plain["caption"], ""]
        for name, value in encode_texts(small, [tokenizer()], said).items():
            torch.testing.assert_close(cache.encode_texts(said)[name], value)
    assert (batch["deviation"] > 0).all()
    for visit in (
        lambda: batch_latents(small, plain, CPU),
        lambda: batch_latents(small, batch, CPU),
    ):
        torch.manual_seed(7)
        noise = torch.randn_like(batch["mean"])
        torch.manual_seed(7)
        with torch.inference_mode():
            torch.testing.assert_close(visit(), small.autoencoder.encode(plain["image"], noise))
    with torch.inference_mode():
        likeliest = small.autoencoder.encode(plain["image"])
    torch.testing.assert_close(batch_latents(small, plain, CPU, likeliest=True), likeliest)
    torch.testing.assert_close(batch_latents(small, batch, CPU, likeliest=True), likeliest)


def test_worker_processes_read_the_same(folder, small, tmp_path) -> None:
    found = cache_of(folder, small, tmp_path).open_latents()
    alone, workers = (batches(found, 4, seed=2, workers=many) for many in (0, 2))
    for _ in range(4):
        left, right = next(alone), next(workers)
        assert left["caption"] == right["caption"]
        assert torch.equal(left["mean"], right["mean"])


def test_a_second_process_waits_for_the_first(folder, small, tmp_path) -> None:
    """The lock is the file's, so that another handle of this process is as good as another's."""
    cache = cache_of(folder, small, tmp_path)
    cache.folder.mkdir(parents=True)
    reports = []
    with (cache.folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        work = threading.Thread(target=lambda: reports.extend(cache.fill()), daemon=True)
        work.start()
        work.join(0.3)
        assert work.is_alive() and not reports
    work.join(20)
    assert "waited for another process" in reports[0].what and reports[-1].what == "texts"


@pytest.mark.parametrize(
    "form",
    [
        *("buckets", "joint"),
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("squares", "tiny autoencoder", "classes")
        ),
    ],
)
def test_training_from_the_cache_has_the_same_losses(form: str, tmp_path: Path) -> None:
    """Equal seeds draw equal noise, so that only the rounding of other batch sizes is between."""
    data = write(tmp_path / "pictures", classes=form == "classes")
    training = Training(
        data=str(data), size=32, steps=6, batch_size=4, device="cpu", log_every=1, save_every=3,
        sample_every=0, seed=4,
    )  # fmt: skip
    tiny = TinyAutoencoderConfig() if form == "tiny autoencoder" else None
    settings = config(autoencoder=None if tiny else CODER, tiny=tiny)
    sampling = replace(settings.sampling, height=32, width=32, steps=1)
    start = saved(tmp_path / "model", replace(settings, sampling=sampling))
    request = TrainTextToImage(
        training, init=str(start), drop=0.3, templates="simple", buckets=form == "buckets",
    )  # fmt: skip
    if form == "joint":
        coder = tmp_path / "autoencoder"
        saved_autoencoder(coder, CODER)
        request = TrainTextToImage(
            training, autoencoder=str(coder), text_width=16, text_layers=1, text_heads=2,
            vocabulary=530, length=12, widths=(16, 16), transformers=(0, 1), head_width=8, groups=4,
        )  # fmt: skip
    losses = []
    for cache in ("", str(tmp_path / "cache")):
        made = replace(request, cache=cache)
        run = tmp_path / f"run{bool(cache)}"
        losses.append([r.terms["loss"] for r in fit(build(made), training, run)])
    assert len(set(losses[0])) == 6
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)


def test_a_resumed_run_from_the_cache_is_exact(folder, tmp_path) -> None:
    training = Training(
        data=str(folder), size=32, steps=6, batch_size=3, device="cpu", save_every=3, log_every=2,
        sample_every=0, ema_halflife=3,
    )  # fmt: skip
    settings = config(autoencoder=CODER)
    sampling = replace(settings.sampling, height=32, width=32, steps=1)
    start = saved(tmp_path / "model", replace(settings, sampling=sampling))
    request = TrainTextToImage(
        training, init=str(start), buckets=True, lora=2, cache=str(tmp_path / "cache")
    )
    for _ in fit(build(request), training, tmp_path / "whole"):
        pass
    steps = fit(build(request), training, tmp_path / "broken")
    next(report for report in steps if report.step == 3)
    steps.close()
    assert [r.step for r in fit(build(request), training, tmp_path / "broken")] == [4, 5, 6]
    same(tmp_path / "whole", tmp_path / "broken")


def test_killed_at_any_moment_it_goes_on_and_ends_alike(folder, small, tmp_path, monkeypatch):
    """Stopped after every single report; a torn file of another life is written again."""
    monkeypatch.setattr(cached_latents, "SHARD", 3)
    monkeypatch.setattr(fill_cache, "TEXTS", 2)
    monkeypatch.setattr(fill_cache, "MOST", 2)
    whole = cache_of(folder, small, tmp_path / "whole")
    reports = list(whole.fill())
    assert reports[-1].done == reports[-1].total
    expected = {name: data for name, (_, data) in files(whole).items()}
    assert len(expected) > 6
    for life in range(len(reports)):
        cache = cache_of(folder, small, tmp_path / "broken")
        work = cache.fill()
        for _ in range(4):
            next(work, None)
        work.close()
        if life == 2:
            torn = sorted(cache.folder.glob("pictures-*"))[0]
            torn.write_bytes(torn.read_bytes()[:-7])
    again = cache_of(folder, small, tmp_path / "broken")
    before = files(again)
    list(again.fill())
    assert files(again) == before  # whole by now, so nothing is written any more
    assert {name: data for name, (_, data) in before.items()} == expected
    assert (
        again.open_latents().read([0, 1, 2])["caption"]
        == whole.open_latents().read([0, 1, 2])["caption"]
    )


def test_everything_it_depends_on_makes_another_cache(folder, small, tmp_path) -> None:
    root = tmp_path / "cache"
    first = cache_of(folder, small, root)
    list(first.fill())
    names = {first.folder.name}

    def another(**more) -> LatentCache:
        found = cache_of(folder, more.pop("made", small), root, **more)
        assert found.folder.name not in names
        names.add(found.folder.name)
        return found

    assert cache_of(folder, small, root).folder == first.folder
    moved = shutil.copytree(folder, tmp_path / "moved" / "pictures")
    assert cache_of(moved, small, root).folder == first.folder
    for part in ("autoencoder.encoder", "text.0"):
        other = model(config(autoencoder=CODER))
        weight = next(other.get_submodule(part).parameters())
        weight.data.view(-1)[0] += 1e-3  # one number of all
        another(made=other)
    another(made=model(config(autoencoder=replace(CODER, scale=0.6))))
    another(source=open_source(str(folder), size=16))
    another(source=assign_buckets(open_source(str(folder), size=32), bucket_shapes(32, 8)))
    another(source=first_pictures(open_source(str(folder), size=32), 5))
    another(precision="float16")
    another(texts=False)
    text, picture = folder / "train" / "01.txt", folder / "train" / "02.png"
    text.write_text("a white dog")
    another()
    os.utime(picture, (1, 1))
    second = another()
    said = [progress.what for progress in second.fill() if not progress.total]
    assert len(said) == 1 and "of other pictures, networks or settings (1 folders" in said[0]


def test_only_frozen_networks_are_in_the_frozen_file(folder, small, tmp_path) -> None:
    cache = cache_of(folder, small, tmp_path)
    list(cache.fill())
    expected = {
        f"{part}.{name}"
        for part in ("text", "autoencoder")
        for name in small.get_submodule(part).state_dict()
    }
    assert read_safetensors(cache.folder / "frozen.safetensors").keys() == expected


def test_a_cache_that_is_not_what_its_name_says_is_refused(folder, small, tmp_path) -> None:
    cache = cache_of(folder, small, tmp_path)
    list(cache.fill())
    path = cache.folder / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pictures": 12}))
    with pytest.raises(ValueError, match=r"cache.json does not fit .* remove the folder"):
        list(cache_of(folder, small, tmp_path).fill())


def test_broken_pictures_are_named_and_replaced_as_without_a_cache(folder, small, tmp_path):
    path = folder / "train" / "03.png"
    path.write_bytes(path.read_bytes()[:200])
    source = assign_buckets(open_source(str(folder), size=32), bucket_shapes(32, 8))
    cache = cache_of(folder, small, tmp_path, source=source)
    found = cache.open_latents()
    assert list(found.info.skipped) == ["train/03.png"]
    cached = bucket_batches(found, found.buckets, 2, seed=0)
    plain = bucket_batches(source, source.buckets, 2, seed=0)
    for _ in range(12):
        left, right = next(cached), next(plain)
        assert left["caption"] == right["caption"]
        assert torch.equal(left["sizes"], right["sizes"])
    assert cached.skipped == plain.skipped
    for number in (4, 5):
        path = folder / "train" / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"3 of 11 pictures .* cannot be used"):
        list(cache_of(folder, small, tmp_path).fill())


def test_half_precision_takes_half_the_disk(folder, small, tmp_path) -> None:
    exact, half = (
        cache_of(folder, small, tmp_path, precision=p).open_latents().read([0, 1])
        for p in ("float32", "float16")
    )
    assert half["mean"].dtype == np.float16
    np.testing.assert_allclose(half["mean"], exact["mean"], rtol=2e-3, atol=1e-5)
    text = next(small.text[0].parameters())
    text.data *= 1e9
    for parameter in small.text[0].parameters():
        if parameter.ndim == 1:
            parameter.data *= 1e9
    with pytest.raises(ValueError, match=r"states of captions .* use --cache-precision float32"):
        list(cache_of(folder, small, tmp_path, precision="float16").fill())


def test_what_has_no_end_or_no_autoencoder_is_refused(small, tmp_path) -> None:
    endless = open_source("scenes-one", size=32)
    with pytest.raises(ValueError, match=r"is endless.*--pictures"):
        cache_of(tmp_path, small, tmp_path, source=endless)
    some = cache_of(tmp_path, small, tmp_path, source=first_pictures(endless, 5)).open_latents()
    assert some.info.length == 5 and len(some.read([3, 1])["caption"]) == 2
    with pytest.raises(ValueError, match="cache stores latents"):
        TrainTextToImage(cache="x")
    with pytest.raises(ValueError, match="leave out first"):
        TrainTextToImage(cache="x", autoencoder="y", first="scenes-one", first_steps=2)


def test_frozen_parts_leave_the_memory_and_come_back_to_draw(folder, tmp_path) -> None:
    made = model(config(autoencoder=CODER))
    cache = cache_of(folder, made, tmp_path)
    expected = {name: x.clone() for name, x in made.state_dict().items()}
    learner, whole = separate_unet(made, cache, torch.device("cpu"))
    frozen = [weakref.ref(p) for part in (made.text, made.autoencoder) for p in part.parameters()]
    unet = made.unet
    del made
    assert all(ref() is not None for ref in frozen)  # needed, until the cache is filled
    list(cache.fill())
    gc.collect()
    assert not [ref for ref in frozen if ref() is not None]
    assert learner.unet is unet and next(learner.text.parameters()).is_meta
    found = whole(unet).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_recipe_holds_nothing_but_the_unet(folder, tmp_path) -> None:
    """Every module with numbers, once the cache is filled, is a part of the U-Net."""
    settings = config(autoencoder=CODER)
    start = saved(tmp_path / "model", settings)
    training = Training(data=str(folder), size=32, steps=1, batch_size=2, device="cpu")
    others = [x for x in gc.get_objects() if type(x) is torch.nn.Parameter]  # of other tests
    recipe = build(TrainTextToImage(training, init=str(start), cache=str(tmp_path / "cache")))
    assert recipe.prepare is not None
    list(recipe.prepare())
    batch = next(recipe.batches(0))
    assert recipe.updates[0].objective(batch, 1).total.isfinite()
    gc.collect()
    sizes = {tuple(p.shape) for p in model(settings).text.parameters()}
    own = {id(p) for p in (*recipe.model.parameters(), *others)}
    alive = [
        x for x in gc.get_objects()
        if type(x) is torch.nn.Parameter and not x.is_meta and id(x) not in own
        and tuple(x.shape) in sizes
    ]  # fmt: skip
    assert not alive
