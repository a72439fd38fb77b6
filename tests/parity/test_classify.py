"""A whole classification against transformers' zero-shot pipeline, with the same random weights.

Its arithmetic is its own: the same pixels and tokens go in, and labels with scores come out.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.pipelines.zero_shot_image_classification import (
    ZeroShotImageClassificationPipeline,
)

from tests.parity.reference import randomised
from triptych.fields import to_json
from triptych.requests import Classify
from triptych.running import run
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import Clip
from triptych.systems.siglip import published as siglip
from triptych.systems.siglip.model import Siglip
from triptych.text.templates import prompts
from triptych.text.tokenizer import train_tokenizer
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.keymap import convert, fill
from triptych.weights.loaded import Card, Loaded

LABELS = ("dog", "cat", "a red bus", "fox")
VISION = {
    "image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip
TEXT = {
    "max_position_embeddings": 24, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


@pytest.fixture(params=["clip", "siglip"])
def pair(request):
    """Theirs, and ours with its weights."""
    tokenizer = train_tokenizer(["a photo of a dog", "a photo of a cat"] * 3, 600, 24)
    text = TEXT | {
        "vocab_size": tokenizer.vocabulary,
        "bos_token_id": tokenizer.config.start,
        "eos_token_id": tokenizer.config.end,
        "pad_token_id": tokenizer.config.pad,
    }
    if request.param == "clip":
        settings = CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
        peer = randomised(CLIPModel(settings))
        config = clip_configs.from_transformers(settings.to_dict())
        ours, rules, transform = Clip(config), clip.TRANSFORMERS, ImageTransform(32)
    else:
        settings = SiglipConfig(vision_config=VISION, text_config=text)
        peer = randomised(SiglipModel(settings))
        peer.logit_bias.data.fill_(-1.0)
        config = siglip.from_transformers(settings.to_dict())
        ours, rules = Siglip(config), siglip.TRANSFORMERS
        transform = ImageTransform(32, HALF, HALF, "squash", crop=False)
    peer.logit_scale.data.fill_(2.5)
    fill(ours, convert(peer.state_dict(), rules))
    card = Card(request.param, to_json(config))
    ours.requires_grad_(False).eval()
    return peer.eval(), Loaded(request.param, card, config, ours, tokenizer, transform)


@torch.no_grad()
def test_labels_and_scores_are_those_of_the_pipeline(pair, tmp_path):
    peer, loaded = pair
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    files = []
    for number, picture in enumerate(pixels):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture).save(files[-1])
    *_, result = run(Classify(tuple(files), LABELS), loaded)
    texts = [prompts(label, ("a photo of a {}.",))[0] for label in LABELS]
    tokens = loaded.tokenizer.encode(texts).tokens
    pipeline = ZeroShotImageClassificationPipeline.__new__(ZeroShotImageClassificationPipeline)
    pipeline.model = peer
    for number, picture in enumerate(pixels):
        outputs = peer(input_ids=tokens, pixel_values=loaded.transform([picture]))
        torch.testing.assert_close(
            result.logits()[number], outputs.logits_per_image[0], atol=1e-4, rtol=0
        )
        answers = pipeline.postprocess(
            {"candidate_labels": LABELS, "logits": outputs.logits_per_image}
        )
        shares = result.probabilities()[number]
        order = shares.argsort(descending=True).tolist()
        assert [answer["label"] for answer in answers] == [LABELS[i] for i in order]
        theirs = torch.tensor([answer["score"] for answer in answers])
        torch.testing.assert_close(shares[order], theirs, atol=1e-5, rtol=0)
        assert shares.max() - shares.min() > 1e-3  # the model does tell them apart
