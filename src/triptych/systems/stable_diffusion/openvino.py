"""The U-Net of a text-to-image model in OpenVINO, while pictures are sampled.

Dimensions: B pictures, C channels, O output channels, h w latent sides, S tokens of the context, D
width of the context, V pooled vector, N sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from triptych.backends.openvino import Conversion, Input, compile_network, convert
from triptych.nn.circular import circular
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig


class Positional(nn.Module):
    """A U-Net for OpenVINO: positional inputs and output in float32."""

    def __init__(self, unet: LatentUNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, context: Tensor, *added: Tensor) -> Tensor:
        vector, sizes = (*added, None, None)[:2]  # small models have a vector without sizes
        weight = self.unet.conv_in.weight
        output: Tensor = self.unet(
            x.to(weight.dtype), time, context.to(weight.dtype), vector=vector, sizes=sizes
        )
        return output.float()


class OpenVinoUNet(nn.Module):
    """A converted U-Net in place of the original. It is compiled anew for each shape of its inputs,
    which takes two seconds for Stable Diffusion 1.x.
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
        inputs = [x, time, context, *(one for one in (vector, sizes) if one is not None)]
        shapes = tuple(tuple(one.shape) for one in inputs)
        network = compile_network(self.folder, self.in_bfloat16, torch.get_num_threads(), shapes)
        return network(*(one.float() for one in inputs)).to(x.dtype)


def describe_conversion(
    conversion: Conversion, model: StableDiffusion, *, lora: bool
) -> tuple[str, ...]:
    """Notes before a conversion: its duration, its size on disk, and older conversions."""
    size = sum(parameter.nbytes for parameter in model.unet.parameters())
    with_loras = " with these LoRAs" if lora else ""
    note = (
        f"the U-Net{with_loras} is being converted for OpenVINO, which is needed once and takes "
        f"about a minute for Stable Diffusion 1.x; kept in {conversion.folder} "
        f"({size / 1e9:.1f} GB)"
    )
    count, taken = conversion.others()
    if not count:
        return (note,)
    return (note, f"{count} other conversions ({taken / 1e9:.1f} GB) there may be deleted")


@contextmanager
def in_openvino(
    model: StableDiffusion, conversion: Conversion | None, dtype: torch.dtype, tiling: bool
) -> Iterator[None]:
    """Run the model's U-Net in OpenVINO, converting it first if needed; without a conversion, in
    torch.

    Raises:
        OSError: the conversion cannot be written.
    """
    if conversion is None:
        yield
        return
    if not conversion.exists:
        with circular(model.unet, tiling):
            convert(Positional(model.unet), unet_inputs(model.config), conversion)
    half = dtype == torch.bfloat16
    unet = model.unet
    model.unet = OpenVinoUNet(model.config.unet, conversion.folder, half)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.unet = unet


def unet_inputs(model_config: StableDiffusionConfig) -> list[Input]:
    """Example inputs of the U-Net for tracing, and which of their dimensions are dynamic.

    Sides are odd at every level, so that upsampling is traced with its size as an input; they are
    small, so that branches for large pictures are not traced.
    """
    config = model_config.unet
    side = 2 ** len(config.widths)
    shapes = [
        ((2, config.in_channels, side + 1, 2 * side + 1), (-1, config.in_channels, -1, -1)),
        ((2,), (-1,)),
        ((2, 7, config.context), (-1, -1, config.context)),
    ]
    if config.added:
        vector, sizes = model_config.text[-1].dim or 0, model_config.sizes
        shapes += [((2, count), (-1, count)) for count in (vector, sizes) if count]
    return [Input(torch.full(example, 0.5), shape) for example, shape in shapes]
