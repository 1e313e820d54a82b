"""Write the masks and the rejects of a shard as Parquet, with the same bytes every time.

A file's name holds the shard's id and a hash of the file's content.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from wordmask.schemas.masks import FLAGS, MASKS, SCORES
from wordmask.schemas.redaction import uri_without_credentials
from wordmask.schemas.rejects import REJECTS
from wordmask.schemas.runs import Part, Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.output.catalog import part_path
from wordmask.tasks.output.manifests import parquet_bytes
from wordmask.tasks.output.reuse import row_key
from wordmask.tasks.rows import Mask, Reject, ShardResult
from wordmask.tasks.storage import Store, sha256


def write_parts(
    result: ShardResult,
    shard: Shard,
    settings: SegmentSettings,
    input_schema: pa.Schema,
    output: Store,
    fence: int = 0,
) -> tuple[Part, Part]:
    """Write the masks and the rejects of a shard, also those that are empty.

    Args:
        result: how the rows of the shard ended.
        shard: the shard.
        settings: the columns of the input that masks carry on.
        input_schema: the types of these columns.
        output: the output of the run.
        fence: the number of the lease under which the run works.

    Returns:
        The part of the masks and that of the rejects.
    """
    carried = [input_schema.field(name) for name in settings.carry]
    schema = pa.schema([*MASKS, *carried])
    masks = pa.Table.from_pylist([_mask_row(mask, shard) for mask in result.masks], schema=schema)
    rejects = pa.Table.from_pylist(
        [_reject_row(reject, shard) for reject in result.rejects], schema=REJECTS
    )

    def write(kind: str, table: pa.Table) -> Part:
        data = parquet_bytes(table)
        digest = sha256(data)
        path = part_path(kind, shard.shard_id, digest, fence)
        output.write_bytes(path, data)
        return Part(path=path, rows=table.num_rows, bytes=len(data), sha256=digest)

    return write("masks", masks), write("rejects", rejects)


def _mask_row(mask: Mask, shard: Shard) -> dict[str, Any]:
    segmentation = mask.segmentation
    measures = {name: getattr(segmentation, name) for name in (*SCORES, *FLAGS)}
    return {
        "row_id": mask.row.row_id,
        "row": mask.row.position,
        "instance": 0,
        "row_key": row_key(mask.row, mask.image_id),
        "image_id": mask.image_id,
        "image_uri": _without_credentials(mask.row.image_uri),
        "height": mask.height,
        "width": mask.width,
        "query": mask.row.query,
        "status": segmentation.status,
        "mask": segmentation.rle,
        "bbox": list(segmentation.bbox),
        "area": segmentation.area,
        "path": segmentation.path,
        "coarse_path": segmentation.coarse_path,
        "coarse_bbox": list(segmentation.coarse_bbox),
        "path_problem": segmentation.path_problem,
        "n_path_tokens": segmentation.n_path_tokens,
        **measures,
        "model_revision": shard.model_revision,
        "settings_hash": shard.settings_hash,
        "shard_id": shard.shard_id,
        "method_version": shard.method_version,
        "image_fingerprint": mask.image_fingerprint,
        **mask.row.carried,
    }


def _reject_row(reject: Reject, shard: Shard) -> dict[str, Any]:
    row = reject.row
    return {
        "row_id": row.row_id,
        "row": row.position,
        "image_uri": _without_credentials(row.image_uri),
        "query": row.query,
        "code": reject.code.value,
        "detail": reject.detail,
        "shard_id": shard.shard_id,
        "method_version": shard.method_version,
        "image_fingerprint": reject.image_fingerprint,
    }


def _without_credentials(uri: str | None) -> str | None:
    """Return a URI without a signature: more people read masks than may fetch images."""
    if uri is None:
        return None
    return uri_without_credentials(uri)
