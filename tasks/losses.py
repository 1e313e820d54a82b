"""What a run lacks of its input: files that vanished, files that changed, shards that failed.

A file that changed while the run was under way is published as the run before had it. The rows of
shards that failed are named gaps, as far as the settings allow them. Both are taken up by the next
run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from wordmask.schemas.losses import Gap, KeptFile, Vanished
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan, Shard, ShardRecord
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.inputs.lake import list_tables
from wordmask.tasks.inputs.partitions import chosen
from wordmask.tasks.output.catalog import read_run
from wordmask.tasks.output.done import Listing, has_answers_of
from wordmask.tasks.output.published import PublishedRun, open_newest_run, open_run
from wordmask.tasks.storage import STORE_ERRORS, Store

# Share of the newest published run's rows whose files may vanish without a word from the user.
# Lakes that drop a day of a month stay below it. A listing that lacks a page or a folder does not,
# unless the table is so large that what is lost is small beside it.
MOST_VANISHED = 0.1
NAMES_SHOWN = 5


def find_vanished(newest: PublishedRun, settings: RunSettings, names: Collection[str]) -> Vanished:
    """Return the files of the newest published run that are not in the plan.

    Where that run had another input, or another part of it, none count.

    Args:
        newest: the newest published run.
        settings: the settings of the run that is planned.
        names: the files of the plan, relative to the input.
    """
    if _input_of(newest.head.settings) != _input_of(settings):
        return Vanished()
    gone = [entry for name, entry in newest.entries.items() if name not in names]
    rows = sum(entry.rows for entry in gone)
    return Vanished(
        files=len(gone),
        rows=rows,
        share=rows / max(1, newest.head.rows),
        names=tuple(entry.name for entry in gone[:NAMES_SHOWN]),
    )


def look_again(plan: Plan, settings: RunSettings, output: Store) -> Vanished:
    """Return the vanished files of a plan, and how many are listed now: no such file is read."""
    if not plan.vanished.files:
        return plan.vanished
    newest = open_newest_run(output)
    try:
        listing, partitions = list_tables(settings, output)
        listed = {listing.name(path) for path in chosen(partitions, settings.where)}
    except (InputError, *STORE_ERRORS):  # what was done is published all the same
        return plan.vanished
    present = {shard.name for shard in plan.shards} | {file.name for file in plan.unusable}
    returned = listed.intersection(newest.entries) - present
    return plan.vanished.model_copy(update={"returned": len(returned)})


def _input_of(settings: RunSettings) -> tuple[str, tuple[str, ...]]:
    return settings.input.rstrip("/"), settings.where


def require_few_vanished(vanished: Vanished, settings: RunSettings) -> None:
    """Check that no more files vanished than a run may lose without being told.

    Raises:
        InputError: more did.
    """
    if settings.allow_missing_files or vanished.share <= MOST_VANISHED:
        return
    raise InputError(
        f"input {settings.input}: the newest published run has files that are not there now:"
        f" {vanished}. Above {MOST_VANISHED:.0%} of its rows a run is refused, as a listing may be"
        " short. Give --allow-missing-files if they are meant to be gone"
    )


def settle(
    plan: Plan,
    failures: Sequence[tuple[Shard, str]],
    changed: Collection[str],
    output: Store,
) -> Plan:
    """Return the plan without the shards that failed, with what is published in their place.

    A file that changed is as the plan's published run has it, with the gaps that it has there, if
    that run gave the same answers about the same input. All other failed shards are gaps.

    Args:
        plan: the plan as it was carried out.
        failures: shards that failed for good, with the reasons.
        changed: files that were not the planned ones any more, relative to the input.
        output: the output.
    """
    base = None
    if changed and plan.base_run:
        base = open_run(output, read_run(output, plan.base_run))
    kept = _earlier_versions(base, plan, changed, output)
    gaps_kept = [gap for gap in _gaps_of(base) if gap.name in kept and gap not in plan.gaps]
    failed = [(shard, reason) for shard, reason in failures if shard.name not in kept]
    gaps = [_gap(shard, reason) for shard, reason in failed]
    rest = plan.without(shard for shard, _ in failed)
    shards = tuple(_in_place(rest.shards, kept))
    kept_ids = {record.shard.shard_id for records in kept.values() for record in records}
    return rest.model_copy(
        update={
            "shards": shards,
            "done": plan.done | kept_ids,
            "published": plan.published | kept_ids,
            "gaps": (*plan.gaps, *gaps_kept, *gaps),
            "kept": tuple(_kept_file(records) for records in kept.values()),
        }
    )


def _gaps_of(base: PublishedRun | None) -> tuple[Gap, ...]:
    if base is None:
        return ()
    return base.head.gaps


def _earlier_versions(
    base: PublishedRun | None, plan: Plan, names: Collection[str], output: Store
) -> dict[str, list[ShardRecord]]:
    """Return, by file, the shards that a published run has of the same input, if they are whole.

    There are none if it gave other answers than those of the plan.
    """
    if base is None or not has_answers_of(base.head, plan.shards[0]):
        return {}
    listing = Listing(output)
    folder = plan.shards[0].input_folder

    def is_sound(record: ShardRecord) -> bool:
        return record.shard.input_folder == folder and not listing.problem_of(record)

    found = {name: base.records_of(name) for name in sorted(names)}
    return {
        name: records
        for name, records in found.items()
        if records and all(is_sound(record) for record in records)
    }


def _in_place(shards: Iterable[Shard], kept: dict[str, list[ShardRecord]]) -> Iterable[Shard]:
    """Yield shards, and in place of those of a kept file the ones that are kept."""
    seen: set[str] = set()
    for shard in shards:
        if shard.name not in kept:
            yield shard
        elif shard.name not in seen:
            seen.add(shard.name)
            yield from (record.shard for record in kept[shard.name])


def _gap(shard: Shard, reason: str) -> Gap:
    return Gap(name=shard.name, first_row=shard.first_row, rows=shard.rows, reason=reason)


def _kept_file(records: Sequence[ShardRecord]) -> KeptFile:
    shard = records[0].shard
    rows = sum(record.rows for record in records)
    return KeptFile(name=shard.name, fingerprint=shard.fingerprint, rows=rows)
