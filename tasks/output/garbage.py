"""Files of an output that no published run names any more, and their removal.

These are parts and receipts of other settings, models and inputs, and of runs given up.
"""

from __future__ import annotations

from pydantic import Field

from wordmask.schemas.settings import Frozen
from wordmask.tasks.output.catalog import (
    part_files,
    publication_time,
    published_runs,
    receipt_files,
    record_files,
    run_path,
)
from wordmask.tasks.output.published import kept_paths
from wordmask.tasks.storage import Store


class Garbage(Frozen):
    """Files that can go, relative to the output, and their bytes.

    Runs and receipts come before parts: a shard without a receipt is not done, so that a removal
    that stops half-way leaves shards that are computed anew rather than trusted.
    """

    runs_kept: int
    shards: int = Field(description="shards that have something that goes")
    paths: tuple[str, ...]
    bytes: int


def find_garbage(output: Store, keep_runs: int | None = None) -> Garbage:
    """Return the files that can be removed.

    Shards that were done since the newest run was published are kept: a run that was stopped, by
    its budget or by Ctrl-C, goes on from them.

    Args:
        output: the output.
        keep_runs: how many of the newest published runs are kept, with their shards; None keeps
            all.

    Raises:
        FileNotFoundError: nothing was published, so that everything would go.
    """
    runs = published_runs(output)
    if not runs:
        raise FileNotFoundError(
            f"{output.root}: no published run there, so that all would go. Run `wordmask run` to"
            " its end first"
        )
    kept = runs[:keep_runs]
    dropped = runs[len(kept) :]
    receipts = receipt_files(output)
    parts = part_files(output)
    published_at = publication_time(output, runs[0].run_id)
    recent = {file.shard_id for file in receipts if file.changed >= published_at}
    paths_kept = kept_paths(output, kept)
    shards_kept = recent | {file.shard_id for file in parts if file.path in paths_kept}
    receipts_gone = [file for file in receipts if file.shard_id not in shards_kept]
    parts_gone = [
        file for file in parts if file.shard_id not in recent and file.path not in paths_kept
    ]
    records_gone = {
        path: info.bytes for path, info in record_files(output).items() if path not in paths_kept
    }
    found = receipts_gone + parts_gone
    heads_gone = [run_path(run.run_id) for run in dropped]
    return Garbage(
        runs_kept=len(kept),
        shards=len({file.shard_id for file in found}),
        bytes=sum(file.bytes for file in found) + sum(records_gone.values()),
        paths=(*heads_gone, *records_gone, *(file.path for file in found)),
    )


def remove_garbage(output: Store, garbage: Garbage) -> None:
    """Remove the files, in their order."""
    for path in garbage.paths:
        output.remove(path)
