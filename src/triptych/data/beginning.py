"""The first pictures of a source as a source of their own: a finite part of an endless one."""

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.data.source import Columns, Source
from triptych.data.table import Table


def beginning(source: Source, count: int) -> Source:
    """The first `count` pictures.

    Raises:
        ValueError: there are not so many.
    """
    if source.length is not None and count > source.length:
        raise ValueError(f"{source.name!r} has {source.length:,} pictures, not {count:,}")
    return source.part(range(count)) if isinstance(source, Table) else Beginning(source, count)


@dataclass(frozen=True)
class Beginning:
    """The first pictures of a source that is drawn, as a source of their own (`Source`)."""

    source: Source
    length: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def split(self) -> str:
        return self.source.split

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def attributes(self) -> tuple[str, ...]:
        return self.source.attributes

    @property
    def vector(self) -> tuple[str, ...]:
        return self.source.vector

    @property
    def captioned(self) -> bool:
        return self.source.captioned

    def read(self, indices: Sequence[int]) -> Columns:
        return self.source.read(indices)
