"""The U-Net of a text-to-image model in OpenVINO, for as long as pictures are drawn.

Dimensions: B pictures, C channels, O output channels, h w latent sides, S tokens of the context, D
width of the context, V pooled vector, N sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from triptych.nn.circular import circular
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig
from triptych.weights.openvino import Conversion, Input, compiled, conversion_of, convert


class Positional(nn.Module):
    """A U-Net as OpenVINO takes it: float32 in their order in, float32 out."""

    def __init__(self, unet: LatentUNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, context: Tensor, *added: Tensor) -> Tensor:
        vector, sizes = added or (None, None)
        weight = self.unet.conv_in.weight
        found: Tensor = self.unet(
            x.to(weight.dtype), time, context.to(weight.dtype), vector=vector, sizes=sizes
        )
        return found.float()


class OpenVinoUNet(nn.Module):
    """A converted U-Net in the place of the one that it was converted from; compiled for every
    size of pictures and batches as it comes, in two seconds for Stable Diffusion 1.x.
    """

    def __init__(self, config: LatentUNetConfig, folder: Path, half: bool):
        super().__init__()
        self.config, self.folder, self.in_bfloat16 = config, folder, half

    def forward(
        self,
        x: Float[Tensor, "B C h w"],
        time: Num[Tensor, " B"],
        context: Float[Tensor, "B S D"],
        *,
        vector: Float[Tensor, "B V"] | None = None,
        sizes: Num[Tensor, "B N"] | None = None,
        label: None = None,
    ) -> Float[Tensor, "B O h w"]:
        given = [x, time, context, *(one for one in (vector, sizes) if one is not None)]
        shapes = tuple(tuple(one.shape) for one in given)
        network = compiled(self.folder, self.in_bfloat16, torch.get_num_threads(), shapes)
        return network(*(one.float() for one in given)).to(x.dtype)


def unet_conversion(model: StableDiffusion, tiling: bool) -> Conversion:
    """Where the conversion of the model's U-Net lies, with the weights that it has now.

    Raises:
        ValueError: OpenVINO is not installed.
    """
    return conversion_of(model.unet, model.config.unet, "unet", tiling=tiling)


def conversion_said(
    conversion: Conversion, model: StableDiffusion, *, lora: bool
) -> tuple[str, ...]:
    """What someone should know before a conversion: that it takes a while, what it takes of the
    disk, and what else lies there.
    """
    size = sum(parameter.nbytes for parameter in model.unet.parameters())
    with_lora = " with these LoRAs, for which it is another network," if lora else ""
    notes = (
        f"the U-Net{with_lora} is converted for OpenVINO, once: about a minute for Stable "
        f"Diffusion 1.x. It stays in {conversion.folder} ({size / 1e9:.1f} GB)"
    )
    count, taken = conversion.others()
    if not count:
        return (notes,)
    return (notes, f"beside it lie {count} others ({taken / 1e9:.1f} GB), which may be deleted")


@contextmanager
def in_openvino(
    model: StableDiffusion, conversion: Conversion | None, dtype: torch.dtype, tiling: bool
) -> Iterator[None]:
    """Inside, OpenVINO computes the model's U-Net, if there is a conversion or one to be made;
    after it torch does again.

    Raises:
        OSError: the conversion cannot be written.
    """
    if conversion is None:
        yield
        return
    if not conversion.there:
        with circular(model.unet, tiling):
            convert(Positional(model.unet), unet_inputs(model.config), conversion)
    half = dtype == torch.bfloat16
    unet = model.unet
    replaced = OpenVinoUNet(model.config.unet, conversion.folder, half)
    model.unet = replaced  # type: ignore[assignment]
    try:
        yield
    finally:
        model.unet = unet


def unet_inputs(whole: StableDiffusionConfig) -> list[Input]:
    """What a U-Net is called with, of any size.

    The examples' sides are odd on every level: an even one would be doubled by a filter that knows
    nothing else. They are small, so that nothing which is for large pictures only is followed.
    """
    config = whole.unet
    side = 2 ** len(config.widths)
    shapes = [
        ((2, config.in_channels, side + 1, 2 * side + 1), (-1, config.in_channels, -1, -1)),
        ((2,), (-1,)),
        ((2, 7, config.context), (-1, -1, config.context)),
    ]
    if config.added:
        vector, sizes = whole.text[-1].dim or 0, whole.sizes
        shapes += [((2, vector), (-1, vector)), ((2, sizes), (-1, sizes))]
    return [Input(torch.full(example, 0.5), shape) for example, shape in shapes]
