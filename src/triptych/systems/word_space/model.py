"""Zero-shot classification by word vectors: Socher et al. 2013 (arXiv:1301.3666, NIPS) and DeViSE
(Frome et al., NIPS 2013).

Both map a picture's features into a space of word vectors learned from text alone, in which every
class is a point, with or without training pictures. Socher: a two-layer map trained by squared
error, a novelty detector, and separate classifiers for seen and unseen classes. DeViSE: a linear
map trained by a hinge rank loss, then fine-tuned together with the network, without a detector.

Dimensions: B pictures, C channels, H height, W width, E width of a word vector, K classes, S seen
and U unseen ones of them, M fitting pictures, N points, Q quantiles.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.nn.loss import Loss
from triptych.system import ModelKind
from triptych.systems.classifier.model import Classifier, ClassifierConfig, shift_randomly

QUANTILES = 201  # of the distances between a class's pictures and its word
CHUNK = 1024  # rows of a distance matrix in memory


@dataclass(frozen=True)
@bounded
class WordSpaceConfig:
    """The sizes of a model, and the classes it is trained on."""

    network: ClassifierConfig
    """With one group of labels: the seen classes in the order of `seen`."""
    seen: tuple[int, ...]
    """Indices of the classes that have training pictures; the others have a word only."""
    classes: int
    words: int
    """E, the width of a word vector."""
    method: Literal["socher", "devise"] = "socher"
    hidden: int = 200
    """Width of the hidden layer of Socher's map; DeViSE's map is linear."""
    margin: float = 0.1
    """Of DeViSE's hinge loss."""
    points: int = 2000
    """Mapped pictures of seen classes that the outlier detector keeps."""
    neighbours: int = 20
    significance: float = 3.0
    """LoOP's lambda, in standard deviations."""

    def __post_init__(self) -> None:
        inside = all(0 <= index < self.classes for index in self.seen)
        if not inside or len(set(self.seen)) < len(self.seen) or len(self.seen) < 2:
            raise ValueError(
                f"seen must be at least 2 different numbers below {self.classes}, not {self.seen}"
            )
        if self.network.groups != (len(self.seen),):
            raise ValueError(
                f"the network must have one group of {len(self.seen)} labels, as seen classes, not "
                f"{self.network.groups}"
            )
        require_at_least(self, 1, "words", "hidden", "neighbours")
        if self.points <= self.neighbours:
            raise ValueError(
                f"points must be more than the {self.neighbours} neighbours, not {self.points}"
            )

    @property
    def unseen(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.classes) if k not in self.seen)


