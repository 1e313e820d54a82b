"""A row of the masks table: one answer to one input row. Every column has a fixed type from the
first row on.
"""

from __future__ import annotations

import pyarrow as pa

RLE = pa.struct([pa.field("size", pa.list_(pa.int32(), 2)), pa.field("counts", pa.string())])

SCORES = ("predicted_iou", "path_logprob", "coarse_refined_iou", "iteration_stability", "trust")
FLAGS = ("refined", "salvaged", "truncated")

MASKS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field(
            "row", pa.int64(), nullable=False
        ),  # position in the shard: what rows are accounted by, whatever their ids
        pa.field("instance", pa.int32(), nullable=False),
        pa.field(
            "row_key", pa.string(), nullable=False
        ),  # hash of the image's bytes, the query and the references: what was asked
        pa.field("image_id", pa.string(), nullable=False),  # hash of the image's bytes
        pa.field(
            "image_uri", pa.string()
        ),  # without credentials: user info, and what follows ? in an https URI
        pa.field(
            "height", pa.int32(), nullable=False
        ),  # as a viewer shows it, EXIF orientation applied
        pa.field("width", pa.int32(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "mask" or "absent"
        pa.field("mask", RLE, nullable=False),
        pa.field("bbox", pa.list_(pa.int32(), 4), nullable=False),  # x, y, w, h in pixels
        pa.field("area", pa.int64(), nullable=False),  # pixels
        pa.field("path", pa.string(), nullable=False),  # outline of the mask, pixels
        pa.field(
            "coarse_path", pa.string(), nullable=False
        ),  # what the decoder drew, unit of its box
        pa.field(
            "coarse_bbox", pa.list_(pa.float32(), 4), nullable=False
        ),  # that box: cx, cy, w, h in unit of image
        *(pa.field(name, pa.float32()) for name in SCORES),
        *(pa.field(name, pa.bool_(), nullable=False) for name in FLAGS),
        pa.field("path_problem", pa.string()),  # what was wrong with a salvaged path, else null
        pa.field("n_path_tokens", pa.int32(), nullable=False),
        pa.field("model_revision", pa.string(), nullable=False),
        pa.field("settings_hash", pa.string(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
    ]
)
