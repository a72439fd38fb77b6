"""Arithmetic of CLIP embeddings: spherical interpolation, text differences, principal components.

Dimensions: B pictures, E width of embeddings, K components, N training embeddings.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def slerp(
    start: Float[Tensor, "*B E"], end: Float[Tensor, "*B E"], share: float
) -> Float[Tensor, "*B E"]:
    """The vector at a share of the angle from one to the other, on the sphere; its length is
    interpolated too. The same formula serves noise, whose length is nearly constant.
    """
    lengths = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    a, b = start / lengths[0], end / lengths[1]
    angle = torch.acos((a * b).sum(-1, keepdim=True).clamp(-1, 1))
    far = angle.sin() > 1e-6
    safe = torch.where(far, angle, torch.ones_like(angle))
    turned = (torch.sin((1 - share) * safe) * a + torch.sin(share * safe) * b) / torch.sin(safe)
    direction = torch.where(far, turned, a)
    return direction * torch.lerp(lengths[0], lengths[1], share)


def text_difference(
    image: Float[Tensor, "B E"],
    before: Float[Tensor, "B E"],
    after: Float[Tensor, "B E"],
    share: float,
) -> Float[Tensor, "B E"]:
    """The embedding turned towards the direction from one text to another (section 3.3 of the
    paper, which turns by shares of 0.25 to 0.5); its length stays.
    """
    length = image.norm(dim=-1, keepdim=True)
    direction = F.normalize(after - before, dim=-1) * length
    return slerp(image, direction, share)


class PrincipalComponents(nn.Module):
    """Mean and principal directions of embeddings, those of the largest variance first."""

    mean: Tensor
    directions: Tensor
    variances: Tensor

    def __init__(self, dim: int, components: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("directions", torch.zeros(components, dim))
        self.register_buffer("variances", torch.zeros(components))

    def project(
        self, image: Float[Tensor, "B E"], components: int | None = None
    ) -> Float[Tensor, "B E"]:
        """The nearest embeddings within the mean and the first `components` directions."""
        directions = self.directions[:components]
        return self.mean + (image - self.mean) @ directions.T @ directions


def principal_components(
    embeddings: Float[Tensor, "N E"], share: float = 1.0
) -> PrincipalComponents:
    """The components of these embeddings: as few as have this share of the variance.

    A direction's sign is that of its largest number, so that the same embeddings give the same
    components.

    Raises:
        ValueError: the share is not above 0 up to 1, or there are fewer than two embeddings.
    """
    if not 0 < share <= 1 or len(embeddings) < 2:
        raise ValueError(
            f"components are of at least two embeddings and of a share above 0 up to 1, not "
            f"{len(embeddings)} and {share}"
        )
    mean = embeddings.double().mean(0)
    centred = embeddings.double() - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / (len(embeddings) - 1))
    variances, directions = variances.flip(0).clamp(min=0), directions.T.flip(0)
    explained = variances.cumsum(0) / variances.sum()
    # a rounding error below the whole variance is the whole
    count = int((explained < share - 1e-9).sum()) + 1
    count = min(count, len(variances))
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    found = PrincipalComponents(embeddings.shape[1], count)
    found.mean.copy_(mean)
    found.directions.copy_(directions[:count])
    found.variances.copy_(variances[:count])
    return found