class WordSpace(nn.Module):
    """A network, its map to word vectors, the words of all classes, and both novelty detectors."""

    words: Float[Tensor, "K E"]
    variance: Float[Tensor, " S"]
    radii: Float[Tensor, "S Q"]
    points: Float[Tensor, "N E"]
    spread: Float[Tensor, " N"]
    deviation: Float[Tensor, ""]

    def __init__(self, config: WordSpaceConfig):
        super().__init__()
        self.config = config
        self.network = Classifier(config.network)
        features, seen = config.network.widths[-1], len(config.seen)
        self.map: nn.Module
        if config.method == "socher":
            up, down = nn.Linear(features, config.hidden), nn.Linear(config.hidden, config.words)
            self.map = nn.Sequential(up, nn.Tanh(), down)
        else:
            self.map = nn.Linear(features, config.words, bias=False)
            # The loss changes it only along differences of seen words; in all other directions a
            # random start would remain, and bias the scores of unseen words.
            nn.init.zeros_(self.map.weight)
        self.register_buffer("words", torch.zeros(config.classes, config.words))
        self.register_buffer("variance", torch.zeros(seen))  # 0 until `fit_novelty`
        self.register_buffer("radii", torch.zeros(seen, QUANTILES))
        self.register_buffer("points", torch.zeros(config.points, config.words))
        self.register_buffer("spread", torch.zeros(config.points))
        self.register_buffer("deviation", torch.zeros(()))

    def set_words(self, words: Float[Tensor, "K E"]) -> None:
        """Set the word vectors of all classes; DeViSE scales them to unit length (section 3.1)."""
        if words.shape != self.words.shape:
            raise ValueError(f"words of shape {tuple(self.words.shape)}, not {tuple(words.shape)}")
        self.words.copy_(F.normalize(words) if self.config.method == "devise" else words)

    def embed(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """Map pictures into the space of word vectors."""
        mapped: Tensor = self.map(self.network.features(image))
        return mapped

    def scores(self, mapped: Float[Tensor, "B E"]) -> Float[Tensor, "B K"]:
        """Scores of all classes: minus the squared distance, or DeViSE's inner product."""
        if self.config.method == "devise":
            return mapped @ self.words.T
        return -torch.cdist(mapped, self.words).square()

    @torch.no_grad()
    def fit_novelty(self, mapped: Float[Tensor, "M E"], label: Int[Tensor, " M"]) -> None:
        """Fit both novelty detectors to mapped pictures of seen classes.

        `label` indexes all classes. Use pictures that the network was not trained on if possible:
        training pictures are nearer their words than others.
        """
        index = _seen_index(label, self.config.seen)
        gaussians = fit_gaussians(mapped, index, self.words[list(self.config.seen)])
        self.variance.copy_(gaussians.variance)
        self.radii.copy_(gaussians.radii)
        if len(mapped) < self.config.points:
            raise ValueError(
                f"the outlier detector needs {self.config.points} pictures and got only "
                f"{len(mapped)}: lower `points`"
            )
        rows = torch.linspace(0, len(mapped) - 1, self.config.points).round().long()
        outliers = fit_outliers(
            mapped[rows], self.config.neighbours, significance=self.config.significance
        )
        self.points.copy_(outliers.points)
        self.spread.copy_(outliers.spread)
        self.deviation.copy_(outliers.deviation)

    def novelty(
        self, mapped: Float[Tensor, "B E"], detector: Literal["gaussian", "outlier"]
    ) -> Float[Tensor, " B"]:
        """The novelty of pictures in [0, 1], by one of the two detectors of section 5."""
        if not bool(self.variance.all()):
            raise ValueError("the novelty detectors are not fitted: call `fit_novelty` first")
        if detector == "outlier":
            outliers = Outliers(self.points, self.spread, self.deviation)
            return outlier_probability(outliers, mapped, self.config.neighbours)
        words = self.words[list(self.config.seen)]
        return gaussian_novelty(Gaussians(words, self.variance, self.radii), mapped)

    def probabilities(
        self,
        image: Float[Tensor, "B C H W"],
        detector: Literal["gaussian", "outlier"] = "gaussian",
        threshold: float | None = 0.95,
    ) -> Float[Tensor, "B K"]:
        """Probabilities of all classes, as a mixture over novelty (Socher, equation 2).

        A picture whose novelty is above the threshold is of an unseen class; with None, novelty is
        the probability of that, as Socher uses the outlier detector.
        """
        features = self.network.features(image)
        mapped = self.map(features)
        novelty = self.novelty(mapped, detector)
        if threshold is not None:
            novelty = (novelty > threshold).float()
        (logits,) = self.network.logits(features)
        unseen = list(self.config.unseen)
        among_unseen = log_likelihoods(mapped, self.words[unseen], self.variance.mean())
        return mix_classes(
            logits.softmax(1), among_unseen.softmax(1), novelty, self.config.seen, unseen
        )


def objective(
    model: WordSpace,
    image: Float[Tensor, "B C H W"],
    label: Int[Tensor, " B"],
    *,
    fine_tune: bool = False,
    smoothing: float = 0.05,
    shift: int = 0,
) -> Loss:
    """The loss of the map and, without `fine_tune`, that of the network, summed over pictures.

    The network learns the seen classes by cross-entropy, while the map learns on detached features.
    With `fine_tune`, DeViSE's second stage, the rank loss alone trains both. Terms: `map`, the mean
    loss of the map, and `accuracy` of the network on seen classes.
    """
    config = model.config
    index = _seen_index(label, config.seen)
    features = model.network.features(shift_randomly(image, shift) if shift else image)
    mapped = model.map(features if fine_tune else features.detach()).float()
    seen = model.words[list(config.seen)]
    if config.method == "socher":
        map_loss = squared_error(mapped, index, seen)
    else:
        map_loss = rank_loss(mapped, index, seen, config.margin)
    (logits,) = model.network.logits(features)
    total = map_loss
    if not fine_tune:
        total = total + F.cross_entropy(
            logits.float(), index, reduction="sum", label_smoothing=smoothing
        )
    right = (logits.argmax(1) == index).float().mean()
    return Loss(total, len(image), {"map": map_loss.detach() / len(image), "accuracy": right})


def squared_error(
    mapped: Float[Tensor, "B E"], label: Int[Tensor, " B"], words: Float[Tensor, "S E"]
) -> Float[Tensor, ""]:
    """Squared distances of pictures from their words, summed (Socher, equation 1)."""
    return (mapped - words[label]).square().sum()


def rank_loss(
    mapped: Float[Tensor, "B E"],
    label: Int[Tensor, " B"],
    words: Float[Tensor, "S E"],
    margin: float = 0.1,
) -> Float[Tensor, ""]:
    """Hinge loss that ranks the right word above every wrong one by a margin (DeViSE, equation 1).

    `words` are unit length. Summed over wrong words and pictures.
    """
    similarity = mapped @ words.T  # (B, S)
    right = similarity.gather(1, label[:, None])
    hinge = F.relu(margin - right + similarity)
    return hinge.scatter(1, label[:, None], 0.0).sum()


class Gaussians(NamedTuple):
    """An isometric Gaussian around the word of each seen class (Socher, section 5, strategy 1)."""

    words: Float[Tensor, "S E"]
    variance: Float[Tensor, " S"]
    radii: Float[Tensor, "S Q"]
    """Quantiles of the distances between a class's pictures and its word, ascending."""


def fit_gaussians(
    mapped: Float[Tensor, "M E"], label: Int[Tensor, " M"], words: Float[Tensor, "S E"]
) -> Gaussians:
    """Maximum-likelihood variances of Gaussians whose means are the words."""
    counts = label.bincount(minlength=len(words))
    if not counts.all():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"no pictures of the seen classes {missing}, which need some to be fitted")
    shares = torch.linspace(0, 1, QUANTILES, device=mapped.device)
    variance, radii = [], []
    for k, word in enumerate(words):
        distance = (mapped[label == k] - word).norm(dim=1)
        variance.append(distance.square().mean() / words.shape[1])
        radii.append(distance.quantile(shares))
    return Gaussians(words, torch.stack(variance), torch.stack(radii))


