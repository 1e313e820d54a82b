"""What no published run of an output names any more: parts and receipts of other settings, models
and inputs, and of runs given up.
"""

from __future__ import annotations

from pydantic import Field

from wordmask.schemas.runs import KINDS, receipt_path
from wordmask.schemas.settings import Frozen
from wordmask.tasks.output.catalog import published_runs
from wordmask.tasks.storage import Store


class Garbage(Frozen):
    """Files that can go, relative to the output, and their bytes. Receipts come first: a shard
    whose receipt is gone is not done, so that what a stopped removal leaves is computed anew rather
    than trusted."""

    runs_kept: int
    shards: int = Field(description="shards that have something that goes")
    paths: tuple[str, ...]
    bytes: int


def find_garbage(output: Store, keep_runs: int | None = None) -> Garbage:
    """What can be removed. `keep_runs`: of the published runs the newest so many are kept, with
    what they name; None keeps all.

    Shards that were done since the newest run was published are kept: a run that its budget ended,
    or Ctrl-C, is to go on from them.

    Raises:
        FileNotFoundError: nothing was published: all there is would go.
    """
    runs = published_runs(output)
    if not runs:
        raise FileNotFoundError(
            f"{output.root}: no published run there, so that all would go. Run `wordmask run` to"
            " its end first"
        )
    kept, gone = runs[:keep_runs], runs[len(runs[:keep_runs]) :]
    named = {shard_id for run in kept for shard_id in run.shard_ids}
    parts = {part.path for run in kept for part in (*run.masks_parts, *run.rejects_parts)}
    receipts = output.files("receipts", ".json")
    published = output.files("runs", ".json")[runs[0].run_id].changed
    recent = {shard_id for shard_id, file in receipts.items() if file.changed >= published}
    found = [
        (receipt_path(each), each, file.bytes)
        for each, file in sorted(receipts.items())
        if each not in named | recent
    ]
    for kind in KINDS:
        for name, file in sorted(output.files(kind, ".parquet").items()):
            path, shard_id = f"{kind}/{name}.parquet", name.removeprefix("part-").split("-")[0]
            if path not in parts and shard_id not in recent:
                found.append((path, shard_id, file.bytes))
    return Garbage(
        runs_kept=len(kept),
        shards=len({shard_id for _, shard_id, _ in found}),
        bytes=sum(size for _, _, size in found),
        paths=(*(f"runs/{run.run_id}.json" for run in gone), *(path for path, _, _ in found)),
    )


def remove_garbage(output: Store, found: Garbage) -> None:
    """Remove it."""
    for path in found.paths:
        output.remove(path)
