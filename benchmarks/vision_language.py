"""A PaliGemma of 3B with random weights against transformers; a training step of the tiny one.

    python benchmarks/vision_language.py write --folder /tmp/3b
    python benchmarks/vision_language.py answer --folder /tmp/3b --pairs 3
    python benchmarks/vision_language.py train --pairs 10

`write` makes a folder of transformers, in bfloat16: 5.9 GB, or a megabyte at `--size tiny`.
`answer` opens it, reads a picture and a question, and decodes, each time in a new process, so that
one model is in memory at a time: bfloat16, the packed forms and transformers take turns. `train`
is a step of the preset `plain`, by default against default and at the same precision.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import PRECISIONS, emit, interval, machine, pairs, precisions, turns

ROWS = ("write", "answer", "train")
SHARD = 2 << 30
"""Bytes of a file of weights, at most one tensor more."""
QUESTION = 16
"""Tokens of the question."""
BATCH, PREFIX, SUFFIX = 64, 12, 20
"""Rows of a training step, and their tokens."""


def peak() -> int:
    """Bytes that this process has had in memory, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# write


def write(options: argparse.Namespace) -> None:
    """Random weights in the layout of transformers."""
    from triptych.systems.gemma.model import GemmaConfig
    from triptych.systems.paligemma.model import PaliGemma, PaliGemmaConfig
    from triptych.systems.paligemma.published import rules, to_transformers
    from triptych.systems.siglip.model import SiglipImageConfig
    from triptych.weights.files.safetensors import write_safetensors
    from triptych.weights.keymap import export
    from triptych.weights.skeleton import skeleton

    config = PaliGemmaConfig()
    if options.size == "tiny":
        config = PaliGemmaConfig(
            SiglipImageConfig(28, 14, 64, 2, 2, 128, pooled=False),
            GemmaConfig(
                512, 128, 2, 2, 1, 64, 256, 512, post_norms=False, head_norms=False, window=None,
                pattern=1, base=10_000.0, query_scale=64.0,
            ),
        )  # fmt: skip
    torch.manual_seed(0)
    empty = skeleton(lambda: PaliGemma(config)).state_dict()
    state = {
        name: (
            torch.empty(x.shape, dtype=torch.bfloat16).normal_(std=x.shape[-1] ** -0.5)
            if x.ndim > 1
            else torch.zeros(x.shape, dtype=torch.bfloat16)
        )
        for name, x in empty.items()
    }
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in export(state, rules(config)).items():
        if sum(x.nbytes for x in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, shard, {"format": "pt"})
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(to_transformers(config)))
    emit(row="write", gb=sum(x.nbytes for shard in shards for x in shard.values()) / 1e9)


# answer


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@torch.inference_mode()
def answer_ours(folder: Path, precision: str, tokens: int) -> dict[str, float]:
    """Seconds to open, to read and for each token, and memory."""
    begin = time.perf_counter()
    from triptych.loading import load

    imported = time.perf_counter()
    before = peak()
    loaded = load(f"{folder}", dtype=precision)
    opened = time.perf_counter()
    model: Any = loaded.model
    at_first = peak()
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, loaded.config.size, loaded.config.size)
    text = torch.randint(3, 400, (1, QUESTION))
    found: dict[str, float] = {"import": imported - begin, "open": opened - imported}
    for name in ("first", "prefill"):  # the first time maps the file
        start = time.perf_counter()
        logits, cache = model.read(pixels, text, torch.zeros(1, dtype=torch.long))
        found[name] = time.perf_counter() - start
    token = logits.argmax(1)
    start = time.perf_counter()
    for _ in range(tokens):
        token = model.step(token, cache).argmax(1)
    found["token"] = (time.perf_counter() - start) / tokens
    return found | {"peak_open": at_first, "peak": peak(), "peak_import": before}


