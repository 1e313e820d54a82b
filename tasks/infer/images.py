"""Read and decode each distinct image of a shard once, a little ahead of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from wordmask.model.runtime.prefetch import buffered_map
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.decode import check_header, decode
from wordmask.tasks.images.fetch import image_bytes
from wordmask.tasks.images.fetched import Fetched
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.images.uris import ImageError
from wordmask.tasks.infer.faults import reject_image
from wordmask.tasks.infer.hints import copied_mask
from wordmask.tasks.infer.neighbours import ImageReader
from wordmask.tasks.output.reuse import Earlier, row_key
from wordmask.tasks.rows import Row, RowResult
from wordmask.tasks.telemetry import metrics

IMAGES_AHEAD = 16  # read, and decoded if they are small, beside those that the model has
PIXELS_AHEAD = 1 << 26  # decoded
MIN_PIXELS = PIXELS_AHEAD // IMAGES_AHEAD  # that an image counts for: so few images are small ones


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image as it was read, the size that its header claims, and the rows about it."""

    image_id: str
    data: bytes
    n_pixels: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An RGB image (height, width, 3), and the rows about it."""

    image_id: str
    pixels: NDArray[np.uint8]
    rows: tuple[Row, ...]

    @property
    def mask_bytes(self) -> int:
        """Bytes of one row's mask before it is compressed."""
        return self.pixels.nbytes // 3


# What became of the rows of one image: those that ended already, and the image for the others,
# None if there are none.
Read = tuple[list[RowResult], EncodedImage | None]
Decoded = tuple[list[RowResult], DecodedImage | None]


class ImageLoader:
    """Reads and decodes the images of a shard in threads."""

    def __init__(
        self,
        shard: Shard,
        settings: SegmentSettings,
        pool: ThreadPoolExecutor,
        reusable: Mapping[str, Earlier],
        client: HttpsClient,
    ) -> None:
        self._shard = shard
        self._settings = settings
        self._pool = pool
        self._reusable = reusable
        self._client = client
        self.fingerprints: dict[int, str | None] = {}  # by position, of the images that were read

    def load(self, rows: Sequence[Row]) -> Iterator[Decoded]:
        """Start to load the distinct images of rows, in the order of their first rows.

        At most `IMAGES_AHEAD` images are read and `PIXELS_AHEAD` pixels decoded before the caller
        takes them, but always one image.

        Returns:
            For each image the results of the rows that end without the model, copied masks and
            rejects, and the decoded image for the others. Raises the machine's faults.
        """
        groups = group_by_image(rows)
        reader = ImageReader(
            [group[0] for group in groups], self._shard, self._settings, self._fetch
        )
        read = partial(self._read, reader)
        images = buffered_map(self._pool, read, groups, IMAGES_AHEAD)
        return buffered_map(self._pool, self._decode, images, PIXELS_AHEAD, weight=_weight)

    def _fetch(self, row: Row) -> Fetched:
        return image_bytes(row, self._shard, self._settings, self._client)

    def _read(self, reader: ImageReader[Fetched], rows: list[Row]) -> Read:
        try:
            data, fingerprint = reader.read(rows[0])
            self._note_fingerprint(rows, fingerprint)
            metrics.READ.inc(len(data))
            # Limits may be lower than those of the run whose answers could be copied.
            n_pixels = check_header(data, self._settings)
        except Exception as error:
            if isinstance(error, ImageError) and error.fingerprint:
                self._note_fingerprint(rows, error.fingerprint)
            return [*reject_image(error, rows)], None
        image_id = hashlib.sha256(data).hexdigest()[:32]
        copied, unanswered = self._reuse(rows, image_id)
        if not unanswered:
            return copied, None
        image = EncodedImage(
            image_id=image_id, data=data, n_pixels=n_pixels, rows=tuple(unanswered)
        )
        return copied, image

    def _note_fingerprint(self, rows: list[Row], fingerprint: str | None) -> None:
        for row in rows:
            self.fingerprints[row.position] = fingerprint

    def _reuse(self, rows: list[Row], image_id: str) -> tuple[list[RowResult], list[Row]]:
        """Copy the masks of the rows that an earlier run answered. The other rows are left."""
        if not self._reusable:
            return [], rows
        copied: list[RowResult] = []
        unanswered: list[Row] = []
        for row in rows:
            answer = self._reusable.get(row_key(row, image_id))
            if answer is None:
                unanswered.append(row)
            else:
                copied.append(copied_mask(row, answer))
        return copied, unanswered

    def _decode(self, read: Read) -> Decoded:
        results, image = read
        if image is None:
            return results, None
        try:
            pixels = decode(image.data, self._settings)
        except Exception as error:
            return [*results, *reject_image(error, image.rows)], None
        return results, DecodedImage(image_id=image.image_id, pixels=pixels, rows=image.rows)


def group_by_image(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows by the bytes or the URI of their image, in the order of their first rows."""
    groups: dict[bytes | str, list[Row]] = {}
    for row in rows:
        key: bytes | str = str(row.image_uri)
        if row.image_bytes is not None:
            key = hashlib.sha256(row.image_bytes).digest()
        groups.setdefault(key, []).append(row)
    return [*groups.values()]


def _weight(read: Read) -> int:
    """Return the pixels that an image may fill in memory."""
    _, image = read
    if image is None:
        return MIN_PIXELS
    return max(image.n_pixels, MIN_PIXELS)
