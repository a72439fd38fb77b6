"""How well two towers match held-out pictures and texts, measured while they are trained."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from triptych.data.captions import spoken
from triptych.data.order.batches import take
from triptych.data.source import Source
from triptych.systems.clip.model import Clip
from triptych.systems.siglip.model import Siglip
from triptych.text.tokenizer import Tokenizer
from triptych.vision.transforms import ImageTransform

HELD_OUT = 1000  # pictures
CHUNK = 100


def held_out_matches(
    test: Source,
    tokenizer: Tokenizer,
    transform: ImageTransform,
    templates: Sequence[str],
    device: torch.device,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function of the model: zero-shot accuracy over the classes, and recall of the right text
    among those of up to 1,000 held-out pictures, each with its chance.
    """
    count = min(HELD_OUT, test.info.length or HELD_OUT)

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Clip | Siglip)
        found: list[Tensor] = []
        texts: list[str] = []
        labels: list[int] = []
        for start in range(0, count, CHUNK):
            batch = take(test, range(start, min(start + CHUNK, count)))
            image = batch["image"].expand(-1, 3, -1, -1)
            found.append(embedded(module.embed_image, transform.normalise(image).to(device)))
            texts += batch.get("caption", [])
            labels += batch["label"].tolist() if "label" in batch else []
        pictures = torch.cat(found)
        row: dict[str, float] = {}
        if labels and len(test.info.classes) > 1:
            named = class_vectors(module, tokenizer, test.info.classes, templates, device)
            right = (pictures @ named.T).argmax(1) == torch.tensor(labels)
            row |= {
                "zero_shot": right.float().mean().item(),
                "by_chance": 1 / len(test.info.classes),
            }
        if texts:
            vectors = text_vectors(module, tokenizer, texts, device)
            row |= recalls(pictures, vectors, texts)
        return row

    return evaluate


def recalls(pictures: Tensor, vectors: Tensor, texts: Sequence[str]) -> dict[str, float]:
    """Recall of a picture's text among all, and of a text's picture; equal texts are one."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    same = torch.tensor([number[text] for text in texts])
    right = same[:, None] == same[None]
    cosines = pictures @ vectors.T
    row: dict[str, float] = {}
    for name, scores, hits in (("text", cosines, right), ("image", cosines.T, right.T)):
        best = scores.masked_fill(~hits, -torch.inf).amax(1, keepdim=True)
        rank = ((scores > best) & ~hits).sum(1)
        row |= {f"{name}_recall_{k}": (rank < k).float().mean().item() for k in (1, 5, 10)}
    row["recall_by_chance"] = right.float().mean().item()
    return row


def class_vectors(
    model: Clip | Siglip,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
) -> Tensor:
    """One unit vector a class: the mean over its sentences (arXiv:2103.00020, section 3.1.4)."""
    texts = [template.replace("{}", spoken(name)) for name in classes for template in templates]
    vectors = text_vectors(model, tokenizer, texts, device).unflatten(0, (len(classes), -1))
    return nn.functional.normalize(vectors.mean(1), dim=-1)


def text_vectors(
    model: Clip | Siglip, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device
) -> Tensor:
    tokens = tokenizer.encode(list(texts)).tokens
    return torch.cat([embedded(model.embed_text, part.to(device)) for part in tokens.split(CHUNK)])


@torch.inference_mode()
def embedded(embed: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return embed(inputs).cpu()
