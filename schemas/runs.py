"""Records of a run: shards, the plan, receipts and the summary.

Receipts and summaries are files of the output (`tasks/output/catalog.py` says where).
Times are ISO 8601, UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field

from wordmask.schemas.losses import Gap, KeptFile, LeftOut, Unusable, Vanished
from wordmask.schemas.settings import Frozen, RunSettings


class RowRange(NamedTuple):
    """Rows start..stop of one row group."""

    row_group: int
    start: int
    stop: int


class Shard(Frozen):
    """A piece of one input file, and the unit of work.

    Equal ids mean equal output, as long as no image behind a URI changes: the id hashes the file's
    name and fingerprint, the rows, the duplicates among them, the version of the method, the
    model's revision, the settings, and the file's folder where image URIs may be relative.
    """

    shard_id: str = Field(description="32 hex digits")
    file: str = Field(description="URI of the input file")
    name: str = Field(description="the file relative to the input")
    fingerprint: str = Field(description="etag, or size and time of change")
    ranges: tuple[RowRange, ...] = Field(description="its rows, in file order")
    first_row: int = Field(description="index in the file of the first row")
    duplicates: tuple[int, ...] = Field(
        (), description="positions in the shard whose row_id occurred before"
    )
    model_revision: str = Field(description="hash of the model's files")
    settings_hash: str = Field(description="hash of the settings that answers depend on")
    method_version: int = Field(
        0, description="`METHOD_VERSION` of the code; 0: of a code before there was one"
    )
    partition: dict[str, str | None] = Field(
        {}, description="carried columns that stand in the file's folders or its table's log"
    )

    @property
    def rows(self) -> int:
        """Rows of the shard."""
        return sum(part.stop - part.start for part in self.ranges)

    @property
    def label(self) -> str:
        """File and rows, for people."""
        return f"{self.name} rows {self.first_row}-{self.first_row + self.rows - 1}"

    @property
    def input_folder(self) -> str:
        """The folder that `name` is relative to."""
        return self.file.removesuffix(self.name).rstrip("/")


class Part(Frozen):
    """A Parquet file of masks or rejects."""

    path: str = Field(description="relative to the output")
    rows: int
    bytes: int
    sha256: str = Field(description="of the file, in hex digits")


class ShardRecord(Frozen):
    """The durable facts of a shard that is done: how its rows ended, and where they are."""

    shard: Shard
    masks: int = Field(description="rows that were answered")
    absent: int = Field(
        description="how many of the masks are empty because the expression names nothing there"
    )
    rejects: dict[str, int] = Field(description="rows that were rejected, by code")
    masks_part: Part
    rejects_part: Part
    copied: int = Field(0, description="how many of the masks were computed by an earlier run")
    environment: dict[str, str] = Field(
        {},
        description=(
            "versions of the packages that answers depend on, and the name of the device, as the"
            " worker saw them; empty in records of older versions"
        ),
    )

    @property
    def rows(self) -> int:
        """Rows of the shard."""
        return self.masks + self.rejected

    @property
    def rejected(self) -> int:
        """Rows that were rejected."""
        return sum(self.rejects.values())

    @property
    def parts(self) -> tuple[Part, Part]:
        """The part of the masks and that of the rejects."""
        return self.masks_part, self.rejects_part


class ShardHints(Frozen):
    """How rows of a shard end that need not go to the model."""

    reuse_from: tuple[Part, ...] = Field(
        (), description="masks of the file as it was before; equal rows are copied from there"
    )
    retry_codes: tuple[str, ...] = Field(
        (), description="codes of rejects to try again; all other rows are copied from `earlier`"
    )
    earlier: ShardRecord | None = Field(
        None, description="how the shard ended before, where rejects are tried again"
    )
    poison_rows: tuple[int, ...] = Field(
        (), description="rows that end the process that works on them; they are rejected unseen"
    )


class ImageCheck(Frozen):
    """The extent of a look at images behind URIs, of shards that were done."""

    requests: int = Field(description="distinct images whose stores were asked about them")
    unanswered: int = Field(description="images whose stores did not say; they count as unchanged")
    shards: int = Field(description="shards with an image that is another now, or gone")


class Plan(Frozen):
    """Every shard of a run, which of them are done already, and hints for the others."""

    run_id: str = Field("", description="of the run's lease; a plan by itself has none")
    fence: int = Field(0, description="number of the lease under which it is carried out")
    shards: tuple[Shard, ...] = Field(description="in the order of the input")
    done: frozenset[str] = Field(description="ids of the shards that need not be computed")
    base_run: str = Field(
        "", description="the published run that shards are taken from, or empty if there is none"
    )
    published: frozenset[str] = Field(
        frozenset(),
        description="which of the done are taken from that run; the others have receipts",
    )
    changed: frozenset[str] = Field(
        frozenset(),
        description="shards that are not done, of files that the newest published run had too",
    )
    hints: dict[str, ShardHints] = Field({}, description="by shard id")
    files: int = Field(description="Parquet files of the input")
    input_bytes: int = Field(description="of these files")
    images: tuple[int, int] | None = Field(
        None, description="the least and the most distinct ones; None where footers do not tell"
    )
    unusable: tuple[Unusable, ...] = Field((), description="files that are in no shard")
    image_check: ImageCheck | None = Field(
        None, description="the look at the images of shards that were done, if there was one"
    )
    gaps: tuple[Gap, ...] = Field((), description="rows that are in no shard, as theirs failed")
    kept: tuple[KeptFile, ...] = Field((), description="files as they were before they changed")
    vanished: Vanished = Field(
        Vanished(), description="files of the newest published run that are gone"
    )
    left_out: tuple[LeftOut, ...] = Field(
        (), description="what else lies in the input and is not read"
    )

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def model_revision(self) -> str:
        """The model's revision, or "" where there is no shard."""
        if not self.shards:
            return ""
        return self.shards[0].model_revision

    @property
    def method_version(self) -> int:
        """The version of the method, or 0 where there is no shard."""
        if not self.shards:
            return 0
        return self.shards[0].method_version

    @property
    def pending(self) -> tuple[Shard, ...]:
        """The shards that are not done."""
        return tuple(shard for shard in self.shards if shard.shard_id not in self.done)

    def counts(self) -> dict[str, Any]:
        """Return the rows by how they stand, and further counts.

        The rows of files whose footer cannot be read are in no count.
        """
        new = sum(shard.rows for shard in self.pending if shard.shard_id not in self.changed)
        pending = sum(shard.rows for shard in self.pending)
        invalid = sum(file.rows or 0 for file in self.unusable)
        counts = {
            "files": self.files,
            "files_invalid": len(self.unusable),
            "files_vanished": self.vanished.files,
            "files_left_out": sum(each.files for each in self.left_out),
            "input_bytes": self.input_bytes,
            "rows": self.rows + invalid,
            "rows_done": self.rows - pending,
            "rows_new": new,
            "rows_changed": pending - new,
            "rows_invalid": invalid,
            "rows_vanished": self.vanished.rows,
            "rows_pending": pending,
            "duplicate_row_ids": sum(len(shard.duplicates) for shard in self.shards),
            "distinct_images": self.images,
            "shards": len(self.shards),
            "shards_done": len(self.done),
            "shards_pending": len(self.pending),
        }
        if self.image_check is not None:
            counts |= {
                "images_checked": self.image_check.requests,
                "images_unanswered": self.image_check.unanswered,
                "shards_with_changed_images": self.image_check.shards,
            }
        return counts

    def without(self, left: Iterable[Shard]) -> Plan:
        """Return the plan of the shards that are not among `left`."""
        left_ids = {shard.shard_id for shard in left}
        if not left_ids:
            return self
        kept = tuple(shard for shard in self.shards if shard.shard_id not in left_ids)
        return self.model_copy(update={"shards": kept})


