"""A rejected row: why an input row has no mask, from a closed list, and what to do about it."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa


class RejectCode(StrEnum):
    """Why a row was rejected. `remedy` says what its owner can do."""

    MISSING_IMAGE = "missing_image"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_UNREACHABLE = "image_unreachable"
    IMAGE_EMPTY = "image_empty"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_LARGE = "image_too_large"
    URI_NOT_ALLOWED = "uri_not_allowed"
    INVALID_TEXT = "invalid_text"
    EMPTY_QUERY = "empty_query"
    QUERY_TOO_LONG = "query_too_long"
    BAD_SPATIAL_REF = "bad_spatial_ref"
    SPATIAL_REF_OUT_OF_RANGE = "spatial_ref_out_of_range"
    DUPLICATE_ROW_ID = "duplicate_row_id"
    UNSUPPORTED_MODE = "unsupported_mode"
    MODEL_ERROR = "model_error"
    WORKER_KILLED = "worker_killed"

    @property
    def remedy(self) -> str:
        return _REMEDIES[self]


_REMEDIES = {
    RejectCode.MISSING_IMAGE: "give the row an image: bytes, or a path that can be read",
    RejectCode.IMAGE_NOT_FOUND: (
        "check that the URI exists; relative ones start at the folder of the table"
    ),
    RejectCode.IMAGE_UNREACHABLE: (
        "the https server did not answer; try later: wordmask retry OUTPUT --code image_unreachable"
    ),
    RejectCode.IMAGE_EMPTY: "the image has no bytes or no pixels; export it again",
    RejectCode.IMAGE_UNREADABLE: "convert the image to JPEG, PNG or WebP",
    RejectCode.IMAGE_TRUNCATED: "the file ends early; fetch or export it again",
    RejectCode.IMAGE_TOO_LARGE: (
        "downscale the image (a run: or raise --max-image-pixels or --max-image-bytes)"
    ),
    RejectCode.URI_NOT_ALLOWED: (
        "name it with --allow-root if you trust it, or put images beside the table; --allow-https"
        " admits https://"
    ),
    RejectCode.INVALID_TEXT: "write the column's text as UTF-8",
    RejectCode.EMPTY_QUERY: "say in words what to segment",
    RejectCode.QUERY_TOO_LONG: "shorten the expression",
    RejectCode.BAD_SPATIAL_REF: "use points (x, y) or boxes (x_min, y_min, x_max, y_max)",
    RejectCode.SPATIAL_REF_OUT_OF_RANGE: "give references in unit of the image, 0..1",
    RejectCode.DUPLICATE_ROW_ID: "make row_id unique; the first row with it was segmented",
    RejectCode.UNSUPPORTED_MODE: 'set mode to "one" or leave it out',
    RejectCode.WORKER_KILLED: (
        "look at the row's image by itself: it ends the process that works on it; then report it"
    ),
    RejectCode.MODEL_ERROR: "report the row with its detail; the rows beside it are unharmed",
}

REJECTS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # position in the shard
        pa.field("image_uri", pa.string()),
        pa.field("query", pa.string()),
        pa.field("code", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
    ]
)