@torch.inference_mode()
def answer_theirs(folder: Path, _: str, tokens: int) -> dict[str, float]:
    """The same by transformers, in bfloat16."""
    begin = time.perf_counter()
    from transformers import PaliGemmaForConditionalGeneration

    imported = time.perf_counter()
    before = peak()
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    opened = time.perf_counter()
    at_first = peak()
    torch.manual_seed(0)
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size, dtype=torch.bfloat16)
    places = (size // model.config.vision_config.patch_size) ** 2
    pictures = torch.full((1, places), model.config.image_token_index)
    ids = torch.cat([pictures, torch.randint(3, 400, (1, QUESTION))], 1)
    found: dict[str, float] = {"import": imported - begin, "open": opened - imported}
    for name in ("first", "prefill"):
        start = time.perf_counter()
        out = model(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids), use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        found[name] = time.perf_counter() - start
    token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    start = time.perf_counter()
    for _ in range(tokens):
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    found["token"] = (time.perf_counter() - start) / tokens
    return found | {"peak_open": at_first, "peak": peak(), "peak_import": before}


def answer(options: argparse.Namespace) -> None:
    """Every contender in turns, each in a process of its own."""
    measured: dict[str, list[dict[str, float]]] = {}

    def ask(name: str) -> Callable[[], float]:
        def work() -> float:
            command = [sys.executable, __file__, "one", "--folder", f"{options.folder}"]
            command += ["--contender", name, "--tokens", f"{options.tokens}"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found: dict[str, float] = json.loads(out.splitlines()[-1])
            measured.setdefault(name, []).append(found)
            return found["token"]

        return work

    names = list(options.precisions)
    try:
        ask("transformers")()
        names.append("transformers")
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()[-1:] or [f"{error}"]
        emit(peer="transformers", left_out=said[0][:200])
    measured.clear()
    turns([ask(name) for name in names], options.pairs)
    size = weights(options.folder)
    for name, runs in measured.items():

        def of(key: str, runs: list[dict[str, float]] = runs) -> list[float]:
            return [run[key] for run in runs]

        emit(
            row="answer", contender=name, weights_gb=size / 1e9,
            import_s=statistics.median(of("import")),
            open_s=statistics.median(of("open")), open_interval=interval(of("open")),
            prefill_s=statistics.median(of("prefill")),
            tokens_per_s=1 / statistics.median(of("token")),
            peak_over_weights=max(of("peak")) / size,
            peak_open_over_weights=max(of("peak_open")) / size,
        )  # fmt: skip
        peers = measured.get("transformers", [])
        for key in ("token", "prefill") if name != "transformers" and peers else ():
            ratios = [peer[key] / run[key] for run, peer in zip(runs, peers, strict=True)]
            emit(
                row={"token": "decode", "prefill": "prefill"}[key], precision=name,
                peer="transformers bfloat16", ratio=statistics.median(ratios),
                interval=interval(ratios),
            )  # fmt: skip


def one(options: argparse.Namespace) -> None:
    """What one process measures, as a line of JSON."""
    work = answer_theirs if options.contender == "transformers" else answer_ours
    print(json.dumps(work(options.folder, options.contender, options.tokens)))


# train


def train(options: argparse.Namespace) -> None:
    """A step of the preset `plain`: forward, backward, AdamW, with the loop's own step here."""
    for chosen in PRECISIONS:
        mine, theirs = precisions(chosen)
        try:
            ours, peer = step_ours(mine), step_theirs(theirs)
        except ImportError as error:
            emit(row="train", peer="transformers", left_out=f"{error}")
            return
        for _ in range(2):
            ours(), peer()
        a, b = pairs(ours, peer, options.pairs)
        ratios = [y / x for x, y in zip(a, b, strict=True)]
        emit(
            row="train", precision=chosen, ours_rows_per_s=BATCH / statistics.median(a),
            peer_rows_per_s=BATCH / statistics.median(b), peer="transformers",
            ratio=statistics.median(ratios), interval=interval(ratios),
        )  # fmt: skip


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, tokens of prefix and suffix, and where each row's prefix and suffix end."""
    torch.manual_seed(0)
    prefix = torch.randint(4, PREFIX + 1, (BATCH,))
    lengths = prefix + torch.randint(6, SUFFIX + 1, (BATCH,))
    tokens = torch.randint(4, 2000, (BATCH, int(lengths.max())))
    places = torch.arange(tokens.shape[1])[None]
    tokens[places >= lengths[:, None]] = 0
    return torch.randn(BATCH, 3, 64, 64), tokens, prefix, lengths


def configuration() -> Any:
    """6.4 million parameters, with about the vocabulary that the built-in scenes give."""
    from triptych.requests import TrainVlm
    from triptych.systems.paligemma.model import PaliGemmaConfig
    from triptych.systems.paligemma.recipe import text_config
    from triptych.systems.siglip.model import SiglipImageConfig

    words = TrainVlm(width=192, layers=6, head_width=48, hidden=768)
    image = SiglipImageConfig(64, 8, 192, 6, 3, 768, pooled=False)
    return PaliGemmaConfig(image, text_config(words, 2048))


def step_ours(dtype: torch.dtype) -> Callable[[], float]:
    from triptych.systems.paligemma.model import PaliGemma, objective
    from triptych.train.loop import descend
    from triptych.train.optimizer import adam
    from triptych.train.recipe import Update

    model = PaliGemma(configuration()).train()
    pixels, tokens, prefix, lengths = rows()
    update = Update(
        "", model, adam(model, 1e-4), lambda *_: objective(model, pixels, tokens, prefix, lengths),
        max_norm=1.0,
    )  # fmt: skip
    name = str(dtype).removeprefix("torch.")

    def step() -> float:
        begin = time.perf_counter()
        measured = descend(update, [{}], 1, name)
        assert math.isfinite(measured["loss"])
        return time.perf_counter() - begin

    return step


def step_theirs(dtype: torch.dtype) -> Callable[[], float]:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    from triptych.systems.paligemma.published import to_transformers

    config = configuration()
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**to_transformers(config))).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    pixels, tokens, prefix, lengths = rows()
    pictures = torch.full((BATCH, config.places), model.config.image_token_index)
    ids = torch.cat([pictures, tokens], 1)
    places = torch.arange(ids.shape[1])[None] - config.places
    known, asked = places < lengths[:, None], places < prefix[:, None]
    labels = ids.masked_fill(asked | ~known, -100)

    def step() -> float:
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            loss = model(
                input_ids=ids, pixel_values=pixels, attention_mask=known.long(),
                token_type_ids=(~asked).long(), labels=labels,
            ).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("row", choices=(*ROWS, "one"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", choices=("3b", "tiny"), default="3b")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--contender", default="", help="of `one`, which `answer` calls")
    options = parser.parse_args()
    if options.row != "train" and options.folder is None:
        parser.error(f"{options.row} needs --folder")
    if options.row != "one":
        emit(**machine())
    {"write": write, "answer": answer, "train": train, "one": one}[options.row](options)


if __name__ == "__main__":
    main()