def log_likelihoods(
    mapped: Float[Tensor, "B E"],
    words: Float[Tensor, "K E"],
    variance: Float[Tensor, "#K"] | Tensor,
) -> Float[Tensor, "B K"]:
    """Log density of each picture under the isometric Gaussian of each word."""
    squared = torch.cdist(mapped, words).square()
    return -(squared / variance + words.shape[1] * (2 * math.pi * variance).log()) / 2


def gaussian_novelty(gaussians: Gaussians, mapped: Float[Tensor, "B E"]) -> Float[Tensor, " B"]:
    """The smallest share, over seen classes, of a class's pictures that are nearer its word.

    Novelty above t means that the density of every seen class y is below a threshold T_y that a
    share t of its own pictures exceeds: Socher's indicator for all t at once.
    """
    distance = torch.cdist(mapped, gaussians.words)  # (B, S)
    nearer = torch.searchsorted(gaussians.radii, distance.T.contiguous())  # (S, B)
    return nearer.min(0).values / gaussians.radii.shape[1]


class Outliers(NamedTuple):
    """Points of seen classes and their statistics for LoOP (Kriegel et al., CIKM 2009)."""

    points: Float[Tensor, "N E"]
    spread: Float[Tensor, " N"]
    """Root mean square distance of each point from its neighbours (pdist without lambda)."""
    deviation: Float[Tensor, ""]
    """Lambda times the root mean square of the local outlier factors (nPLOF)."""


def fit_outliers(
    points: Float[Tensor, "N E"], neighbours: int = 20, *, significance: float = 3.0
) -> Outliers:
    """Statistics of the points of seen classes; the paper has k = 20 and lambda = 3."""
    if len(points) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more points than {len(points)}")
    distance, nearest = _nearest(points, points, neighbours + 1)
    spread = distance[:, 1:].square().mean(1).sqrt()  # the first is the point itself
    factor = spread / spread[nearest[:, 1:]].mean(1) - 1
    return Outliers(points, spread, significance * factor.square().mean().sqrt())


def outlier_probability(
    outliers: Outliers, mapped: Float[Tensor, "B E"], neighbours: int = 20
) -> Float[Tensor, " B"]:
    """LoOP: the probability that a picture is an outlier (Socher, section 5, strategy 2).

    Its distance from its neighbours is relative to theirs from their own, which makes dense and
    sparse regions comparable. The scale is Kriegel's, with the square root of two.
    """
    distance, nearest = _nearest(mapped, outliers.points, neighbours)
    spread = distance.square().mean(1).sqrt()
    factor = spread / outliers.spread[nearest].mean(1) - 1
    return torch.erf(factor / (outliers.deviation * math.sqrt(2))).clamp_min(0)


def mix_classes(
    among_seen: Float[Tensor, "B S"],
    among_unseen: Float[Tensor, "B U"],
    novelty: Float[Tensor, " B"],
    seen: "tuple[int, ...] | list[int]",
    unseen: "tuple[int, ...] | list[int]",
) -> Float[Tensor, "B K"]:
    """p(y) = p(y | seen) p(seen) + p(y | unseen) p(unseen): Socher, equation 2."""
    result = among_seen.new_zeros(len(among_seen), len(seen) + len(unseen))
    result[:, list(seen)] = among_seen * (1 - novelty[:, None])
    result[:, list(unseen)] = among_unseen * novelty[:, None]
    return result


def _nearest(
    queries: Float[Tensor, "B E"], points: Float[Tensor, "N E"], count: int
) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """Distances of the nearest points, ascending, and their indices."""
    nearest = [
        # By a matrix product, a point would not be at distance 0 from itself.
        torch.cdist(chunk, points, compute_mode="donot_use_mm_for_euclid_dist").topk(
            count, largest=False
        )
        for chunk in queries.split(CHUNK)
    ]
    return torch.cat([n.values for n in nearest]), torch.cat([n.indices for n in nearest])


def _seen_index(label: Int[Tensor, " B"], seen: tuple[int, ...]) -> Int[Tensor, " B"]:
    """Labels as indices of the seen classes."""
    is_seen: Bool[Tensor, "B S"] = label[:, None] == torch.tensor(seen, device=label.device)
    if not bool(is_seen.any(1).all()):
        unseen = sorted(set(label.tolist()) - set(seen))
        raise ValueError(f"labels {unseen} are not among the seen classes {list(seen)}")
    return is_seen.int().argmax(1)


KINDS = {"word-space": ModelKind(WordSpaceConfig, WordSpace)}
