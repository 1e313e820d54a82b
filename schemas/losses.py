"""Records of what a run lacks of its input: files not read, kept as they were or gone, and gaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydantic import Field

from wordmask.schemas.settings import Frozen


class Unusable(Frozen):
    """A file of the input that no run can use."""

    name: str = Field(description="relative to the input")
    rows: int | None = Field(description="None: not even its footer can be read")
    why: str = Field(description="what is wrong with it, and the remedy")


class LeftOut(Frozen):
    """Files that lie in the input and are not read, for one reason."""

    why: str = Field(description="what they are")
    files: int
    names: tuple[str, ...] = Field(description="of the first few, relative to the input")

    def __str__(self) -> str:
        """How many there are, what they are, and the first names."""
        names = ", ".join(self.names)
        if self.files == 1:
            return f"1 file, {self.why}: {names}"
        if self.files > len(self.names):
            names += ", ..."
        return f"{self.files:,} files, {self.why}: {names}"


class Gap(Frozen):
    """Rows of an input file that are in neither masks nor rejects, as their shard failed."""

    name: str = Field(description="the file relative to the input")
    first_row: int = Field(description="index in the file of the first row")
    rows: int
    reason: str = Field(description="what failed, without credentials")

    def __str__(self) -> str:
        """File, rows and reason, for people."""
        return f"{self.name} rows {self.first_row}-{self.first_row + self.rows - 1}: {self.reason}"


class KeptFile(Frozen):
    """A file that changed during the run, whose rows are those of the run before."""

    name: str = Field(description="the file relative to the input")
    fingerprint: str = Field(description="of the version that is published")
    rows: int = Field(description="of that version")


class Vanished(Frozen):
    """Files of the newest published run that the input does not have any more."""

    files: int = 0
    rows: int = 0
    share: float = Field(0.0, description="of the rows of that run, 0..1")
    names: tuple[str, ...] = Field((), description="of the first files, relative to the input")
    returned: int = Field(
        0, description="files of these that were there again before the run was published"
    )

    def __str__(self) -> str:
        """Files, rows and the first names, for people."""
        more = ""
        if self.files > len(self.names):
            more = ", ..."
        counts = f"{self.files:,} files with {self.rows:,} rows ({self.share:.1%})"
        text = f"{counts}: {', '.join(self.names)}{more}"
        if self.returned:
            text += f". {self.returned:,} are there again: the listing was short, so run again"
        return text


class RowSpan(NamedTuple):
    """Rows first..first+rows of a file."""

    first: int
    rows: int


def uncovered(spans: Iterable[RowSpan]) -> Iterator[str]:
    """Yield the rows of a file that are in none of the spans, or in several."""
    next_row = 0
    for span in sorted(spans):
        if span.first > next_row:
            yield f"rows {next_row}-{span.first - 1} are in no shard and no named gap"
        if span.first < next_row:
            yield f"rows {span.first}-{next_row - 1} are in two shards or gaps"
        next_row = max(next_row, span.first + span.rows)
