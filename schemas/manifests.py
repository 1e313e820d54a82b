"""Tables that say what a published run consists of: an index, and one manifest per input file.

The head of a run (`RunSummary`) names its index. The index has one row per input file and names the
file's manifest, which has one row per shard. An unchanged file keeps its manifest from run to run.
"""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from wordmask.schemas.columns import Column, schema_of
from wordmask.schemas.settings import Frozen

STRING = pa.string()
INT = pa.int32()
LONG = pa.int64()
COUNTS = pa.map_(STRING, LONG)
VERSIONS = pa.map_(STRING, STRING)
ROW_RANGE = pa.struct([("row_group", INT), ("start", LONG), ("stop", LONG)])
SHARD = pa.struct(
    [
        ("shard_id", STRING),
        ("file", STRING),
        ("name", STRING),
        ("fingerprint", STRING),
        ("ranges", pa.list_(ROW_RANGE)),
        ("first_row", LONG),
        ("duplicates", pa.list_(LONG)),
        ("model_revision", STRING),
        ("settings_hash", STRING),
        ("method_version", INT),
        ("partition", pa.map_(STRING, STRING)),
    ]
)
PART = pa.struct([("path", STRING), ("rows", LONG), ("bytes", LONG), ("sha256", STRING)])

# The fields of a ShardRecord, by their names.
MANIFEST_COLUMNS = (
    Column("shard", SHARD, "the rows, and what their answers depend on"),
    Column("masks", LONG, "rows that were answered"),
    Column("absent", LONG, "how many of the masks are empty, as nothing was named"),
    Column("rejects", COUNTS, "rows that were rejected, by code"),
    Column("masks_part", PART, "the Parquet file of its masks"),
    Column("rejects_part", PART, "the Parquet file of its rejects"),
    Column("copied", LONG, "how many of the masks were computed by an earlier run"),
    Column(
        "environment",
        VERSIONS,
        "versions of packages and the device's name, as its worker saw them",
    ),
)
MANIFEST = schema_of(MANIFEST_COLUMNS)


class IndexEntry(Frozen):
    """An input file in a published run: its manifest, and the sums of what is in there."""

    name: str = Field(description="the file relative to the input")
    fingerprint: str = Field(description="etag, or size and time of change, when it was planned")
    manifest: str = Field(
        "", description="path relative to the output; empty as long as it is not written"
    )
    manifest_bytes: int = Field(0, description="size of the manifest")
    shards: int
    rows: int
    masks: int
    absent: int
    rejects: dict[str, int] = Field(description="by code")
    bytes: int = Field(description="of all parts")
    parts_digest: str = Field(
        description="hash of the paths and sizes of all parts, to compare with a listing"
    )


INDEX_COLUMNS = (
    Column("name", STRING, "the input file relative to the input"),
    Column("fingerprint", STRING, "its etag, or size and time of change, when it was planned"),
    Column("manifest", STRING, "path of its manifest, relative to the output"),
    Column("manifest_bytes", LONG, "size of the manifest"),
    Column("shards", LONG, "rows of the manifest"),
    Column("rows", LONG, "of the input file"),
    Column("masks", LONG, "rows that were answered"),
    Column("absent", LONG, "how many of the masks are empty, as nothing was named"),
    Column("rejects", COUNTS, "rows that were rejected, by code"),
    Column("bytes", LONG, "of all parts"),
    Column("parts_digest", STRING, "hash of the paths and sizes of all parts"),
)
INDEX = schema_of(INDEX_COLUMNS)
