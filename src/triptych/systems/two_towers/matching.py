"""Zero-shot accuracy and recall on held-out pictures, measured while two towers are trained.

Dimensions: N pictures, D width of the shared space, L classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triptych.data.captions import class_words
from triptych.data.order.batches import take
from triptych.data.source import Source
from triptych.systems.clip.model import Clip
from triptych.systems.siglip.model import Siglip
from triptych.systems.two_towers.labels import average_prompts, label_prompts
from triptych.systems.two_towers.retrieval import recall_at
from triptych.text.tokenizer import Tokenizer
from triptych.vision.transforms import ImageTransform

HELD_OUT = 1000  # pictures
CHUNK = 100


class HeldOut(NamedTuple):
    """The first pictures of a source in the shared space."""

    image: Float[Tensor, "N D"]
    labels: Tensor | None  # (N,) int64; None where the source has none
    captions: list[str]  # one per picture; empty where the source has none


def held_out_matches(
    test: Source,
    tokenizer: Tokenizer,
    transform: ImageTransform,
    templates: Sequence[str],
    device: torch.device,
) -> Callable[[Clip | Siglip], dict[str, float]]:
    """A function of the model: zero-shot accuracy over the classes and recall of captions, among
    up to 1,000 held-out pictures, each with its chance level.
    """
    classes = test.info.classes
    count = min(HELD_OUT, test.info.length or HELD_OUT)

    def evaluate(module: Clip | Siglip) -> dict[str, float]:
        image, labels, captions = embed_source(module, transform, test, count)
        row: dict[str, float] = {}
        if labels is not None and len(classes) > 1:
            text = embed_classes(module, tokenizer, classes, templates, device)
            right = (image @ text.T).argmax(1) == labels
            row |= {
                "zero_shot": right.float().mean().item(),
                "by_chance": 1 / len(classes),
            }
        if captions:
            text = embed_texts(module, tokenizer, captions, device)
            row |= caption_recall(image, text, captions)
        return row

    return evaluate


def embed_source(
    model: nn.Module, transform: ImageTransform, source: Source, count: int
) -> HeldOut:
    """Embed the first `count` pictures of a source; grey ones as three equal channels."""
    weight = next(model.get_submodule("image").parameters())
    vectors, labels, captions = [], [], []
    for start in range(0, count, CHUNK):
        batch = take(source, range(start, min(start + CHUNK, count)))
        image = transform.normalise(batch["image"].expand(-1, 3, -1, -1))
        with torch.inference_mode():
            vectors.append(model.embed_image(image.to(weight)).cpu())  # type: ignore[operator]
        if "label" in batch:
            labels.append(batch["label"])
        captions += batch.get("caption", [])
    return HeldOut(torch.cat(vectors), torch.cat(labels) if labels else None, captions)


def caption_recall(
    image: Float[Tensor, "N D"], text: Float[Tensor, "N D"], captions: Sequence[str]
) -> dict[str, float]:
    """Recall of a picture's caption and of a caption's picture; equal captions count as one."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    numbers = torch.tensor([number[caption] for caption in captions])
    matches = numbers[:, None] == numbers[None]
    scores = image @ text.T
    row: dict[str, float] = {}
    for name, shares in (
        ("text", recall_at(scores, matches)),
        ("image", recall_at(scores.T, matches.T)),
    ):
        row |= {f"{name}_recall_{k}": share for k, share in shares.items()}
    row["recall_by_chance"] = matches.float().mean().item()
    return row


def embed_classes(
    model: Clip | Siglip,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
) -> Float[Tensor, "L D"]:
    """One unit vector per class, as `embed_labels`, for a model without a `Loaded`."""
    texts = label_prompts([class_words(name) for name in classes], templates)
    return average_prompts(embed_texts(model, tokenizer, texts, device), len(templates))


@torch.inference_mode()
def embed_texts(
    model: Clip | Siglip, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device
) -> Float[Tensor, "N D"]:
    tokens = tokenizer.encode(list(texts)).tokens
    return torch.cat([model.embed_text(part.to(device)).cpu() for part in tokens.split(CHUNK)])
