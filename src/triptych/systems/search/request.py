"""The request for a search among the pictures of a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from triptych.fields import set_fields
from triptych.given import DataName, FileName, InMemory, ModelName, Texts, rename, take_texts
from triptych.vision.given_pictures import Picture, Pictures, take_pictures

if TYPE_CHECKING:
    WeightedPictures = Pictures | Sequence[Picture | tuple[Picture, float]]
else:  # what a request keeps
    WeightedPictures = Pictures


@dataclass(frozen=True)
class Search:
    """Find pictures of a folder by texts, by pictures, or by weighted sums of both.

    A text or picture written as (it:0.5) has half the weight; in Python a picture and its weight
    may also be a pair.
    """

    folder: DataName
    """The folder of pictures, subfolders included."""
    text: Texts = ()
    """What the pictures show."""
    image: WeightedPictures = ()
    """Pictures to find similar ones of."""
    minus: Texts = ()
    """Texts to subtract from the query."""
    minus_image: WeightedPictures = ()
    """Pictures to subtract from the query."""
    model: ModelName = "runs/clip"
    """A CLIP or SigLIP: a run folder, a published checkpoint, OWNER/NAME on the hub, or a name such
    as clip-b32.
    """
    k: int = 10
    """Number of pictures to find."""
    duplicates: float | None = None
    """Find groups of near duplicates instead: cosines of at least this, such as 0.95."""
    index: FileName = ""
    """The folder of the index, which is computed once; empty for one in the user's cache."""
    backend: Literal["auto", "exact", "faiss"] = "auto"
    """auto is exact up to 300,000 pictures, and uses faiss, if it is installed, for more."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            text=take_texts("text", self.text),
            image=_take_weighted("image", self.image),
            minus=take_texts("minus", self.minus),
            minus_image=_take_weighted("minus_image", self.minus_image),
        )
        if not 1 <= self.k <= 100_000:
            raise ValueError(f"k must be 1 to 100000, not {self.k}")
        if self.duplicates is not None and not 0 < self.duplicates <= 1:
            raise ValueError(f"duplicates must be a cosine in (0, 1], not {self.duplicates}")
        query = self.text or self.image or self.minus or self.minus_image
        if self.duplicates is not None and query:
            raise ValueError("duplicates and a query exclude each other: leave out one of them")
        if query and not (self.text or self.image):
            raise ValueError("the query only subtracts: add a text or an image to look for")


def _take_weighted(name: str, given: Any) -> tuple[str, ...]:
    """Pictures as a request keeps them, those with a weight in brackets: `(a.jpg:0.5)`.

    Raises:
        ValueError: as `take_pictures`, or a weight is no number of at least 0.
    """
    if not isinstance(given, list | tuple):
        return take_pictures(name, given)
    pairs = [one if isinstance(one, tuple) and len(one) == 2 else (one, None) for one in given]
    kept = take_pictures(name, [picture for picture, _ in pairs])
    return tuple(map(_weigh, [name] * len(kept), kept, [weight for _, weight in pairs]))


def _weigh(name: str, picture: str, weight: float | None) -> str:
    if weight is None:
        return picture
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1e6:
        raise ValueError(f"{name}: the weight of a picture is 0 to 1000000, not {weight!r}")
    text = f"({picture}:{weight:.6f})"
    return rename(picture, text) if isinstance(picture, InMemory) else text
