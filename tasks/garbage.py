"""What no published run of an output names any more: parts and receipts of other settings, models and inputs, and of runs given up."""

from __future__ import annotations

from pydantic import Field

from schemas.runs import masks_path, receipt_path, rejects_path
from schemas.settings import Frozen
from tasks.storage import Store
from tasks.summarize import published_runs

FOLDERS = (
    ("receipts", "", ".json", receipt_path),
    ("masks", "part-", ".parquet", masks_path),
    ("rejects", "part-", ".parquet", rejects_path),
)


class Garbage(Frozen):
    """Files that can go, relative to the output, and their bytes. Receipts come first: a shard whose receipt is gone is not done, so that
    what a stopped removal leaves is computed anew rather than trusted."""

    runs_kept: int
    shards: int = Field(description="shards that go")
    paths: tuple[str, ...]
    bytes: int


def find_garbage(output_uri: str, keep_runs: int | None = None) -> Garbage:
    """What can be removed. `keep_runs`: of the published runs the newest so many are kept, with what they name; None keeps all.

    Raises:
        FileNotFoundError: nothing was published: all there is would go.
    """
    output = Store.open(output_uri)
    runs = published_runs(output)
    if not runs:
        raise FileNotFoundError(f"{output.root}: no published run there, so that all would go. Run `wordmask run` to its end first")
    kept, gone = runs[:keep_runs], runs[len(runs[:keep_runs]) :]
    named = {shard_id for run in kept for shard_id in run.shard_ids}
    paths, size, shards = [f"runs/{run.run_id}.json" for run in gone], 0, set()
    for folder, prefix, suffix, path_of in FOLDERS:
        for name, bytes_ in sorted(output.sizes(folder, suffix).items()):
            shard_id = name.removeprefix(prefix)
            if shard_id not in named:
                paths.append(path_of(shard_id))
                size += bytes_
                shards.add(shard_id)
    return Garbage(runs_kept=len(kept), shards=len(shards), paths=tuple(paths), bytes=size)


def remove_garbage(output_uri: str, found: Garbage) -> None:
    """Remove it."""
    output = Store.open(output_uri)
    for path in found.paths:
        output.remove(path)
