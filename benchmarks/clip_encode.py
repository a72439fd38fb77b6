"""Pictures and texts a second of CLIP and SigLIP: ours against transformers, the same weights.

Published sizes with random weights. `--precision float32` compares one precision; `default` takes
what each gives its user without being asked: transformers float32, ours bfloat16 where this
processor is faster with it, and the cosine to float32 is printed. Texts are ordinary sentences;
transformers computes all positions of the padded text, as its processor makes it.

    python benchmarks/clip_encode.py [--what B/32 L/14 siglip text] [--pairs 20] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import measure
import torch
import transformers

from triptych import runtime
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import Clip
from triptych.systems.siglip import published as siglip
from triptych.systems.siglip.model import Siglip
from triptych.weights.keymap import convert, fill

VISION = {
    "B/32": {"patch_size": 32},
    "L/14": {
        "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}  # fmt: skip
LENGTHS = (8, 9, 10, 9, 12, 8, 11, 14, 9, 10, 8, 13, 9, 10, 12, 11)  # tokens of ordinary captions


def peer(what: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if what == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig()).eval()
    size = "B/32" if what == "text" else what
    dim = 768 if size == "L/14" else 512
    config = transformers.CLIPConfig(projection_dim=dim, vision_config=VISION[size])
    return transformers.CLIPModel(config).eval()


def ours(model: torch.nn.Module, what: str, precision: str) -> torch.nn.Module:
    stored = model.config.to_dict()
    if what == "siglip":
        made: torch.nn.Module = Siglip(siglip.from_transformers(stored))
        fill(made, convert(model.state_dict(), siglip.TRANSFORMERS))
    else:
        made = Clip(clip_configs.from_transformers(stored))
        fill(made, convert(model.state_dict(), clip.TRANSFORMERS))
    chosen = precision
    if precision == "default":
        chosen = runtime.precision("auto", torch.device("cpu"))
    return made.eval().to(getattr(torch, chosen))


def texts(batch: int) -> torch.Tensor:
    tokens = torch.full((batch, 77), 49407)
    for row in range(batch):
        length = LENGTHS[row % len(LENGTHS)]
        tokens[row, : length - 1] = torch.randint(300, 40000, (length - 1,))
    return tokens


def timed(call: Callable[[], torch.Tensor]) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            call()
        return time.perf_counter() - began

    return once


def calls(
    model: torch.nn.Module, peer_: torch.nn.Module, what: str, batch: int
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """The same batch through both."""
    if what == "text":
        tokens = texts(batch)
        return (
            lambda: model.embed_text(tokens),
            lambda: peer_.get_text_features(input_ids=tokens).pooler_output,
        )
    pixels = torch.randn(batch, 3, 224, 224)
    cast = pixels.to(next(model.parameters()))
    return (
        lambda: model.embed_image(cast),
        lambda: peer_.get_image_features(pixel_values=pixels).pooler_output,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--what", nargs="+", default=["B/32", "siglip", "text", "L/14"])
    parser.add_argument("--precision", nargs="+", default=["float32", "default"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    measure.emit(machine=measure.machine())
    for what in given.what:
        batch = {"B/32": 16, "L/14": 2, "siglip": 4, "text": 32}[what]
        theirs = peer(what)
        for precision in given.precision:
            model = ours(theirs, what, precision)
            mine, other = calls(model, theirs, what, batch)
            with torch.inference_mode():
                want = torch.nn.functional.normalize(other(), dim=-1)
                cosine = (mine() * want).sum(1).min().item()
            a, b = measure.pairs(timed(mine), timed(other), given.pairs)
            ratios = [their / our for our, their in zip(a, b, strict=True)]
            low, high = measure.interval(ratios)
            measure.emit(
                what=f"{what}, peer over ours", precision=precision,
                dtype=str(next(model.parameters()).dtype), batch=batch, pairs=given.pairs,
                ours_per_s=batch / statistics.median(a), peer_per_s=batch / statistics.median(b),
                ratio=statistics.median(ratios), low=low, high=high, least_cosine=cosine,
            )  # fmt: skip


if __name__ == "__main__":
    main()
