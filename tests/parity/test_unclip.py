"""Karlo's networks against diffusers' with the same random weights."""

import pytest
import torch

from tests.parity import karlo
from triptych.systems.unclip import published
from triptych.systems.unclip.decoder import Decoder
from triptych.systems.unclip.prior import DiffusionPrior
from triptych.systems.unclip.upsampler import Upsampler
from triptych.weights.keymap import convert, export, fill

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own
TIME = torch.tensor([3, 871])


def texts():
    """Embeddings, states, and masks of texts of two lengths."""
    torch.manual_seed(1)
    states = torch.randn(2, karlo.LENGTH, karlo.DIM)
    mask = torch.arange(karlo.LENGTH) < torch.tensor([[7], [11]])
    return torch.randn(2, karlo.DIM), states, mask


def prior_pair():
    peer = karlo.prior()
    scheduler = karlo.scheduler(prediction_type="sample", clip_sample_range=5.0)
    model = DiffusionPrior(published.read_prior(peer.config, scheduler.config))
    fill(model, convert(peer.state_dict(), published.PRIOR))
    return peer, model.eval()


def decoder_pair():
    parts = karlo.shared()
    peer, projections = parts["decoder"], parts["text_proj"]
    configs = peer.config, projections.config, parts["decoder_scheduler"].config
    model = Decoder(published.read_decoder(*configs))
    fill(model.unet, convert(peer.state_dict(), published.DECODER))
    own = convert(projections.state_dict(), published.PROJECTIONS)
    model.load_state_dict({f"unet.{k}": v for k, v in model.unet.state_dict().items()} | own)
    return peer, projections, model.eval()


def upsampler_pair():
    parts = karlo.shared()
    first, last = parts["super_res_first"], parts["super_res_last"]
    configs = first.config, last.config, parts["super_res_scheduler"].config
    model = Upsampler(published.read_upsampler(*configs, small=8))
    fill(model.unet, convert(first.state_dict(), published.UPSAMPLER))
    fill(model.last, convert(last.state_dict(), published.UPSAMPLER))
    return first, last, model.eval()


@torch.no_grad()
def test_the_prior():
    peer, model = prior_pair()
    text, states, mask = texts()
    x = torch.randn(2, karlo.DIM)
    expected = peer(x, TIME, text, states, mask).predicted_image_embedding
    torch.testing.assert_close(model(x, TIME, text, states, mask), expected, atol=1e-4, rtol=1e-4)
    clean = torch.randn(2, karlo.DIM)
    torch.testing.assert_close(model.normalise(peer.post_process_latents(clean)), clean)


@torch.no_grad()
def test_the_decoder():
    peer, projections, model = decoder_pair()
    text, states, mask = texts()
    x, image = torch.randn(2, 3, 8, 8), torch.randn(2, karlo.DIM)
    context, added = projections(
        image_embeddings=image, prompt_embeds=text, text_encoder_hidden_states=states,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    cond = model.encode_condition(image, text, states, mask)
    torch.testing.assert_close(cond["context"], context, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cond["added"], added, atol=1e-5, rtol=1e-5)
    wide = torch.nn.functional.pad(mask, (4, 0), value=True)
    expected = peer(x, TIME, context, class_labels=added, attention_mask=wide).sample
    torch.testing.assert_close(model.predict(x, TIME, cond), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_four_extra_tokens_are_stored_channel_by_channel():
    """The same numbers read token by token are other tokens."""
    _, _, model = decoder_pair()
    text, states, mask = texts()
    image = torch.randn(2, karlo.DIM)
    tokens = model.encode_condition(image, text, states, mask)["context"][:, :4]
    numbers = model.token_proj(image)
    for token in range(4):
        torch.testing.assert_close(tokens[:, token], numbers[:, token::4])
    assert not torch.allclose(tokens, numbers.view(2, 4, -1), atol=0.1)


@torch.no_grad()
def test_the_learned_embedding_replaces_a_dropped_one():
    _, _, model = decoder_pair()
    text, states, mask = texts()
    image = torch.randn(2, karlo.DIM)
    none = model.encode_condition(None, text, states, mask)
    both = model.encode_condition(image, text, states, mask)
    mixed = model.encode_condition(image, text, states, mask, torch.tensor([True, False]))
    for name in ("added", "context"):
        torch.testing.assert_close(mixed[name][0], none[name][0])
        torch.testing.assert_close(mixed[name][1], both[name][1])
        assert not torch.allclose(none[name], both[name], atol=0.1)


@torch.no_grad()
def test_both_networks_of_the_upsampler():
    first, last, model = upsampler_pair()
    x = torch.randn(2, 6, 16, 16)
    outputs = []
    for peer, network in ((first, model.unet), (last, model.last)):
        outputs.append(network(x, TIME))
        torch.testing.assert_close(outputs[-1], peer(x, TIME).sample, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(*outputs, atol=0.1)


@pytest.mark.parametrize("name", ["PRIOR", "DECODER", "PROJECTIONS", "UPSAMPLER"])
def test_names_go_both_ways(name):
    module = {"PRIOR": "prior", "PROJECTIONS": "text_proj", "UPSAMPLER": "super_res_last"}
    parts = karlo.shared() | {"prior": karlo.prior()}
    stored = parts[module.get(name, "decoder")].state_dict()
    rules = getattr(published, name)
    back = export(convert(stored, rules), rules)
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)
