"""The networks of a Karlo, ours against diffusers' unCLIP classes, the same random weights in both.

    prior           an embedding of a prompt of 12 tokens: 25 steps with guidance
    decoder         one call of the U-Net, 64 x 64 with guidance (batch 2)
    upsampler       one call of the U-Net, 64 to 256
    autoregressive  ours alone: codes through the cache against all places again for every code; the
                    sizes are the paper's 319 components and 1,024 buckets, width 512, 16 texts

Widths are `--share` of the published ones, and the priors have `--layers` layers (of 20), so that a
pair takes seconds. `--precision default` takes what each gives its user without being asked:
diffusers float32, ours what `runtime.precision` chooses here. Interleaved pairs; each line compares
the results, too.

    python benchmarks/unclip.py prior [--precision float32|bfloat16|default] [--pairs 20]
"""

import argparse
import logging
from collections.abc import Callable
from typing import Any

import measure
import torch
from stable_diffusion import compared
from torch import Tensor

from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.requests import UnclipPictures
from triptych.systems.unclip import autoregressive, prior, published
from triptych.systems.unclip.autoregressive import AutoregressiveConfig, AutoregressivePrior
from triptych.systems.unclip.decoder import Decoder, cut_padding
from triptych.systems.unclip.draw import compute_in_precision, in_precision
from triptych.systems.unclip.prior import DiffusionPrior
from triptych.systems.unclip.upsampler import Upsampler
from triptych.weights.keymap import convert, fill

