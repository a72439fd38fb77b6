"""The channels of trained latents: which of them are used, and their scale.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig

UNUSED = 0.05  # least variance of the posterior means of a channel that carries information


@torch.inference_mode()
def standardise_channels(
    autoencoder: Autoencoder, pictures: Iterable[Float[Tensor, "B C H W"]]
) -> Autoencoder:
    """The autoencoder with latents of mean 0 and deviation 1 in every channel, measured on these
    pictures, so that diffusion sees every channel at the same signal-to-noise ratio. The deviation
    is that of draws from the posterior: where a channel carries little, its most probable latents
    vary less, and stretching them would stretch the posterior's noise too.

    The 1 x 1 convolutions around the latents do it, so other libraries, which have one scale for
    all channels, decode them too. An autoencoder trained without these convolutions gets them, and
    loses the channels that its encoder does not use: under a KL term of some weight their posterior
    is a standard normal for every picture (arXiv:1511.06349, section 3.1), the decoder ignores
    them, and diffusion would have to learn noise.
    """
    device = next(autoencoder.parameters()).device
    posteriors = [autoencoder.posterior(part.to(device)) for part in pictures]
    values = torch.cat([p.mean for p in posteriors]).transpose(0, 1).flatten(1).double()  # (Z, _)
    mean, spread = values.mean(1), values.var(1)
    noise = torch.cat([p.logvar.exp() for p in posteriors]).double().mean((0, 2, 3))
    used = torch.ones_like(mean, dtype=torch.bool)
    if not autoencoder.config.quant_conv:
        if bool((spread > UNUSED).any()):
            used = spread > UNUSED
        autoencoder = add_convolutions(keep_channels(autoencoder, used))
    std = (spread + noise).sqrt().clamp(min=1e-6)
    return scale_channels(autoencoder, mean[used], std[used])


def keep_channels(autoencoder: Autoencoder, used: Bool[Tensor, " Z"]) -> Autoencoder:
    """The autoencoder, which has no 1 x 1 convolutions around its latents, with only these of its
    channels; it decodes as before with zeros in the others.
    """
    state = autoencoder.state_dict()
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name] = state[name][torch.cat([used, used])]  # means, then log variances
    state["decoder.conv_in.weight"] = state["decoder.conv_in.weight"][:, used]
    config = replace(autoencoder.config, latent_channels=int(used.sum()))
    return _with_state(config, state, autoencoder)


def add_convolutions(autoencoder: Autoencoder) -> Autoencoder:
    """The autoencoder with 1 x 1 convolutions around its latents that change nothing."""
    state = autoencoder.state_dict()
    count = autoencoder.config.latent_channels
    for name, channels in (("encoder.quant_conv", 2 * count), ("decoder.post_quant_conv", count)):
        state[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
        state[f"{name}.bias"] = torch.zeros(channels)
    return _with_state(replace(autoencoder.config, quant_conv=True), state, autoencoder)


def scale_channels(
    autoencoder: Autoencoder, mean: Float[Tensor, " Z"], std: Float[Tensor, " Z"]
) -> Autoencoder:
    """The autoencoder, which has 1 x 1 convolutions around its latents, and (z - mean) / std as
    latents, where z is what it encoded before any scaling; its pictures are the same.
    """
    state = {name: value.double() for name, value in autoencoder.state_dict().items()}
    weight, bias = (state[f"encoder.quant_conv.{part}"] for part in ("weight", "bias"))
    spread = torch.cat([std, torch.ones_like(std)])  # rows of means, then of log variances
    state["encoder.quant_conv.weight"] = weight / spread[:, None, None, None]
    state["encoder.quant_conv.bias"] = (bias - torch.cat([mean, 2 * std.log()])) / spread
    weight = state["decoder.post_quant_conv.weight"]
    state["decoder.post_quant_conv.weight"] = weight * std[:, None, None]
    state["decoder.post_quant_conv.bias"] += weight[:, :, 0, 0] @ mean
    config = replace(autoencoder.config, scale=1.0, shift=0.0, channel_means=(), channel_stds=())
    return _with_state(config, state, autoencoder)


def _with_state(
    config: AutoencoderConfig, state: dict[str, Tensor], like: Autoencoder
) -> Autoencoder:
    result = Autoencoder(config).to(next(like.parameters()).device)
    result.load_state_dict(state)
    return result.train(like.training)
