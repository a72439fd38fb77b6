"""Classes never seen in a picture, by their words: Socher et al. 2013 (arXiv:1301.3666, NIPS) and
DeViSE (Frome et al., NIPS 2013).

Both map a picture's features into a space of word vectors that was learned from text alone, so a
class is a point there whether pictures of it were at hand or not. Socher: a two-layer map by
squared error, a detector of novelty, and one model for seen classes beside another for unseen ones.
DeViSE: a linear map by a hinge rank loss, after which the network itself is tuned; nothing tells
seen from unseen.

Dimensions: B pictures, C channels, H height, W width, D features, E numbers of a word vector,
K classes, S seen and U unseen ones of them, N points, Q quantiles.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.loss import Loss
from triptych.system import ModelKind
from triptych.systems.classifier.model import Classifier, ClassifierConfig, shift_randomly

QUANTILES = 201  # of the distances of a class's pictures from its word
CHUNK = 1024  # points whose distances to all others are in memory at once


@dataclass(frozen=True)
class WordSpaceConfig:
    """Size of a model and which classes it has pictures of."""

    network: ClassifierConfig
    """Its one group has a label for each seen class, in the order of `seen`."""
    seen: tuple[int, ...]
    """Indices of the classes that were trained on; the others are known by their words only."""
    classes: int
    words: int
    """E: how many numbers a word vector has."""
    method: Literal["socher", "devise"] = "socher"
    hidden: int = 200
    """Width of Socher's hidden layer; DeViSE's map is linear."""
    margin: float = 0.1
    """Of DeViSE's hinge."""
    points: int = 2000
    """How many mapped pictures of seen classes the outlier detector keeps."""
    neighbours: int = 20
    significance: float = 3.0
    """LoOP's lambda: how many standard deviations make an outlier."""

    def __post_init__(self) -> None:
        inside = all(0 <= index < self.classes for index in self.seen)
        if not inside or len(set(self.seen)) < len(self.seen) or len(self.seen) < 2:
            raise ValueError(
                f"seen must be at least 2 different numbers below {self.classes}, not {self.seen}"
            )
        if self.network.groups != (len(self.seen),):
            raise ValueError(
                f"the network must tell the {len(self.seen)} seen classes apart, not "
                f"{self.network.groups}"
            )
        for name in ("words", "hidden", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.points <= self.neighbours:
            raise ValueError(f"points must be more than {self.neighbours} neighbours")

    @property
    def unseen(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.classes) if k not in self.seen)


