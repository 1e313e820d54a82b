"""Small input tables, and the rows of an output."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wordmask.tasks.output.catalog import latest_receipts, read_receipts
from wordmask.tasks.output.published import open_newest_run, open_newest_run_if_any
from wordmask.tasks.storage import Store

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed: int = 0, *, height: int = 24, width: int = 32) -> bytes:
    """A small picture that differs by seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_input(
    path: Path, rows: list[dict[str, Any]], *, row_group_size: int | None = None
) -> str:
    """A Parquet table of rows whose `image` is bytes, a path, or a dict of both."""
    table = pa.Table.from_pylist([row | {"image": image_value(row["image"])} for row in rows])
    schema = pa.schema(
        [pa.field("image", IMAGE) if field.name == "image" else field for field in table.schema]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(schema), path, row_group_size=row_group_size)
    return str(path)


def image_value(value: Any) -> Any:
    """The image of a row in a table: of bytes, of a path, or as it is."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    return {"bytes": None, "path": value} if isinstance(value, str) else value


def read_rows(output: str | Path, kind: str) -> list[dict[str, Any]]:
    """Return all rows of the masks or rejects of a local output's newest published run.

    Without a run, they are those of its finished shards.
    """
    index = {"masks": 0, "rejects": 1}[kind]
    store = Store.open(str(output))
    run = open_newest_run_if_any(store)
    if run is not None:
        pairs = list(run.parts())
    else:
        pairs = [receipt.parts for receipt in read_receipts(store, latest_receipts(store))]
    return [
        row
        for path in sorted(pair[index].path for pair in pairs)
        for row in pq.read_table(Path(output, path)).to_pylist()
    ]


def published_ids(output: str | Path) -> set[str]:
    """Return the ids of the shards of a local output's newest published run."""
    run = open_newest_run(Store.open(str(output)))
    return {record.shard.shard_id for record in run.records()}


def part_of(output: str | Path, kind: str, shard_id: str) -> Path:
    """The file of a shard's masks or rejects in a local output, by its receipt."""
    store = Store.open(str(output))
    (receipt,) = read_receipts(store, {shard_id: latest_receipts(store)[shard_id]})
    return Path(output, getattr(receipt, f"{kind}_part").path)
