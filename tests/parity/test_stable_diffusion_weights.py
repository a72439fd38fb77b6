"""Whole pipelines of diffusers load here with the same numbers, and ours there."""

import pytest
import torch

from tests.parity.tiny_pipelines import CAPTIONS, FORMS, LENGTH, texts
from triptych.weights.load import load

PROMPTS = [*CAPTIONS, "", "stars " * 30]


def save(pipeline, folder, **options):
    pipeline.save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def agree(pipeline, loaded):
    """The same tokens, texts, predictions, latents and pictures."""
    model, config = loaded.model, loaded.config
    random = torch.Generator().manual_seed(0)
    ids = [t.encode(PROMPTS).tokens for t in loaded.tokenizers]
    names = [n for n in ("tokenizer", "tokenizer_2") if getattr(pipeline, n, None) is not None]
    for own, name in zip(ids, names, strict=True):
        theirs = getattr(pipeline, name)(
            PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        assert torch.equal(own, theirs)
    states, vector = texts(pipeline, PROMPTS)
    ours, pooled = model.encode_text(ids)
    torch.testing.assert_close(ours, states, atol=1e-4, rtol=1e-4)
    assert (pooled is None) == (vector is None)
    if vector is not None:
        torch.testing.assert_close(pooled, vector, atol=1e-4, rtol=1e-4)
    x = torch.randn(len(PROMPTS), config.unet.in_channels, 8, 7, generator=random)
    time = torch.tensor([999, 700, 431, 20, 0, 5])[: len(PROMPTS)]
    told, cond = {}, {"context": ours}
    if pooled is not None:
        sizes = torch.tensor([[64, 48, 0, 8, 64, 48]] * len(PROMPTS))[:, : config.sizes]
        told = {"added_cond_kwargs": {"text_embeds": vector, "time_ids": sizes}}
        cond |= {"vector": pooled, "sizes": sizes}
    if config.unet.labels:
        label = torch.arange(len(PROMPTS)) * 3
        told, cond = {"class_labels": label}, cond | {"label": label}
    expected = pipeline.unet(x, time, states, **told).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(model.predict(x, time, cond), expected, atol=1e-4, rtol=1e-4)
    latents = torch.randn(1, config.unet.out_channels, 8, 6, generator=random)
    vae = pipeline.vae
    picture = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(model.autoencoder.decode(latents), picture, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_pipeline_of_diffusers_loads_here(form, tmp_path):
    pipeline = FORMS[form](tmp_path)
    loaded = load(str(save(pipeline, tmp_path / "saved")), dtype="float32")
    agree(pipeline, loaded)
