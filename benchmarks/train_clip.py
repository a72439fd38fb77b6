"""A training step of a small CLIP: ours against transformers and open_clip.

Vision width 192, 6 layers, 64 pixels, patch 8; text width 192, 4 layers, 32 tokens; batch 128. The
peers' steps are written as their own examples write them, AdamW as it comes; ours is the objective
of `models/clip.py` with the fused AdamW of the loop. `--texts full` fills all 32 positions;
`ordinary` are captions of 8 to 14 tokens, which the peers pad and compute.

    python benchmarks/train_clip.py [float32|bfloat16|default] [--pairs 20] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import measure
import open_clip
import torch
import transformers

from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig, objective
from triptych.train.optimizer import adam

Step = Callable[[], float]
END, BATCH = 8191, 128


def data(texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(1, END - 1, (BATCH, 32))
    lengths = torch.full((BATCH,), 32) if texts == "full" else torch.randint(8, 15, (BATCH,))
    for row, length in enumerate(lengths.tolist()):
        tokens[row, length - 1 :] = END
    return torch.randn(BATCH, 3, 64, 64), tokens


def stepping(
    optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], dtype: torch.dtype
) -> Step:
    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return step


def ours(pixels: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> Step:
    model = Clip(
        ClipConfig(
            128,
            VitConfig(64, 8, 192, 6, 3, 768),
            text=TextConfig(END + 1, 32, 192, 4, 3, 768, end=END),
        )
    )

    def loss() -> torch.Tensor:
        found = objective(model, pixels, tokens)
        return found.total / found.count

    return stepping(adam(model, 1e-4, weight_decay=1e-2), loss, dtype)


def of_transformers(pixels: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> Step:
    shared = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    text = {"vocab_size": END + 1, "num_hidden_layers": 4, "max_position_embeddings": 32}
    text |= {"eos_token_id": END, "bos_token_id": END - 1}
    vision = {"num_hidden_layers": 6, "image_size": 64, "patch_size": 8}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text | shared, vision_config=vision | shared, projection_dim=128
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    return stepping(
        optimizer,
        lambda: model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss,
        dtype,
    )


def of_open_clip(pixels: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> Step:
    vision = {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8}
    text = {"context_length": 32, "vocab_size": END + 1, "width": 192, "heads": 3, "layers": 4}
    model, loss = open_clip.model.CLIP(128, vision, text), open_clip.loss.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    return stepping(optimizer, lambda: loss(*model(pixels, tokens)), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("precision", nargs="?", default="float32", choices=measure.PRECISIONS)
    parser.add_argument("--texts", nargs="+", default=["full", "ordinary"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    measure.emit(machine=measure.machine())
    our_dtype, peer_dtype = measure.precisions(given.precision)
    for texts in given.texts:
        for name, make in (("transformers", of_transformers), ("open_clip", of_open_clip)):
            pixels, tokens = data(texts)
            mine, theirs = ours(pixels, tokens, our_dtype), make(pixels, tokens, peer_dtype)
            mine(), theirs()
            a, b = measure.pairs(mine, theirs, given.pairs)
            ratios = [their / our for our, their in zip(a, b, strict=True)]
            low, high = measure.interval(ratios)
            measure.emit(
                what=f"training step of a small CLIP, {name} over ours", texts=texts,
                precision=given.precision, pairs=given.pairs,
                ours_pairs_s=BATCH / statistics.median(a),
                peer_pairs_s=BATCH / statistics.median(b),
                ratio=statistics.median(ratios), low=low, high=high,
            )  # fmt: skip


if __name__ == "__main__":
    main()