WORDS, LENGTH, DIM = 12, 77, 768
WIDTHS = (320, 640, 960, 1280)
HALVES = ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3)
DOUBLES = (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D")
SEED = 7


def random_weights(network: Any) -> Any:
    """Also where a network begins at zero, so that every part has an effect."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def texts(states: int) -> tuple[Conditioning, Conditioning]:
    """A prompt, and the empty text."""
    torch.manual_seed(1)
    made = []
    for words in (WORDS, 2):
        mask = torch.arange(LENGTH)[None] < words
        states_of = torch.randn(1, LENGTH, states)
        made.append({"text": torch.randn(1, DIM), "states": states_of, "mask": mask})
    return made[0], made[1]


def requested(options: argparse.Namespace) -> UnclipPictures:
    chosen = str(measure.precisions(options.precision)[0]).removeprefix("torch.")
    return UnclipPictures("x", precision=chosen)  # type: ignore[arg-type]


def prior_pair(options: argparse.Namespace) -> None:
    import diffusers

    heads = round(32 * options.share)
    torch.manual_seed(0)
    peer = random_weights(
        diffusers.PriorTransformer(
            num_attention_heads=heads, attention_head_dim=64, num_layers=options.layers,
            embedding_dim=DIM, num_embeddings=LENGTH,
        )
    )  # fmt: skip
    scheduler = diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
    model = DiffusionPrior(published.read_prior(peer.config, scheduler.config))
    fill(model, convert(peer.state_dict(), published.PRIOR))
    model.eval().requires_grad_(False)
    cond, uncond = texts(DIM)
    theirs = measure.precisions(options.precision)[1]
    peer = peer.to(theirs)
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
    request = requested(options)

    def ours() -> Tensor:
        steps = prior.sample(model, cond, uncond, PictureNoise([SEED]))
        *_, last = compute_in_precision(model, steps, request)
        return prior.finish(model, last.x)

    def their_loop() -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        scheduler.set_timesteps(model.config.steps)
        x = torch.randn(1, DIM, generator=generator).to(theirs)
        times = scheduler.timesteps
        for number, time in enumerate(times):
            out = peer(
                torch.cat([x, x]), time, both["text"].to(theirs), both["states"].to(theirs),
                both["mask"],
            ).predicted_image_embedding  # fmt: skip
            away, towards = out.chunk(2)
            guided = away + model.config.guidance * (towards - away)
            before = times[number + 1] if number + 1 < len(times) else None
            x = scheduler.step(
                guided, time, x, generator=generator, prev_timestep=before
            ).prev_sample
        result: Tensor = peer.post_process_latents(x)
        return result

    facts = {"width": 64 * heads, "layers": options.layers, "steps": model.config.steps}
    compared("an embedding by the prior", ours, their_loop, options, **facts, **about(options))


def decoder_pair(options: argparse.Namespace) -> None:
    import diffusers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    widths = tuple(round(width * options.share) for width in WIDTHS)
    torch.manual_seed(0)
    peer = random_weights(
        diffusers.UNet2DConditionModel(
            sample_size=64, in_channels=3, out_channels=6, layers_per_block=3,
            block_out_channels=widths, attention_head_dim=64 if widths[2] % 64 == 0 else 32,
            down_block_types=HALVES, up_block_types=DOUBLES,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=1536,
            class_embed_type="identity", resnet_time_scale_shift="scale_shift",
        )
    )  # fmt: skip
    projections = random_weights(
        UnCLIPTextProjModel(
            clip_embeddings_dim=DIM, time_embed_dim=4 * widths[0], cross_attention_dim=1536
        )
    )
    scheduler = diffusers.UnCLIPScheduler(variance_type="learned_range")
    config = published.read_decoder(peer.config, projections.config, scheduler.config)
    model = Decoder(config)
    fill(model.unet, convert(peer.state_dict(), published.DECODER))
    model.eval().requires_grad_(False)
    theirs = measure.precisions(options.precision)[1]
    torch.manual_seed(1)
    x, time = torch.randn(2, 3, 64, 64), torch.tensor([500, 500])
    added, context = torch.randn(2, 4 * widths[0]), torch.randn(2, 4 + LENGTH, 1536)
    mask = torch.arange(4 + LENGTH)[None] < torch.tensor([[4 + 2], [4 + WORDS]])
    (cond,) = cut_padding({"added": added, "context": context, "mask": mask})
    peer = peer.to(theirs)

    def their_call() -> Tensor:
        result: Tensor = peer(
            x.to(theirs), time, encoder_hidden_states=context.to(theirs),
            class_labels=added.to(theirs), attention_mask=mask,
        ).sample  # fmt: skip
        return result

    in_one_precision(
        "a step of the decoder", model, lambda: model.predict(x, time.float(), cond), their_call,
        options, widths=list(widths),
    )  # fmt: skip


def upsampler_pair(options: argparse.Namespace) -> None:
    import diffusers

    widths = tuple(round(width * options.share) for width in WIDTHS)
    torch.manual_seed(0)
    peer = random_weights(
        diffusers.UNet2DModel(
            sample_size=256, in_channels=6, out_channels=3, layers_per_block=3,
            block_out_channels=widths, add_attention=False,
            down_block_types=("ResnetDownsampleBlock2D",) * 4,
            up_block_types=("ResnetUpsampleBlock2D",) * 4,
        )
    )  # fmt: skip
    scheduler = diffusers.UnCLIPScheduler()
    model = Upsampler(published.read_upsampler(peer.config, peer.config, scheduler.config, 64))
    state = convert(peer.state_dict(), published.UPSAMPLER)
    fill(model.unet, state)
    model.last = None
    model.eval().requires_grad_(False)
    theirs = measure.precisions(options.precision)[1]
    torch.manual_seed(1)
    x, enlarged, time = (
        torch.randn(1, 3, 256, 256),
        torch.randn(1, 3, 256, 256),
        torch.tensor([500]),
    )
    peer = peer.to(theirs)

    def their_call() -> Tensor:
        result: Tensor = peer(torch.cat([x, enlarged], dim=1).to(theirs), time).sample
        return result

    in_one_precision(
        "a step of the upsampler", model, lambda: model.predict(x, time.float(), enlarged),
        their_call, options, widths=list(widths),
    )  # fmt: skip


def in_one_precision(
    what: str,
    model: Any,
    call: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    options: argparse.Namespace,
    **facts: Any,
) -> None:
    """Weights are in the order in which `load` has them, and cast once, as for a request."""
    model = model.to(memory_format=torch.channels_last)
    with in_precision(model, requested(options)) as mode:

        def ours() -> Tensor:
            with mode():
                return call()

        compared(what, ours, theirs, options, **facts, **about(options))


def with_cache(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = AutoregressiveConfig(
        DIM,
        DIM,
        LENGTH,
        options.components,
        1024,
        64,
        512,
        options.layers,
        8,
        2048,
        temperature=0.0,
    )
    model = AutoregressivePrior(config)
    model.eval().requires_grad_(False)
    cond, _ = texts(DIM)
    cond = {name: value.expand(16, *value.shape[1:]) for name, value in cond.items()}
    request = requested(options)

    def drawn(cached: bool) -> Tensor:
        steps = autoregressive.sample(model, cond, cond, range(16), guidance=1.0, cached=cached)
        *_, codes = compute_in_precision(model, steps, request)
        return codes.float()

    compared(
        "codes with the cache, against without", lambda: drawn(True), lambda: drawn(False),
        options, width=512, layers=options.layers, components=options.components, batch=16,
        **about(options),
    )  # fmt: skip


def about(options: argparse.Namespace) -> dict[str, Any]:
    return {"precision": options.precision, "ours": requested(options).precision}


WHAT = {
    "prior": prior_pair,
    "decoder": decoder_pair,
    "upsampler": upsampler_pair,
    "autoregressive": with_cache,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--precision", choices=measure.PRECISIONS, default="default")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.4, help="of the published widths")
    parser.add_argument("--layers", type=int, default=6, help="of the priors")
    parser.add_argument("--components", type=int, default=319, help="of the autoregressive prior")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    measure.emit(**measure.machine())
    WHAT[options.what](options)


if __name__ == "__main__":
    main()
