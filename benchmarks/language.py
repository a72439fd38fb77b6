"""Speed and perplexity of a language model: ours, transformers, llama.cpp.

    python benchmarks/language.py gemma-3-270m-q4_k_m.gguf decode open prefill perplexity \
        --llama PYTHON --texts flickr8k_128 --pairs 5

`PYTHON` is the interpreter of an environment with llama-cpp-python. A peer that is missing is named
and left out. transformers has random weights of the same sizes, since it takes a minute to open the
file. All take turns; medians with 95 % intervals. Perplexity is of the lines of a text file, or of
the captions of the test split of a data set, here Flickr8k's.
"""

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import emit, interval, machine, turns
from torch.nn import functional as F

from triptych.data.captions import captions_of
from triptych.data.sources import open_train_and_test
from triptych.loading import load
from triptych.nn.decoding import decode
from triptych.systems.gemma.pipeline import Reader
from triptych.systems.gemma.request import Chat

ROWS = ("decode", "prefill", "open", "perplexity")
PROMPT = "The capital of France is the city of"
BATCH = 16
"""Texts whose perplexity is computed at a time."""
LLAMA = """
import sys, time
begin = time.perf_counter()
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=1024, n_threads=int(sys.argv[2]), verbose=False)
prompt = list(range(1000, 1000 + int(sys.argv[3])))
model.eval(prompt)
first = time.perf_counter()
for _ in range(int(sys.argv[4])):
    model.eval([model.sample(temp=0.0)])
end = time.perf_counter()
model.reset()
again = time.perf_counter()
model.eval(prompt)
print(end - first, time.perf_counter() - again, first - begin)
"""


def llama(python: str, path: str, prompt: int, tokens: int) -> tuple[float, float, float]:
    """Seconds to decode, to read the prompt, and from the start to the first token."""
    threads = f"{torch.get_num_threads()}"
    command = [python, "-c", LLAMA, path, threads, f"{prompt}", f"{tokens}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    decoding, reading, opening = map(float, out.split())
    return decoding, reading, opening


def find_llama(options: argparse.Namespace) -> str:
    """The interpreter that has llama.cpp; empty where it does not run, which is said."""
    if not options.llama:
        emit(peer="llama.cpp", left_out="--llama names no interpreter")
        return ""
    try:
        llama(options.llama, options.model, 8, 1)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or f"{error}"
        emit(peer="llama.cpp", left_out=said.strip().splitlines()[-1][:200])
        return ""
    return str(options.llama)


def transformers_model(dtype: torch.dtype) -> Any:
    """Random weights of the same sizes; None where transformers is not installed, which is said."""
    try:
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    except ImportError as error:
        emit(peer="transformers", left_out=f"{error}")
        return None
    config = Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512,
        max_position_embeddings=32_768, query_pre_attn_scalar=256,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).to(dtype).eval()


def timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def decode_ours(model: Any, prompt: list[int], tokens: int) -> float:
    """Seconds for each token after the first."""
    reader = Reader(model)
    logits = reader.logits(prompt)
    return timed(lambda: list(decode(logits, reader.step, limit=tokens + 1))) / tokens


@torch.inference_mode()
def decode_theirs(model: Any, prompt: list[int], tokens: int) -> float:
    ids = torch.tensor([prompt])
    out = model(ids, use_cache=True)
    cache = out.past_key_values

    def work() -> None:
        token = out.logits[:, -1:].argmax(-1)
        for _ in range(tokens):
            step = model(token, past_key_values=cache, use_cache=True)
            token = step.logits[:, -1:].argmax(-1)

    return timed(work) / tokens


@torch.inference_mode()
def read_theirs(model: Any, prompt: list[int]) -> float:
    return timed(lambda: model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1))


def speeds(options: argparse.Namespace, row: str, native: str) -> None:
    """Decoding or prefilling, in tokens per second, by precision, beside each peer."""
    prompt = list(range(1000, 1000 + (8 if row == "decode" else 512)))
    tokens = options.tokens if row == "decode" else 0
    ours = {name: load(options.model, dtype=name).model for name in options.precisions}
    peers = {f"{dtype}": transformers_model(dtype) for dtype in (torch.float32, torch.bfloat16)}
    contenders: dict[str, Callable[[], float]] = {}
    for name, model in ours.items():
        contenders[name] = (
            (lambda m=model: decode_ours(m, prompt, tokens))
            if tokens
            else (lambda m=model: timed(lambda: Reader(m).logits(prompt)))
        )
    for name, model in peers.items():
        if model is not None:
            contenders[f"transformers {name}"] = (
                (lambda m=model: decode_theirs(m, prompt, tokens))
                if tokens
                else (lambda m=model: read_theirs(m, prompt))
            )
    if native:

        def ask_llama() -> float:
            found = llama(native, options.model, len(prompt), tokens or 1)
            return found[0] / tokens if tokens else found[1]

        contenders["llama.cpp"] = ask_llama
    for work in contenders.values():
        work()
    found = dict(zip(contenders, turns([*contenders.values()], options.pairs), strict=True))
    amount = 1.0 if tokens else float(len(prompt))
    for name in ours:
        speed = [amount / seconds for seconds in found[name]]
        emit(
            row=row, precision=name, tokens_per_s=statistics.median(speed), interval=interval(speed)
        )
    for peer in list(found)[len(ours) :]:
        theirs = amount / statistics.median(found[peer])
        for name in ours:
            ratios = [y / x for x, y in zip(found[name], found[peer], strict=True)]
            emit(
                row=row, precision=name, peer=peer, peer_tokens_per_s=theirs,
                ratio=statistics.median(ratios), interval=interval(ratios),
            )  # fmt: skip


