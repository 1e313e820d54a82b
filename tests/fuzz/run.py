"""Tables of mutated images and rows through plan, shards and verification."""

from __future__ import annotations

import faulthandler
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.images import mutated_images
from tests.fuzz.rows import mutated_table
from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, require_every_row_once
from tests.support.tables import png
from wordmask.model.segmenter import Segmenter
from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.infer import images as infer_images
from wordmask.tasks.shard import process_shard
from wordmask.tasks.telemetry.metrics import peak_memory

MAX_SECONDS = 10.0  # of a row
MAX_BYTES = 3e9  # of the process
TABLE_ROWS = 100

Step = Callable[..., Any]


@dataclass(kw_only=True)
class Findings:
    """How the rows ended, and what went wrong.

    `refused`: rows of tables that are no input at all. `slowest`: the processor's seconds of the
    slowest step of any row, and which it was. Other processes on the machine do not count; a step
    that hangs is ended by the watchdog.
    """

    rows: int = 0
    masks: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    slowest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0
    peak_bytes: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, step: str) -> Generator[None]:
        """Note what is done within if it is the slowest step so far."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.slowest = max(self.slowest, (time.thread_time() - began, step))

    def judge(self) -> None:
        """Note rows without an end, and limits that were passed."""
        ended = self.masks + self.rejects.total() + self.refused
        if ended != self.rows and not self.wrong:
            self.wrong.append(
                f"{self.rows} rows ended as {self.masks} masks, {self.rejects.total()} rejects,"
                f" {self.refused} refused"
            )
        seconds, step = self.slowest
        if seconds > MAX_SECONDS:
            self.wrong.append(f"a row took {seconds:.1f} s, more than {MAX_SECONDS:.0f}: {step}")
        if self.peak_bytes > MAX_BYTES:
            self.wrong.append(
                f"the process held {self.peak_bytes / 1e6:,.0f} MB, more than"
                f" {MAX_BYTES / 1e6:,.0f}"
            )


class CheckingSegmenter(FakeSegmenter):
    """Answers at once. The shipped model checks the queries; its slowest check is noted."""

    def __init__(self, real: Segmenter, findings: Findings) -> None:
        super().__init__()
        self._real = real
        self._findings = findings

    def check_query(self, object: str, spatial_refs: Any = ()) -> None:
        step = f"checking a query of {len(object)} characters and {len(spatial_refs)} references"
        with self._findings.timed(step):
            self._real.check_query(object, spatial_refs)


def fuzz(count: int, seed: int) -> dict[str, Findings]:
    """Run `count` mutated images, then `count` mutated rows."""
    real = Segmenter.from_pretrained("demo", device="cpu")
    rng = random.Random(seed)
    findings = {"images": Findings(), "rows": Findings()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "table")
        make_files(folder)
        for kind, found in findings.items():
            began = time.perf_counter()
            with timed_image_steps(found):
                for table in mutated_tables(kind, count, rng):
                    run_table(table, kind, folder, rng, CheckingSegmenter(real, found), found)
            found.seconds = time.perf_counter() - began
            found.peak_bytes = peak_memory()
    for found in findings.values():
        found.judge()
    return findings


def mutated_tables(kind: str, count: int, rng: random.Random) -> Iterator[pa.Table]:
    """Yield tables of at most `TABLE_ROWS` rows, `count` rows in all."""
    images = mutated_images(count, rng)
    for start in range(0, count, TABLE_ROWS):
        n_rows = min(TABLE_ROWS, count - start)
        if kind == "rows":
            yield mutated_table(n_rows, rng)
            continue
        data = [next(images)[1] for _ in range(n_rows)]
        yield pa.table({"image": pa.array(data, pa.binary()), "query": ["a thing"] * n_rows})


def run_table(
    table: pa.Table,
    kind: str,
    folder: Path,
    rng: random.Random,
    segmenter: FakeSegmenter,
    findings: Findings,
) -> None:
    """Process and verify one table, and note how its rows ended."""
    path = folder / "in.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=rng.choice((7, 40, 1000)),
        compression=rng.choice(("snappy", "zstd", "none")),
    )
    has_note = "note" in table.schema.names
    settings = RunSettings.model_validate(
        {
            "input": str(path),
            "output": tempfile.mkdtemp(dir=folder.parent),
            "shard_rows": rng.choice((13, 64, 1000)),
            "segment": {
                "allow_https": rng.random() < 0.5,
                "carry": ["note"] if has_note else [],
            },
        }
    )
    findings.rows += table.num_rows
    faulthandler.dump_traceback_later(MAX_SECONDS * table.num_rows, exit=True)
    try:
        plan = plan_of(settings, REVISION)
        context = ShardContext(segmenter)
        receipts = [process_shard(shard, settings, context) for shard in plan.shards]
        require_every_row_once(plan, settings)
    except InputError:
        findings.refused += table.num_rows
    except Exception as error:
        text = f"{kind} {table.schema.types}: {type(error).__name__}: {error}"
        findings.wrong.append(text[:500])
    else:
        for receipt in receipts:
            findings.masks += receipt.masks
            findings.rejects.update(receipt.rejects)
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def timed_image_steps(findings: Findings) -> Generator[None]:
    """Time every reading and decoding of an image."""
    decode, image_bytes = infer_images.decode, infer_images.image_bytes

    def timed_decode(data: bytes, *more: Any) -> Any:
        with findings.timed(f"{len(data)} bytes {data[:8]!r}"):
            return decode(data, *more)

    def timed_image_bytes(row: Any, *more: Any) -> Any:
        with findings.timed(f"image {str(row.image_uri)[:60]!r}"):
            return image_bytes(row, *more)

    infer_images.decode, infer_images.image_bytes = timed_decode, timed_image_bytes
    try:
        yield
    finally:
        infer_images.decode, infer_images.image_bytes = decode, image_bytes


def make_files(folder: Path) -> None:
    """Make the files that the URIs of tables name: an image, a link out of the folder, a pipe."""
    folder.mkdir()
    (folder / "good.png").write_bytes(png(5))
    (folder.parent / "secret.png").write_bytes(png(6))
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
