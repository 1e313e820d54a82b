"""A row on its way through a shard: as it was read, and as it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from wordmask.model.types import Segmentation
from wordmask.schemas.rejects import RejectCode


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the input table.

    `position` counts the rows of the shard from 0. The image is in `image_bytes` or behind
    `image_uri`; both are None where the table has none. `carried` holds the columns that are copied
    to the masks. `invalid_utf8` names the columns whose text is not UTF-8.
    """

    position: int
    row_id: str
    image_bytes: bytes | None
    image_uri: str | None
    query: str | None
    spatial_refs: tuple[tuple[float | None, ...] | None, ...]
    mode: str | None
    carried: dict[str, Any]
    invalid_utf8: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A row that ended as a mask of its image.

    `image_id`, `height` and `width` (pixels) describe the image, `image_fingerprint` the object
    behind its URI. `copied`: an earlier run computed the mask.
    """

    row: Row
    image_id: str
    height: int
    width: int
    segmentation: Segmentation
    copied: bool = False
    image_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that ended without a mask, and why.

    `image_fingerprint`: of the object behind its URI, where the image was read.
    """

    row: Row
    code: RejectCode
    detail: str
    image_fingerprint: str | None = None


RowResult = Mask | Reject


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The masks and the rejects of a shard, each in the order of the rows.

    `infer_seconds`: the model worked on the rows. `idle_seconds`: the model was free for the shard
    but had no image to work on.
    """

    masks: tuple[Mask, ...]
    rejects: tuple[Reject, ...]
    infer_seconds: float = 0.0
    idle_seconds: float = 0.0

    @classmethod
    def of(
        cls,
        results: Iterable[RowResult],
        *,
        infer_seconds: float = 0.0,
        idle_seconds: float = 0.0,
    ) -> Self:
        """Sort the results of rows, which come in any order, into masks and rejects."""
        in_order = sorted(results, key=lambda result: result.row.position)
        return cls(
            masks=tuple(result for result in in_order if isinstance(result, Mask)),
            rejects=tuple(result for result in in_order if isinstance(result, Reject)),
            infer_seconds=infer_seconds,
            idle_seconds=idle_seconds,
        )

    def plus(self, other: ShardResult) -> Self:
        """Return the results and the times of both."""
        return self.of(
            [*self.results, *other.results],
            infer_seconds=self.infer_seconds + other.infer_seconds,
            idle_seconds=self.idle_seconds + other.idle_seconds,
        )

    def including(self, results: Iterable[RowResult]) -> Self:
        """Return these results and others, with the times of these."""
        return self.of(
            [*self.results, *results],
            infer_seconds=self.infer_seconds,
            idle_seconds=self.idle_seconds,
        )

    @property
    def results(self) -> list[RowResult]:
        """The masks, then the rejects."""
        return [*self.masks, *self.rejects]

    @property
    def copied(self) -> int:
        return sum(mask.copied for mask in self.masks)

    @property
    def absent(self) -> int:
        return sum(mask.segmentation.status == "absent" for mask in self.masks)
