"""An output in the form that versions before manifests wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from wordmask.tasks.output.catalog import newest_run
from wordmask.tasks.output.published import open_newest_run
from wordmask.tasks.storage import Store

NEW_IN_HEADS = ("index", "fence", "input_files")


def make_older(output: str) -> None:
    """Give a local output with one published run the form of older versions.

    The run's file lists its shards and parts, receipts have no number, and there is no manifest.
    """
    store = Store.open(output)
    head = newest_run(store)
    records = list(open_newest_run(store).records())
    fields: dict[str, Any] = head.model_dump(mode="json", exclude=set(NEW_IN_HEADS))
    fields["shard_ids"] = [record.shard.shard_id for record in records]
    fields["masks_parts"] = [record.masks_part.model_dump() for record in records]
    fields["rejects_parts"] = [record.rejects_part.model_dump() for record in records]
    fields["files"] = {record.shard.name: record.shard.fingerprint for record in records}
    for path in Path(output, "receipts").iterdir():
        receipt = json.loads(path.read_text())
        del receipt["fence"]
        path.unlink()
        path.with_name(f"{receipt['shard']['shard_id']}.json").write_text(json.dumps(receipt))
    for folder in ("manifests", "indexes"):
        shutil.rmtree(Path(output, folder))
    Path(output, "runs", f"{head.run_id}.json").write_text(json.dumps(fields))