class Timings(Frozen):
    """Seconds of wall time that a shard took."""

    read: float = Field(description="until its rows were read")
    infer: float = Field(description="the model was busy with its rows")
    idle: float = Field(
        0.0, description="the model was free since the shard began, or had no row to work on"
    )
    write: float = Field(description="to write masks and rejects")
    total: float = Field(description="all, also while another shard had the model")

    @property
    def busy_share(self) -> float:
        """Share of the time in which the model was busy rather than idle, 0..1."""
        if not self.infer:
            return 0.0
        return self.infer / (self.infer + self.idle)


class Receipt(ShardRecord):
    """The record of a shard, as its worker wrote it after both of its parts.

    It counts until a run that has the shard is published.
    """

    fence: int = Field(0, description="number of the lease under which it was written")
    timings: Timings
    worker: str = Field(description="name of the machine")
    started_at: str


class RunSummary(Frozen):
    """The head of a published run. It is written last, once the output was verified.

    Readers find the run's parts by way of its index (`schemas/manifests.py`), and look at no other.
    The head has no list that grows with the table.
    """

    run_id: str
    fence: int = Field(0, description="number of the lease under which it was published")
    settings: RunSettings
    settings_hash: str = Field(description="of the settings that answers depend on")
    model_revision: str = Field(description="hash of the model's files")
    started_at: str
    finished_at: str
    input_files: int = Field(0, description="files of the input that have rows")
    rows: int = Field(description="of all shards")
    rows_left: int = Field(
        0, description="rows of the input that the budget did not reach; the next run takes them up"
    )
    rows_in_gaps: int = Field(
        0, description="rows of the input that the run lacks, as their shards failed; in no count"
    )
    gaps: tuple[Gap, ...] = Field((), description="these rows; a later run takes them up")
    kept: tuple[KeptFile, ...] = Field(
        (),
        description="files that changed all the time, published as the run before had them; their"
        " rows are in the counts",
    )
    vanished: Vanished = Field(
        Vanished(), description="files of the run before that the input lacked"
    )
    masks: int = Field(description="rows that were answered")
    absent: int = Field(description="how many of the masks are empty, as nothing was named")
    rejects: dict[str, int] = Field(description="rows that were rejected, by code")
    shards: int
    shards_computed: int = Field(description="by this run; the others were done before")
    seconds: float = Field(description="from start to finish")
    verify_seconds: float = Field(
        0.0,
        description="that verification took, with what followed it; a budget keeps as much back",
    )
    rows_per_second: float = Field(description="of the shards computed")
    model_busy: float = Field(
        0.0,
        description=(
            "share of the time in which the workers' models were busy, 0..1, of the shards computed"
        ),
    )
    index: str = Field(
        "",
        description=(
            "path of the run's index, relative to the output; empty where the run is not published,"
            " or by a version that had none"
        ),
    )
    method_version: int = Field(
        0, description="`METHOD_VERSION` of its shards; 0: of a code before there was one"
    )
    files_skipped: int = Field(0, description="bad input files that were left out")
    skipped: tuple[Unusable, ...] = Field((), description="the first of them")
    left_out: tuple[LeftOut, ...] = Field(
        (), description="what else lies in the input and was not read"
    )


class PartLists(Frozen):
    """What older versions kept in a run's own file, in place of an index."""

    model_config = ConfigDict(extra="ignore")

    shard_ids: tuple[str, ...]
    masks_parts: tuple[Part, ...] = Field(description="in the order of the shards, as are the next")
    rejects_parts: tuple[Part, ...]
    files: dict[str, str] = Field({}, description="fingerprints of the input files, by name")
