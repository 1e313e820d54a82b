"""The rejects table: one row for each row of the input that has no mask, and why."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

from wordmask.schemas.columns import Column, schema_of


class RejectCode(StrEnum):
    """Why a row was rejected. The list is closed; `remedy` says what the row's owner can do."""

    # The row has neither bytes nor a URI of an image.
    MISSING_IMAGE = "missing_image"
    # The URI leads to no file.
    IMAGE_NOT_FOUND = "image_not_found"
    # The server or the store refuses to give the image to whoever runs.
    IMAGE_FORBIDDEN = "image_forbidden"
    # A server did not answer, or a store gives its neighbours alone; it may another time.
    IMAGE_UNREACHABLE = "image_unreachable"
    # The image has no bytes or no pixels.
    IMAGE_EMPTY = "image_empty"
    # The bytes are no image in a format that can be decoded.
    IMAGE_UNREADABLE = "image_unreadable"
    # The file ends before the image does.
    IMAGE_TRUNCATED = "image_truncated"
    # More bytes or pixels than the settings allow.
    IMAGE_TOO_LARGE = "image_too_large"
    # The URI leads out of the allowed roots, or has a scheme that is not allowed.
    URI_NOT_ALLOWED = "uri_not_allowed"
    # A text column holds bytes that are not UTF-8.
    INVALID_TEXT = "invalid_text"
    # The query is null or blank, or has no words.
    EMPTY_QUERY = "empty_query"
    # The query has more tokens than the model takes.
    QUERY_TOO_LONG = "query_too_long"
    # A spatial reference is neither a point nor a box, or holds a null.
    BAD_SPATIAL_REF = "bad_spatial_ref"
    # A coordinate of a spatial reference lies outside 0..1, or a box ends before it begins.
    SPATIAL_REF_OUT_OF_RANGE = "spatial_ref_out_of_range"
    # An earlier row has the same row_id, and was answered or is in an earlier shard.
    DUPLICATE_ROW_ID = "duplicate_row_id"
    # The mode is another than "one".
    UNSUPPORTED_MODE = "unsupported_mode"
    # The model failed on this row, also by itself.
    MODEL_ERROR = "model_error"
    # Every process that worked on this row alone died.
    WORKER_KILLED = "worker_killed"

    @property
    def remedy(self) -> str:
        """What the row's owner can do."""
        return _REMEDIES[self]


_REMEDIES = {
    RejectCode.MISSING_IMAGE: "give the row an image: bytes, or a path that can be read",
    RejectCode.IMAGE_NOT_FOUND: (
        "check that the URI exists; relative ones start at the folder of the table"
    ),
    RejectCode.IMAGE_FORBIDDEN: (
        "let whoever runs read it; an https server may want --user-agent with a contact; then:"
        " wordmask retry OUTPUT --code image_forbidden"
    ),
    RejectCode.IMAGE_UNREACHABLE: (
        "the server did not answer, or the store gives other images but not this one; try later:"
        " wordmask retry OUTPUT --code image_unreachable"
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
    RejectCode.DUPLICATE_ROW_ID: "make row_id unique; an earlier row with it counts",
    RejectCode.UNSUPPORTED_MODE: 'set mode to "one" or leave it out',
    RejectCode.WORKER_KILLED: (
        "look at the row's image by itself: it ends the process that works on it; then report it"
    ),
    RejectCode.MODEL_ERROR: "report the row with its detail; the rows beside it are unharmed",
}

STRING = pa.string()
INT = pa.int32()
LONG = pa.int64()

COLUMNS = (
    Column("row_id", STRING, "the input's id, or one derived from place and content"),
    Column("row", LONG, "position in the shard; rows are accounted for by it"),
    Column("image_uri", STRING, "as in the input, its credentials hidden", True),
    Column("query", STRING, "the referring expression, as in the input", True),
    Column("code", STRING, "a `RejectCode`"),
    Column("detail", STRING, "what was found, without credentials"),
    Column("shard_id", STRING, "of the shard that the row belongs to"),
    Column("method_version", INT, "`METHOD_VERSION` of the code that rejected", True),
    Column("image_fingerprint", STRING, "of the object behind the URI, by its store", True),
)

REJECTS = schema_of(COLUMNS)
