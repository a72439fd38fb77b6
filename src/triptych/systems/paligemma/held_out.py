"""Captions and answers on held-out pictures, judged while a PaliGemma is trained."""

import math
from collections.abc import Callable, Sequence

import torch

from triptych.data.captions import batch_texts
from triptych.data.order.batches import take, take_in_order
from triptych.data.source import Source
from triptych.scenes.captions import parse
from triptych.scenes.judge import holds
from triptych.scenes.scene import Scene
from triptych.systems.paligemma.ask_all import ask_all
from triptych.systems.paligemma.examples import (
    CAPTION,
    AskedScenes,
    Example,
    encode,
    read_pair,
)
from triptych.systems.paligemma.model import PaliGemma, objective
from triptych.text.language import LanguageTokenizer

HELD_OUT = 200
"""Pictures that are described and asked about in an evaluation."""
AT_ONCE = 50
FEW = 8
"""Captions at once: 40 tokens of each with 262,144 logits take 0.3 GB in float32, some times."""
ANSWER = 16
"""Tokens of the longest answer to a question about a scene."""


def held_out(
    test: Source,
    tokenizer: LanguageTokenizer,
    length: int,
    templates: Sequence[str],
    device: torch.device,
) -> Callable[[PaliGemma], dict[str, float]]:
    """A function of the model, for the journal: on scenes how many captions are true and how many
    questions are answered exactly; on other data the perplexity of held-out captions.
    """
    if isinstance(test, AskedScenes):
        return judge_scenes(test, tokenizer, length, device)
    return caption_perplexity(test, tokenizer, length, templates, device)


def caption_perplexity(
    test: Source,
    tokenizer: LanguageTokenizer,
    length: int,
    templates: Sequence[str],
    device: torch.device,
    pictures: int = HELD_OUT,
) -> Callable[[PaliGemma], dict[str, float]]:
    """A function of the model: the perplexity of held-out captions with their picture, with that of
    the next caption, and with none. The first against the others is what the eye adds.
    """
    texts = batch_texts(test, templates) if not test.info.asked else None

    def evaluate(module: PaliGemma) -> dict[str, float]:
        sums = {"perplexity": 0.0, "perplexity_shuffled": 0.0, "perplexity_blind": 0.0}
        count = 0
        for batch in take_in_order(test, pictures, FEW):
            given = batch["caption"] if texts is None else texts(batch)
            single = [text if isinstance(text, str) else text[0] for text in given]
            asked = [
                read_pair(text) if texts is None else Example(CAPTION, text) for text in single
            ]
            rows = encode(asked, tokenizer, length)
            tokens, prefix, lengths = (part.to(device) for part in rows[:3])
            images = batch["image"].expand(-1, 3, -1, -1).to(device)
            for name, seen in zip(sums, (images, images.roll(1, 0), None), strict=True):
                with torch.inference_mode():
                    loss = objective(module, seen, tokens, prefix, lengths, "token")
                sums[name] += float(loss.total)
            count += int(loss.count)
        return {name: math.exp(total / max(count, 1)) for name, total in sums.items()}

    return evaluate


def judge_scenes(
    test: AskedScenes, tokenizer: LanguageTokenizer, length: int, device: torch.device
) -> Callable[[PaliGemma], dict[str, float]]:
    """A function of the model: how many captions of held-out scenes are true, and how many
    questions are answered exactly, beside always giving the most frequent answer.
    """
    scenes = test.scenes.scenes(range(HELD_OUT))

    def evaluate(module: PaliGemma) -> dict[str, float]:
        true = exact = 0
        expected: list[str] = []
        for begin in range(0, HELD_OUT, AT_ONCE):
            places = range(begin, begin + AT_ONCE)
            batch = take(test, list(places))
            images = batch["image"].to(device)
            captions = ask_all(module, tokenizer, images, [CAPTION] * len(images), length)
            true += sum(
                is_true(found.text, scenes[place])
                for found, place in zip(captions, places, strict=True)
            )
            pairs = [
                each[place % len(each)]
                for place, each in zip(places, batch["questions"], strict=True)
            ]
            asked = [f"answer en {question}" for question, _ in pairs]
            answers = ask_all(module, tokenizer, images, asked, ANSWER)
            expected += [answer for _, answer in pairs]
            exact += sum(
                found.text.strip() == answer
                for found, (_, answer) in zip(answers, pairs, strict=True)
            )
        most = max(map(expected.count, set(expected)))
        return {
            "captions_true": true / HELD_OUT,
            "questions_exact": exact / HELD_OUT,
            "by_the_most_frequent_answer": most / HELD_OUT,
        }

    return evaluate


def is_true(text: str, scene: Scene) -> bool:
    """Whether a caption is one of the world's, and true of a scene."""
    try:
        verdict = holds(parse(text), scene.things, scene.ground.colour, scene.ground.texture)
    except ValueError:
        return False
    return verdict.whole
