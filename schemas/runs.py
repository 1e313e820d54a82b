"""What a run consists of and leaves behind: shards, receipts, the plan, the summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import Field

from wordmask.schemas.settings import Frozen, RunSettings


class RowRange(NamedTuple):
    """Rows start..stop of one row group."""

    row_group: int
    start: int
    stop: int


class Shard(Frozen):
    """A piece of one input file. `shard_id` hashes the file's name and fingerprint, the rows, the
    model's revision, the settings and which of its rows repeat an id, so equal ids mean equal
    output."""

    shard_id: str
    file: str = Field(description="URI of the input file")
    name: str = Field(description="the file relative to the input")
    fingerprint: str = Field(description="etag, or size and time of change")
    ranges: tuple[RowRange, ...]
    first_row: int = Field(description="index in the file of the first row")
    duplicates: tuple[int, ...] = Field(
        (), description="positions in the shard whose row_id occurred before"
    )
    model_revision: str
    settings_hash: str

    @property
    def rows(self) -> int:
        return sum(part.stop - part.start for part in self.ranges)

    @property
    def label(self) -> str:
        """File and rows, for people."""
        return f"{self.name} rows {self.first_row}-{self.first_row + self.rows - 1}"

    @property
    def input_folder(self) -> str:
        """The folder that `name` is relative to."""
        return self.file.removesuffix(self.name).rstrip("/")


class ShardHints(Frozen):
    """How rows of a shard end that need not go to the model."""

    reuse_from: tuple[str, ...] = Field(
        (), description="shards of the file as it was before; equal rows are copied from there"
    )
    retry_codes: tuple[str, ...] = Field(
        (),
        description=(
            "codes of rejects to try again; all other rows are copied from the shard itself"
        ),
    )
    poison_rows: tuple[int, ...] = Field(
        (), description="rows that end the process that works on them; they are rejected unseen"
    )


class Unusable(Frozen):
    """A file of the input that no run can use."""

    name: str
    rows: int | None = Field(description="None: not even its footer can be read")
    why: str


class Plan(Frozen):
    """Every shard of a run, which of them have a receipt already, and hints for the others."""

    run_id: str
    shards: tuple[Shard, ...]
    done: frozenset[str]
    changed: frozenset[str] = Field(
        frozenset(),
        description="shards that are not done, of files that the newest published run had too",
    )
    hints: dict[str, ShardHints] = Field({}, description="by shard id")
    files: int
    input_bytes: int
    images: tuple[int, int] | None = Field(
        None, description="the least and the most distinct ones; None where footers do not tell"
    )
    unusable: tuple[Unusable, ...] = ()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def model_revision(self) -> str:
        """Of all its shards; empty where there is none."""
        return self.shards[0].model_revision if self.shards else ""

    @property
    def pending(self) -> tuple[Shard, ...]:
        return tuple(shard for shard in self.shards if shard.shard_id not in self.done)

    def counts(self) -> dict[str, Any]:
        """Rows by what becomes of them, and what else is counted. The rows of files that cannot
        even be read are in no count.
        """
        new = sum(shard.rows for shard in self.pending if shard.shard_id not in self.changed)
        pending = sum(shard.rows for shard in self.pending)
        invalid = sum(file.rows or 0 for file in self.unusable)
        return {
            "files": self.files,
            "files_invalid": len(self.unusable),
            "input_bytes": self.input_bytes,
            "rows": self.rows + invalid,
            "rows_done": self.rows - pending,
            "rows_new": new,
            "rows_changed": pending - new,
            "rows_invalid": invalid,
            "rows_pending": pending,
            "duplicate_row_ids": sum(len(shard.duplicates) for shard in self.shards),
            "distinct_images": self.images,
            "shards": len(self.shards),
            "shards_done": len(self.done),
            "shards_pending": len(self.pending),
        }

    def without(self, left: Iterable[Shard]) -> Plan:
        """The plan of the other shards."""
        names = {shard.shard_id for shard in left}
        return (
            self.model_copy(
                update={
                    "shards": tuple(shard for shard in self.shards if shard.shard_id not in names)
                }
            )
            if names
            else self
        )


class Part(Frozen):
    """One written Parquet file."""

    path: str = Field(description="relative to the output")
    rows: int
    bytes: int
    sha256: str


class Timings(Frozen):
    """Seconds of wall time. `infer`: the model was busy with the shard's rows. `idle`: it was not,
    since it was free and the shard begun, or for want of rows. `total` is all of the shard, with
    the time that it waited while another one had the model."""

    read: float
    infer: float
    idle: float = 0.0
    write: float
    total: float

    @property
    def busy_share(self) -> float:
        """Share of the time in which the model was busy rather than idle, 0..1."""
        return self.infer / (self.infer + self.idle) if self.infer else 0.0


class Receipt(Frozen):
    """Says that a shard is done: written after its parts, so a shard with a receipt has both of
    them.
    """

    shard: Shard
    masks: int
    absent: int = Field(
        description="how many of the masks are empty because the expression names nothing there"
    )
    rejects: dict[str, int]
    masks_part: Part
    rejects_part: Part
    copied: int = Field(0, description="how many of the masks were computed by an earlier run")
    timings: Timings
    worker: str
    started_at: str

    @property
    def rows(self) -> int:
        return self.masks + self.rejected

    @property
    def rejected(self) -> int:
        return sum(self.rejects.values())


class Lease(Frozen):
    """Who is at work on an output. Times are ISO 8601, UTC."""

    token: str
    run_id: str
    host: str
    pid: int
    since: str
    renewed: str


class RunSummary(Frozen):
    """Published last of all, once the output was verified. Readers look only at the parts that
    published runs name.
    """

    run_id: str
    settings: RunSettings
    settings_hash: str
    model_revision: str
    started_at: str
    finished_at: str
    rows: int
    rows_left: int = Field(
        0, description="rows of the input that the budget did not reach; the next run takes them up"
    )
    masks: int
    absent: int
    rejects: dict[str, int]
    shards: int
    shards_computed: int
    seconds: float
    rows_per_second: float
    model_busy: float = Field(
        0.0,
        description=(
            "share of the time in which the workers' models were busy, 0..1, of the shards computed"
        ),
    )
    shard_ids: tuple[str, ...]
    masks_parts: tuple[Part, ...] = Field(description="in the order of the shards, as are the next")
    rejects_parts: tuple[Part, ...]
    files: dict[str, str] = Field(
        {}, description="fingerprints of the input files that have rows, by name"
    )
