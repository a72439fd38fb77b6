"""An autoencoder of masks with a table of codes (arXiv:2301.02229, arXiv:1711.00937): the 16 words
after the box of an object that PaliGemma segments.

Dimensions: B masks, S side of a mask (64), D numbers of a code, K codes (128), N cells (16).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least, require_widths
from triptych.nn.loss import Loss
from triptych.system import ModelKind

SIDE = 64
"""Pixels of a side of a mask, in its box."""
CODES = 128
CELLS = 16
"""Codes of one mask: 4 x 4, row by row."""
SMALL = 1e-3
"""Weight of the size of cells that are not codes yet."""


@dataclass(frozen=True)
@bounded
class MaskCodesConfig:
    """Sizes. The defaults are those of the published decoder."""

    down: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the four convolutions that each halve the side."""
    width: int = 128
    """Channels of the decoder at 4 x 4; each of its layers but the first has half as many."""
    code_width: int = 512

    def __post_init__(self) -> None:
        require_widths(self, "down")
        if len(self.down) != 4:
            raise ValueError(f"down has four widths, from 64 pixels to 4, not {len(self.down)}")
        require_at_least(self, 1, "code_width")
        require_at_least(self, 8, "width")
        if self.width % 8:
            raise ValueError(f"width is halved three times: a multiple of 8, not {self.width}")


class Residual(nn.Module):
    """Two 3 x 3 convolutions and one of 1 x 1, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Float[Tensor, "B C 4 4"]) -> Float[Tensor, "B C 4 4"]:
        result: Tensor = x + self.net(x)
        return result


class MaskCodes(nn.Module):
    """Masks of 64 x 64 in [-1, 1], above 0 inside, to 16 codes each, and back.

    The layers have the numbers of the published file.
    """

    def __init__(self, config: MaskCodesConfig):
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for inner, outer in pairwise((1, *config.down)):
            layers += [nn.Conv2d(inner, outer, 4, 2, 1), nn.ReLU()]
        last, width, code = config.down[-1], config.width, config.code_width
        self.encoder = nn.Sequential(
            *layers, Residual(last), Residual(last), nn.Conv2d(last, code, 1)
        )
        layers = [nn.Conv2d(code, width, 1), nn.ReLU(), Residual(width), Residual(width)]
        widths = (width, width, width // 2, width // 4, width // 8)
        for inner, outer in pairwise(widths):
            layers += [nn.ConvTranspose2d(inner, outer, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))
        self.codes = nn.Parameter(torch.randn(CODES, code))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
                inputs //= layer.stride[0] ** 2 if isinstance(layer, nn.ConvTranspose2d) else 1
                nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)  # arXiv:1502.01852
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        for part in (*self.encoder, *self.decoder):
            if isinstance(part, Residual):  # starts as the identity
                nn.init.zeros_(part.net[-1].weight)  # type: ignore[arg-type]

    def cells(self, masks: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B N D"]:
        """What is encoded, before it becomes codes."""
        encoded: Tensor = self.encoder(masks)
        return encoded.flatten(2).transpose(1, 2)

    def nearest(self, cells: Float[Tensor, "B N D"]) -> Int64[Tensor, "B N"]:
        """The nearest code of each cell; of equally near ones the first."""
        return self.distances(cells).argmin(-1)

    def distances(self, cells: Float[Tensor, "B N D"]) -> Float[Tensor, "B N K"]:
        """Squared distances to all codes."""
        table = self.codes
        return cells.square().sum(-1, keepdim=True) + table.square().sum(1) - 2 * cells @ table.T

    def encode(self, masks: Float[Tensor, "B 1 S S"]) -> Int64[Tensor, "B N"]:
        """The codes of masks."""
        return self.nearest(self.cells(masks))

    def decode(self, codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B 1 S S"]:
        """Masks from codes: about -1 outside and 1 inside, not bounded."""
        return self.draw(self.codes[codes])

    def draw(self, cells: Float[Tensor, "B N D"]) -> Float[Tensor, "B 1 S S"]:
        """Masks from cells."""
        drawn: Tensor = self.decoder(cells.transpose(1, 2).unflatten(2, (4, 4)))  # type: ignore[no-untyped-call]
        return drawn


@torch.no_grad()
def place_codes(model: MaskCodes, masks: Float[Tensor, "B 1 S S"], rounds: int = 10) -> None:
    """Put the codes where masks are encoded now, by k-means from cells that are far from each other
    (arXiv:1711.00937 learns them from the start; then most are soon used by no mask).
    """
    cells = model.cells(masks).flatten(0, 1)
    far = (cells - cells.mean(0)).square().sum(1)
    for row in model.codes:
        row.copy_(cells[far.argmax()])
        far = torch.minimum(far, (cells - row).square().sum(1))
    for _ in range(rounds):
        chosen = model.nearest(cells[None])[0]
        sums = torch.zeros_like(model.codes).index_add_(0, chosen, cells)
        counts = chosen.bincount(minlength=CODES)[:, None]
        model.codes.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), model.codes))


def objective(
    model: MaskCodes,
    masks: Float[Tensor, "B 1 S S"],
    commitment: float = 0.25,
    spread: float = 0.1,
) -> Loss:
    """Squared error of the mask that is decoded, and distances between cells and their codes
    (arXiv:1711.00937, equation 3), each a mean over a mask.

    `spread` weighs the distance of every code to its nearest cell of the batch: a code that is
    never the nearest one would else stay where it is, unused.
    """
    cells = model.cells(masks)
    distances = model.distances(cells.detach())
    chosen = distances.argmin(-1)
    codes = model.codes[chosen]
    drawn = model.draw(cells + (codes - cells).detach())  # gradients pass straight through
    near = F.mse_loss(codes, cells.detach()) + commitment * F.mse_loss(cells, codes.detach())
    width = model.config.code_width
    apart = distances.flatten(0, 1).amin(0).mean() / width if spread else near.new_zeros(())
    used = torch.zeros(CODES, device=masks.device).index_fill(0, chosen.flatten(), 1.0).mean()
    loss = _reconstruction(drawn, masks)
    more = (near + spread * apart) * len(masks)
    return Loss(loss.total + more, loss.count, loss.terms | {"used": used})


def plain_objective(model: MaskCodes, masks: Float[Tensor, "B 1 S S"]) -> Loss:
    """The same without codes, for the first steps: cells are decoded as they are."""
    cells = model.cells(masks)
    loss = _reconstruction(model.draw(cells), masks)
    return Loss(loss.total + SMALL * cells.square().mean() * len(masks), loss.count, loss.terms)


def _reconstruction(drawn: Float[Tensor, "B 1 S S"], masks: Float[Tensor, "B 1 S S"]) -> Loss:
    inside, truth = drawn > 0, masks > 0
    overlap = (inside & truth).sum((1, 2, 3)) / (inside | truth).sum((1, 2, 3)).clamp(min=1)
    total = F.mse_loss(drawn, masks) * len(masks)
    return Loss(total, len(masks), {"overlap": overlap.mean()})


KINDS = {"mask-codes": ModelKind(MaskCodesConfig, MaskCodes)}
