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

SCORE_COLUMNS = (
    Column("predicted_iou", pa.float32(), "the refiner's own estimate of the IoU, 0..1", True),
    Column("path_logprob", pa.float32(), "mean log-probability of the path's tokens", True),
    Column("coarse_refined_iou", pa.float32(), "IoU of the coarse and the refined mask", True),
    Column("iteration_stability", pa.float32(), "IoU of the last two refinement steps", True),
    Column("trust", pa.float32(), "summary of the scores, 0..1, not calibrated", True),
)
FLAG_COLUMNS = (
    Column("refined", pa.bool_(), "the mask is the refiner's, not the coarse one"),
    Column("salvaged", pa.bool_(), "the path was malformed; its whole commands were used"),
    Column("truncated", pa.bool_(), "the token limit cut the path short"),
)
COLUMNS = (
    Column("row_id", pa.string(), "the input's id, or one derived from place and content"),
    Column("row", pa.int64(), "position in the shard; rows are accounted for by it"),
    Column("instance", pa.int32(), "number of the mask within its row, from 0"),
    Column("row_key", pa.string(), "hash of the image's bytes, the query and the references"),
    Column("image_id", pa.string(), "hash of the image's bytes"),
    Column("image_uri", pa.string(), "as in the input, without credentials", True),
    Column("height", pa.int32(), "of the image, in pixels"),
    Column("width", pa.int32(), "of the image, in pixels"),
    Column("query", pa.string(), "the referring expression"),
    Column("status", pa.string(), '"mask", or "absent" where the expression names nothing'),
    Column("mask", RLE, "the mask, empty where absent"),
    Column("bbox", pa.list_(pa.int32(), 4), "of the mask: x, y, width, height in pixels"),
    Column("area", pa.int64(), "of the mask, in pixels"),
    Column("path", pa.string(), "SVG outline of the mask, in pixels"),
    Column("coarse_path", pa.string(), "path that the decoder drew, in unit of its box"),
    Column("coarse_bbox", pa.list_(pa.float32(), 4), "that box: cx, cy, w, h in unit of the image"),
    *SCORE_COLUMNS,
    *FLAG_COLUMNS,
    Column("path_problem", pa.string(), "the fault of a salvaged path", True),
    Column("n_path_tokens", pa.int32(), "tokens of the path"),
    Column("model_revision", pa.string(), "of the model that answered"),
    Column("settings_hash", pa.string(), "of the settings that answers depend on"),
    Column("shard_id", pa.string(), "of the shard that the row belongs to"),
)

SCORES = tuple(column.name for column in SCORE_COLUMNS)
FLAGS = tuple(column.name for column in FLAG_COLUMNS)
MASKS = schema_of(COLUMNS)
