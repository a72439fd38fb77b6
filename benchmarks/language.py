"""Speed and perplexity of a language model: ours, transformers, llama.cpp.

    python benchmarks/language.py gemma-3-270m-q4_k_m.gguf decode open prefill perplexity \
        --llama PYTHON --texts FILE --pairs 5

`PYTHON` is the interpreter of an environment with llama-cpp-python; without it that peer is left
out. transformers has random weights of the same sizes, since it takes a minute to open the file.
Interleaved pairs, medians with 95 % intervals; perplexity is of the lines of FILE.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import emit, interval, machine, pairs
from torch.nn import functional as F

from triptych.loading import load
from triptych.nn.decoding import decode
from triptych.systems.gemma.pipeline import Reader
from triptych.systems.gemma.request import Chat

ROWS = ("decode", "prefill", "open", "perplexity")
PROMPT = "The capital of France is the city of"
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


def transformers_model(dtype: torch.dtype) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

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


def compare(row: str, ours: Any, theirs: Any, count: int, amount: float, **facts: Any) -> None:
    """Amounts per second of both, in turns after a warm-up, and their ratio."""
    ours(), theirs()
    a, b = pairs(ours, theirs, count)
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    emit(
        row=row, **facts, ours=amount / statistics.median(a), theirs=amount / statistics.median(b),
        ratio=statistics.median(ratios), interval=interval(ratios),
    )  # fmt: skip


def speeds(options: argparse.Namespace, row: str) -> None:
    """Decoding or prefilling, in tokens per second, by precision, beside each peer."""
    prompt = list(range(1000, 1000 + (8 if row == "decode" else 512)))
    tokens = options.tokens if row == "decode" else 0
    for precision in options.precisions:
        model = load(options.model, dtype=precision).model
        if tokens:
            ours = lambda m=model: decode_ours(m, prompt, tokens)  # noqa: E731
        else:
            ours = lambda m=model: timed(lambda: Reader(m).logits(prompt))  # noqa: E731
        amount = 1.0 if tokens else float(len(prompt))
        for dtype in (torch.float32, torch.bfloat16):
            peer = transformers_model(dtype)
            theirs = (
                (lambda p=peer: decode_theirs(p, prompt, tokens))
                if tokens
                else (lambda p=peer: read_theirs(p, prompt))
            )
            name = f"transformers {dtype}"
            compare(row, ours, theirs, options.pairs, amount, precision=precision, peer=name)
        if options.llama:

            def native() -> float:
                found = llama(options.llama, options.model, len(prompt), tokens or 1)
                return found[0] / tokens if tokens else found[1]

            compare(row, ours, native, options.pairs, amount, precision=precision, peer="llama.cpp")


def opening(options: argparse.Namespace) -> None:
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
    a, b = pairs(lambda: start(chat), lambda: start("import torch"), options.pairs)
    beyond = [x - y for x, y in zip(a, b, strict=True)]
    emit(row="open", seconds=statistics.median(beyond), interval=interval(beyond))
    if options.llama:
        times = [llama(options.llama, options.model, 8, 1)[2] for _ in range(options.pairs)]
        emit(
            row="open", peer="llama.cpp", seconds=statistics.median(times), interval=interval(times)
        )


@torch.inference_mode()
def perplexity(options: argparse.Namespace) -> None:
    """Of the lines of a file, each a text of its own."""
    lines = [line for line in options.texts.read_text().splitlines() if line.strip()]
    for precision in ("float32", "bfloat16", "int8", "int4"):
        loaded = load(options.model, dtype=precision)
        assert loaded.language is not None
        total, count = 0.0, 0
        for line in lines[: options.lines]:
            tokens = torch.tensor([loaded.language.continuation(line)[:2048]])
            logits = loaded.model(tokens)[0, :-1].float()
            total += float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
            count += tokens.shape[1] - 1
        emit(row="perplexity", precision=precision, tokens=count, value=math.exp(total / count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("rows", nargs="+", choices=ROWS)
    parser.add_argument("--precisions", nargs="+", default=["int8", "bfloat16"])
    parser.add_argument("--llama", default="")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    Chat(raw=PROMPT, model=options.model)  # refuses what chat refuses
    emit(**machine())
    for row in options.rows:
        if row in ("decode", "prefill"):
            speeds(options, row)
        elif row == "open":
            opening(options)
        elif options.texts:
            perplexity(options)


if __name__ == "__main__":
    main()
