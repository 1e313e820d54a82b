"""The masks table: one row for each answer to a row of the input.

Every column has a fixed type from the first row on. Three frames are in use: pixels of the image
with its EXIF orientation applied; unit of the image, where x and y run from 0 to 1; and unit of a
box, where they do so within the box.
"""

from __future__ import annotations

import pyarrow as pa

from wordmask.schemas.columns import Column, schema_of

# A mask in COCO's compressed form: [height, width] in pixels, and the runs as ASCII text.
RLE = pa.struct([pa.field("size", pa.list_(pa.int32(), 2)), pa.field("counts", pa.string())])
STRING = pa.string()
INT = pa.int32()
LONG = pa.int64()
SCORE = pa.float32()
FLAG = pa.bool_()
PIXEL_BOX = pa.list_(pa.int32(), 4)
UNIT_BOX = pa.list_(pa.float32(), 4)

SCORE_COLUMNS = (
    Column("predicted_iou", SCORE, "the refiner's own estimate of the IoU, 0..1", True),
    Column("path_logprob", SCORE, "mean log-probability of the path's tokens", True),
    Column("coarse_refined_iou", SCORE, "IoU of the coarse and the refined mask", True),
    Column("iteration_stability", SCORE, "IoU of the last two refinement steps", True),
    Column("trust", SCORE, "summary of the scores, 0..1, not calibrated", True),
)
FLAG_COLUMNS = (
    Column("refined", FLAG, "the mask is the refiner's, not the coarse one"),
    Column("salvaged", FLAG, "the path was malformed; its whole commands were used"),
    Column("truncated", FLAG, "the token limit cut the path short"),
)
COLUMNS = (
    Column("row_id", STRING, "the input's id, or one derived from place and content"),
    Column("row", LONG, "position in the shard; rows are accounted for by it"),
    Column("instance", INT, "number of the mask within its row, from 0"),
    Column("row_key", STRING, "hash of the image's bytes, the query and the references"),
    Column("image_id", STRING, "hash of the image's bytes"),
    Column("image_uri", STRING, "as in the input, its credentials hidden", True),
    Column("height", INT, "of the image, in pixels"),
    Column("width", INT, "of the image, in pixels"),
    Column("query", STRING, "the referring expression"),
    Column("status", STRING, '"mask", or "absent" where the expression names nothing'),
    Column("mask", RLE, "the mask, empty where absent"),
    Column("bbox", PIXEL_BOX, "of the mask: x, y, width, height in pixels"),
    Column("area", LONG, "of the mask, in pixels"),
    Column("path", STRING, "SVG outline of the mask, in pixels"),
    Column("coarse_path", STRING, "path that the decoder drew, in unit of its box"),
    Column("coarse_bbox", UNIT_BOX, "that box, clipped to the image: cx, cy, w, h in unit of it"),
    *SCORE_COLUMNS,
    *FLAG_COLUMNS,
    Column("path_problem", STRING, "the fault of a salvaged path", True),
    Column("n_path_tokens", INT, "tokens of the path"),
    Column("model_revision", STRING, "of the model that answered"),
    Column("settings_hash", STRING, "of the settings that answers depend on"),
    Column("shard_id", STRING, "of the shard that the row belongs to"),
    Column("method_version", INT, "`METHOD_VERSION` of the code that answered", True),
    Column("image_fingerprint", STRING, "of the object behind the URI, by its store", True),
)

SCORES = tuple(column.name for column in SCORE_COLUMNS)
FLAGS = tuple(column.name for column in FLAG_COLUMNS)
MASKS = schema_of(COLUMNS)