class WordSpace(nn.Module):
    """Pictures to points among words, with everything that classes are told from."""

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
            # The loss moves it only in directions that differ between seen words. In all others a
            # random start would stay, and speak for the unseen words.
            nn.init.zeros_(self.map.weight)
        self.register_buffer("words", torch.zeros(config.classes, config.words))
        self.register_buffer("variance", torch.zeros(seen))  # zero until detectors are fitted
        self.register_buffer("radii", torch.zeros(seen, QUANTILES))
        self.register_buffer("points", torch.zeros(config.points, config.words))
        self.register_buffer("spread", torch.zeros(config.points))
        self.register_buffer("deviation", torch.zeros(()))

    def set_words(self, words: Float[Tensor, "K E"]) -> None:
        """Give every class its word vector; DeViSE's are scaled to unit length (section 3.1)."""
        if words.shape != self.words.shape:
            raise ValueError(f"words of shape {tuple(self.words.shape)}, not {tuple(words.shape)}")
        self.words.copy_(F.normalize(words) if self.config.method == "devise" else words)

    def embed(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """Where pictures lie among the words."""
        mapped: Tensor = self.map(self.network.features(image))
        return mapped

    def scores(self, mapped: Float[Tensor, "B E"]) -> Float[Tensor, "B K"]:
        """How near each word is: minus the squared distance, or DeViSE's inner product."""
        if self.config.method == "devise":
            return mapped @ self.words.T
        return -torch.cdist(mapped, self.words).square()

    @torch.no_grad()
    def fit_novelty(self, mapped: Float[Tensor, "M E"], label: Int[Tensor, " M"]) -> None:
        """Learn both detectors of novelty from mapped pictures of seen classes.

        `label` indexes all classes. Take pictures that the network was not trained on, if there
        are any to spare: trained ones lie nearer their words than new ones will.
        """
        place = _places(label, self.config.seen)
        gaussians = fit_gaussians(mapped, place, self.words[list(self.config.seen)])
        self.variance.copy_(gaussians.variance)
        self.radii.copy_(gaussians.radii)
        if len(mapped) < self.config.points:
            raise ValueError(
                f"the outlier detector keeps {self.config.points} points and got only "
                f"{len(mapped)} pictures: lower `points`"
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
        """How novel pictures are, in [0, 1], by one of the two detectors of section 5."""
        if not bool(self.variance.all()):
            raise ValueError("novelty is unknown before `fit_novelty`")
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
        """Over all classes, seen and unseen, by the mixture over novelty (Socher, equation 2).

        With a threshold, a picture is of an unseen class exactly where its novelty is above it;
        None takes novelty itself as the probability, as Socher does with the outlier detector.
        """
        features = self.network.features(image)
        mapped = self.map(features)
        novelty = self.novelty(mapped, detector)
        if threshold is not None:
            novelty = (novelty > threshold).float()
        (logits,) = self.network.logits(features)
        unseen = list(self.config.unseen)
        among_unseen = log_likelihoods(mapped, self.words[unseen], self.variance.mean())
        return mixture(
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
    """The map's loss, summed over pictures, and until `fine_tune` the network's own.

    The network learns the seen classes by cross-entropy while the map learns on features that it
    cannot change. With `fine_tune`, DeViSE's second stage, the rank loss alone moves both.
    Terms: `map`, the mean loss of the map, and `accuracy`, of the network among seen classes.
    """
    config = model.config
    place = _places(label, config.seen)
    features = model.network.features(shift_randomly(image, shift) if shift else image)
    mapped = model.map(features if fine_tune else features.detach()).float()
    seen = model.words[list(config.seen)]
    if config.method == "socher":
        of_map = squared_error(mapped, place, seen)
    else:
        of_map = rank_loss(mapped, place, seen, config.margin)
    (logits,) = model.network.logits(features)
    total = of_map
    if not fine_tune:
        total = total + F.cross_entropy(
            logits.float(), place, reduction="sum", label_smoothing=smoothing
        )
    right = (logits.argmax(1) == place).float().mean()
    return Loss(total, len(image), {"map": of_map.detach() / len(image), "accuracy": right})


def squared_error(
    mapped: Float[Tensor, "B E"], label: Int[Tensor, " B"], words: Float[Tensor, "S E"]
) -> Float[Tensor, ""]:
    """Squared distance of pictures from their words, summed over both (Socher, equation 1)."""
    return (mapped - words[label]).square().sum()


def rank_loss(
    mapped: Float[Tensor, "B E"],
    label: Int[Tensor, " B"],
    words: Float[Tensor, "S E"],
    margin: float = 0.1,
) -> Float[Tensor, ""]:
    """Every wrong word must be less like the picture than the right one, by a margin (DeViSE,
    equation 1).

    `words` are unit length; likeness is the inner product. Summed over wrong words and pictures.
    """
    likeness = mapped @ words.T  # (B, S)
    right = likeness.gather(1, label[:, None])
    hinge = F.relu(margin - right + likeness)
    return hinge.scatter(1, label[:, None], 0.0).sum()


class Gaussians(NamedTuple):
    """An isometric Gaussian around the word of each seen class (Socher, section 5, strategy 1)."""

    words: Float[Tensor, "S E"]
    variance: Float[Tensor, " S"]
    radii: Float[Tensor, "S Q"]
    """Quantiles of the distances of a class's own pictures from its word, ascending."""


def fit_gaussians(
    mapped: Float[Tensor, "M E"], label: Int[Tensor, " M"], words: Float[Tensor, "S E"]
) -> Gaussians:
    """The variance that makes the mapped pictures of each class most likely, its mean given."""
    counts = label.bincount(minlength=len(words))
    if not counts.all():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"no pictures of the seen classes {missing} to fit a Gaussian on")
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
    """The smallest share, over seen classes, of a class's own pictures that lie nearer its word.

    Novelty above t says that the density is below a threshold T_y for every seen class y, where
    T_y is chosen so that a share t of that class's pictures stays above it: Socher's indicator
    for every t at once.
    """
    distance = torch.cdist(mapped, gaussians.words)  # (B, S)
    nearer = torch.searchsorted(gaussians.radii, distance.T.contiguous())  # (S, B)
    return nearer.min(0).values / gaussians.radii.shape[1]


class Outliers(NamedTuple):
    """Points of seen classes with what LoOP knows of them (Kriegel et al., CIKM 2009)."""

    points: Float[Tensor, "N E"]
    spread: Float[Tensor, " N"]
    """Root mean square distance of each point from its nearest others (pdist without lambda)."""
    deviation: Float[Tensor, ""]
    """Lambda times the root mean square of the local outlier factors (nPLOF)."""


def fit_outliers(
    points: Float[Tensor, "N E"], neighbours: int = 20, *, significance: float = 3.0
) -> Outliers:
    """What is usual among the points of seen classes; the paper's k = 20 and lambda = 3."""
    if len(points) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more points than {len(points)}")
    distance, nearest = _nearest(points, points, neighbours + 1)
    spread = distance[:, 1:].square().mean(1).sqrt()  # without the point itself
    factor = spread / spread[nearest[:, 1:]].mean(1) - 1
    return Outliers(points, spread, significance * factor.square().mean().sqrt())


def outlier_probability(
    outliers: Outliers, mapped: Float[Tensor, "B E"], neighbours: int = 20
) -> Float[Tensor, " B"]:
    """LoOP: how probably a picture lies outside the seen ones (Socher, section 5, strategy 2).

    Its distance from its nearest seen points is compared with theirs from one another, so dense
    and sparse regions count alike. The scale is Kriegel's, with the square root of two.
    """
    distance, nearest = _nearest(mapped, outliers.points, neighbours)
    spread = distance.square().mean(1).sqrt()
    factor = spread / outliers.spread[nearest].mean(1) - 1
    return torch.erf(factor / (outliers.deviation * math.sqrt(2))).clamp_min(0)


def mixture(
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
    """Distances of the nearest points, ascending, and which they are."""
    found = [
        # The exact form: through a matrix product, a point is not at distance 0 from itself.
        torch.cdist(chunk, points, compute_mode="donot_use_mm_for_euclid_dist").topk(
            count, largest=False
        )
        for chunk in queries.split(CHUNK)
    ]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _places(label: Int[Tensor, " B"], seen: tuple[int, ...]) -> Int[Tensor, " B"]:
    """Labels as positions among the seen classes."""
    is_seen: Bool[Tensor, "B S"] = label[:, None] == torch.tensor(seen, device=label.device)
    if not bool(is_seen.any(1).all()):
        strange = sorted(set(label.tolist()) - set(seen))
        raise ValueError(f"labels {strange} are not of the seen classes {list(seen)}")
    return is_seen.int().argmax(1)


KINDS = {"word-space": ModelKind(WordSpaceConfig, WordSpace)}