def opening(options: argparse.Namespace, native: str) -> None:
    """Seconds from the start of a process to its first token, and of `import torch` alone."""
    chat = (
        "import sys; from triptych.requests import Chat, Decoding;"
        "from triptych.running import run;"
        "list(run(Chat(raw=sys.argv[2], model=sys.argv[1], decoding=Decoding(max_tokens=1))))"
    )

    def start(program: str) -> float:
        command = [sys.executable, "-c", program, options.model, PROMPT]
        return timed(lambda: subprocess.run(command, check=True, env=os.environ))

    start(chat), start("import torch")
    a, b = turns([lambda: start(chat), lambda: start("import torch")], options.pairs)
    beyond = [x - y for x, y in zip(a, b, strict=True)]
    emit(
        row="open", seconds_beyond_torch=statistics.median(beyond), interval=interval(beyond),
        torch=statistics.median(b),
    )  # fmt: skip
    if native:
        times = [llama(native, options.model, 8, 1)[2] for _ in range(options.pairs)]
        emit(
            row="open", peer="llama.cpp", seconds=statistics.median(times), interval=interval(times)
        )


def read_texts(options: argparse.Namespace) -> list[str]:
    """The lines of a text file, or the captions of a data set's test split."""
    if options.texts.is_dir():
        test = open_train_and_test(f"{options.texts}")[1]
        each = captions_of(test, 1 << 30)
        lines = [caption for captions in each for caption in captions]
    else:
        lines = [line for line in options.texts.read_text().splitlines() if line.strip()]
    chosen = sorted(random.Random(0).sample(range(len(lines)), min(options.lines, len(lines))))
    return [lines[i] for i in chosen]


@torch.inference_mode()
def losses_of(model: Any, rows: Sequence[list[int]]) -> list[float]:
    """The sum of the losses of each row, in nats; rows are padded on the right, which no token of
    theirs sees.
    """
    found: list[float] = []
    for begin in range(0, len(rows), BATCH):
        part = rows[begin : begin + BATCH]
        longest = max(map(len, part))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        logits = model(tokens[:, :-1]).float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        found += [float(x[: len(row) - 1].sum()) for x, row in zip(losses, part, strict=True)]
    return found


def perplexity(options: argparse.Namespace) -> None:
    """Of texts, each on its own; and how much larger it is than in float32."""
    texts = read_texts(options)
    exact: list[float] = []
    for precision in ("float32", "bfloat16", "int8", "int4"):
        loaded = load(options.model, dtype=precision)
        assert loaded.language is not None
        rows = [loaded.language.continuation(text)[:2048] for text in texts]
        counts = [len(row) - 1 for row in rows]
        losses = losses_of(loaded.model, rows)
        exact = exact or losses
        draw = random.Random(0)
        values, shares = [], []
        for _ in range(1000):
            chosen = draw.choices(range(len(rows)), k=len(rows))
            total, count = sum(losses[i] for i in chosen), sum(counts[i] for i in chosen)
            values.append(math.exp(total / count))
            shares.append(math.exp((total - sum(exact[i] for i in chosen)) / count))
        values.sort()
        shares.sort()
        emit(
            row="perplexity", precision=precision, texts=len(rows), tokens=sum(counts),
            value=math.exp(sum(losses) / sum(counts)), interval=(values[25], values[974]),
            over_float32=math.exp((sum(losses) - sum(exact)) / sum(counts)),
            over_interval=(shares[25], shares[974]),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("rows", nargs="+", choices=ROWS)
    parser.add_argument("--precisions", nargs="+", default=["int8", "bfloat16", "float32"])
    parser.add_argument("--llama", default="", help="an interpreter with llama-cpp-python")
    parser.add_argument("--texts", type=Path, help="a text file, or a data set with captions")
    parser.add_argument("--lines", type=int, default=500, help="texts whose perplexity is measured")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if "perplexity" in options.rows and options.texts is None:
        parser.error("perplexity needs --texts")
    Chat(raw=PROMPT, model=options.model)  # refuses what chat refuses
    emit(**machine())
    native = find_llama(options) if set(options.rows) & {"decode", "prefill", "open"} else ""
    for row in options.rows:
        if row in ("decode", "prefill"):
            speeds(options, row, native)
        elif row == "open":
            opening(options, native)
        else:
            perplexity(options)


if __name__ == "__main__":
    main()
