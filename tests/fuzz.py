"""Mutated images and mutated rows through the real code of a shard: each ends as a mask or a
reject, within its time and memory.

    python -m tests.fuzz [--count N] [--seed S] [--json]

N images of twelve formats with bytes changed, cut, doubled and spliced (half of the PNGs with their
checksums made right again), and among them bombs of pixels; N rows with what strangers write into
tables, of every column type that is taken, and of some that are refused as a whole. The queries are
checked by the shipped model, whose answers a fake gives at once. Every output is verified. Exit
code 1 if a table ended otherwise, a row took longer than `MOST_SECONDS`, or the process came to
hold more than `MOST_BYTES`.

Measured on 2 shared, busy cores of an AVX2 machine, Pillow 13.0, 25 November 2026, seed 0, 2,000 of
each, in the environment of a worker: images: 56 s, 526 masks, 1,474 rejects (image_unreadable
1,219, image_truncated 249, image_too_large 6); slowest 2.7 s of processor time, a PNG of 74 bytes
that says 99,999,999 x 1 pixels. rows: 18 s, 171 masks, 1,829 rejects of 14 codes; slowest 0.1 s.
The process held 2,359 MB at most; it was 4,180 before `tasks.infer` bounded what is decoded ahead
by pixels and `tasks.images` decoded in strips. Found with seed 1, and mended: a header that asked
Pillow for absurd memory ended its shard with MemoryError.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import os
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.fakes import REVISION, FakeSegmenter
from tests.support.runs import plan_of, require_every_row_once
from tests.support.tables import IMAGE, png
from wordmask.flows.execution.cluster import worker_environ
from wordmask.model.segmenter import Segmenter
from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.context import ShardContext
from wordmask.tasks.infer import images as infer_images
from wordmask.tasks.shard import process_shard
from wordmask.tasks.telemetry.metrics import peak_memory

MOST_SECONDS = 10.0  # of a row
MOST_BYTES = 3e9  # of the process
TABLE_ROWS = 100
BOMBS = 0.01  # share of images
REFUSED = 0.1  # share of tables with a column of a type that is not taken


@dataclass(kw_only=True)
class Found:
    """What came of the rows. `refused`: rows of tables that are no input at all. `slowest`: seconds
    that a processor worked on a row's slowest step, and what it was: others on the machine do not
    count; what hangs is ended by the watchdog."""

    rows: int = 0
    masks: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    slowest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0
    peak_bytes: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def took(self, seconds: float, what: str) -> None:
        self.slowest = max(self.slowest, (seconds, what))


# Images


def seed_images() -> list[tuple[str, bytes]]:
    """Small pictures of each format and of its kinds."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("PNG", rgb, {"exif": exif}),
        ("PNG", rgba, {}),
        ("PNG", rgb.quantize(), {"transparency": 3}),
        ("PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 200), {}),
        ("JPEG", rgb, {"exif": exif}),
        ("JPEG", rgb, {"progressive": True}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("JPEG", grey, {}),
        ("WEBP", rgb, {"exif": exif}),
        ("WEBP", rgba, {"lossless": True}),
        ("GIF", grey, {"save_all": True, "append_images": [rgb]}),
        ("TIFF", rgb, {"compression": "tiff_lzw", "exif": exif}),
        ("TIFF", grey.convert("F"), {}),
        ("TIFF", rgb, {"compression": "jpeg"}),
        ("BMP", rgb, {}),
        ("ICO", rgba, {"sizes": [(32, 32)]}),
        ("PPM", rgb, {}),
        ("AVIF", rgb, {}),
        ("JPEG2000", rgb, {}),
        ("TGA", rgba, {}),
        ("PCX", rgb, {}),
    ]
    return [(kind, _encoded(image, kind, **options)) for kind, image, options in kinds]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated_images(count: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    seeds = seed_images()
    for _ in range(count):
        kind, data = rng.choice(seeds)
        if rng.random() < BOMBS:
            yield rng.choice(BOMB_KINDS)(rng)
            continue
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3, 8, 40))):
            rng.choice(MUTATIONS)(changed, rng, seeds)
        yield (
            kind,
            (
                with_checksums(bytes(changed))
                if kind == "PNG" and rng.random() < 0.5
                else bytes(changed)
            ),
        )


def _flip(data: bytearray, rng: random.Random, _: Any) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, _: Any) -> None:
    """A size, count or offset that no one means; more often near the start, where headers are."""
    at = int(len(data) * rng.random() ** 3)
    order, width = rng.choice("<>"), rng.choice("BHIQ")
    bits = 8 * struct.calcsize(width)
    data[at : at + bits // 8] = struct.pack(
        order + width, rng.choice((0, 1, 255, 2**bits - 1, 2 ** (bits - 1), 2**bits // 3)) % 2**bits
    )


def _cut(data: bytearray, rng: random.Random, _: Any) -> None:
    del data[int(len(data) * rng.random()) :]


def _remove(data: bytearray, rng: random.Random, _: Any) -> None:
    at = int(len(data) * rng.random())
    del data[at : at + rng.choice((1, 4, 20))]


def _double(data: bytearray, rng: random.Random, _: Any) -> None:
    at = int(len(data) * rng.random())
    data[at:at] = data[at : at + rng.choice((1, 8, 200))] * rng.choice((1, 50))


def _splice(data: bytearray, rng: random.Random, seeds: list[tuple[str, bytes]]) -> None:
    other = rng.choice(seeds)[1]
    at = int(len(data) * rng.random())
    data[at:] = other[int(len(other) * rng.random()) :]


MUTATIONS = (_flip, _flip, _flip, _number, _number, _number, _cut, _remove, _double, _splice)


def with_checksums(data: bytes) -> bytes:
    """The PNG with right checksums, so that what is wrong lies deeper."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        out += struct.pack(">I", max(0, len(body) - 4)) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)


def _png_bomb(rng: random.Random) -> tuple[str, bytes]:
    """Within the limit of pixels, of a few hundred kilobytes: each fills 300 MB."""
    side = rng.randrange(9_000, 10_000)
    return "PNG bomb", _png(side, side, zlib.compress(b"\0" * side * (side * 3 + 1), 1))


def _png_lie(rng: random.Random) -> tuple[str, bytes]:
    width, height = rng.choice(
        ((2**31 - 1, 2**31 - 1), (1, 99_999_999), (99_999_999, 1), (20_000, 20_000), (0, 5))
    )
    return "PNG lie", _png(width, height, zlib.compress(b"\0" * 1000))


def _png_text_bomb(rng: random.Random) -> tuple[str, bytes]:
    text = b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 50_000_000, 1)
    return "PNG text bomb", _png(4, 4, zlib.compress(b"\0" * 52), text)


def _long(rng: random.Random) -> tuple[str, bytes]:
    size = rng.choice(((1, 60_000), (60_000, 1), (1, 1)))
    return "thin", _encoded(Image.new("RGB", size, (rng.randrange(256), 0, 0)), "PNG")


BOMB_KINDS: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
    _png_bomb,
    _png_bomb,
    _png_lie,
    _png_text_bomb,
    _long,
)


def _png(width: int, height: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *more,
        (b"IDAT", pixels),
        (b"IEND", b""),
    ]
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# Rows

WORDS = (
    "the red circle",
    "",
    " \t\n",
    "absent",
    "explode",
    "a" * 100_000,
    "word " * 3000,
    "\0",
    "e\u0301" * 50,
    "\u202eright to left",
    "🦓" * 40,
    "x\ud7ffy",
    "'; drop table",
    "%s %n {0} {x}",
    "NaN",
    "<image> <path> </s>",
)
NUMBERS = (
    0.0,
    0.5,
    1.0,
    0.25,
    -0.0,
    -1.0,
    1.0000001,
    1e38,
    -1e38,
    float("nan"),
    float("inf"),
    None,
    1e-45,
)
URIS = (
    "good.png",
    "./good.png",
    "sub/../good.png",
    "",
    " ",
    ".",
    "..",
    "../secret.png",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://good.png",
    "link.png",
    "pipe",
    "folder",
    "/dev/zero",
    "/dev/stdin",
    "missing.png",
    "in.parquet",
    "a\0b.png",
    "x" * 300,
    "x/" * 5000,
    "https://",
    "https://127.0.0.1/a.png",
    "https://[::1",
    "https://a b",
    "http://example.org/a.png",
    "ftp://x/y",
    "s3://",
    "s3://lake/a.png",
    "s3a://x",
    "data:image/png;base64,AAAA",
    "memory://x",
    "zip://a::file://b",
    "simplecache::s3://x",
    "C:\\x.png",
    "~/x.png",
    "🦓.png",
    "%2e%2e/x",
    "https://example.org:99999/a",
    "good.png?sig=x",
    "\\\\host\\share",
    "://",
    "a://b://c",
    "good.png/",
    "//good.png",
    "y" * 1_000_000,
)
ROW_IDS = (None, "", "same", "same", "\0", "🦓", "i" * 10_000, "-1", "0")


def _refs(rng: random.Random) -> Any:
    if rng.random() < 0.3:
        return None
    if rng.random() < 0.4:
        return [
            [rng.random() for _ in range(rng.choice((2, 4)))]
            for _ in range(rng.choice((0, 1, 2, 2000)))
        ]
    return [
        rng.choice(
            (None, [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 2, 3, 4, 4, 9)))])
        )
        for _ in range(rng.randrange(4))
    ]


def _text(rng: random.Random) -> str | None:
    if rng.random() < 0.3:
        return "".join(
            chr(
                rng.choice(
                    (
                        rng.randrange(32, 127),
                        rng.randrange(0xD7FF),
                        rng.randrange(0x10000, 0x10FFFF),
                    )
                )
            )
            for _ in range(20)
        )
    return rng.choice((*WORDS, None))


def _uri(rng: random.Random) -> str:
    return (
        rng.choice(URIS)
        if rng.random() < 0.9
        else "".join(chr(rng.randrange(1, 0x2000)) for _ in range(rng.randrange(60)))
    )


def _bytes(rng: random.Random) -> bytes | None:
    return rng.choice(
        (
            png(rng.randrange(9)),
            png(1),
            png(2),
            b"",
            None,
            rng.randbytes(50),
            png(3)[: rng.randrange(200)],
        )
    )


def _struct(rng: random.Random) -> Any:
    return rng.choice(
        (
            None,
            {"bytes": _bytes(rng), "path": None},
            {"bytes": None, "path": _uri(rng)},
            {"bytes": png(4), "path": _uri(rng)},
        )
    )


def _row_id(rng: random.Random) -> str | None:
    return rng.choice(ROW_IDS) if rng.random() < 0.1 else f"r{rng.random()}"


def _mode(rng: random.Random) -> str | None:
    return (
        rng.choice(("", "all", "ONE", "x" * 10_000))
        if rng.random() < 0.1
        else rng.choice(("one", None))
    )


TEXTS = (
    pa.string(),
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.null(),
)
FLOATS = (pa.float32(), pa.float64(), pa.float16())
TAKEN: dict[str, tuple[tuple[pa.DataType, Callable[[random.Random], Any]], ...]] = {
    "image": (
        *[(IMAGE, _struct)] * 4,
        (
            pa.struct(
                [("path", pa.large_string()), ("bytes", pa.large_binary()), ("more", pa.int8())]
            ),
            _struct,
        ),
        (pa.binary(), _bytes),
        (pa.large_binary(), _bytes),
        (pa.string(), _uri),
        (pa.large_string(), _uri),
        (pa.dictionary(pa.int32(), pa.string()), _uri),
    ),
    "query": tuple((kind, _text) for kind in TEXTS),
    "row_id": (
        *((kind, _row_id) for kind in TEXTS),
        (pa.int64(), lambda rng: rng.choice((None, 0, -(2**63), 7))),
        (pa.uint64(), lambda rng: rng.choice((None, 2**64 - 1, 1))),
    ),
    "spatial_refs": (
        *[(pa.list_(pa.list_(kind)), _refs) for kind in FLOATS],
        (pa.large_list(pa.large_list(pa.float32())), _refs),
        (pa.null(), _refs),
        (pa.list_(pa.list_(pa.float32(), 2)), _refs),
        (pa.list_(pa.list_(pa.int32())), _refs),
    ),
    "mode": tuple((kind, _mode) for kind in TEXTS),
    "note": (
        (pa.map_(pa.string(), pa.int8()), lambda rng: rng.choice(({}, None))),
        (pa.decimal128(5, 2), lambda rng: None),
        (pa.timestamp("ns", "Europe/Berlin"), lambda rng: rng.choice((0, 2**62, None))),
        (pa.duration("ns"), lambda rng: 2**62),
    ),
}
NOT_TAKEN = (
    pa.float64(),
    pa.list_(pa.string()),
    pa.bool_(),
    pa.struct([("path", pa.string())]),
    pa.timestamp("s"),
    pa.binary(3),
)


def mutated_table(rows: int, rng: random.Random) -> pa.Table:
    """Rows of columns whose types are taken. Values that a type cannot hold are null; some text is
    no UTF-8.
    """
    names = [
        "image",
        "query",
        *(name for name in ("row_id", "spatial_refs", "mode") if rng.random() < 0.7),
        "note",
    ]
    columns = {}
    for name in names:
        kind, value = rng.choice(TAKEN[name])
        columns[name] = pa.concat_arrays([_array(value(rng), kind) for _ in range(rows)])
        if kind == pa.string() and rng.random() < 0.2:
            texts = [
                None if text is None or rng.random() < 0.8 else b"\xff" + text.encode()
                for text in columns[name].to_pylist()
            ]
            columns[name] = pa.array(texts, pa.binary()).view(pa.string())
    if rng.random() < REFUSED:
        columns[rng.choice(names[:-1])] = pa.nulls(rows, rng.choice(NOT_TAKEN))
    return pa.table(columns)


def _array(value: Any, kind: pa.DataType) -> pa.Array:
    if kind == pa.float16() or (
        pa.types.is_list(kind) and kind.value_type == pa.list_(pa.float16())
    ):
        value = value and [
            ref and [None if v is None else np.float16(v) for v in ref] for ref in value
        ]
    try:
        return (
            pa.array([value], pa.string()).cast(kind)
            if pa.types.is_dictionary(kind)
            else pa.array([value], kind)
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError):
        return pa.nulls(1, kind)


# The runs


class Fuzzed(FakeSegmenter):
    """Answers at once; whether a query can be asked is checked by the shipped model. The slowest
    check is noted.
    """

    def __init__(self, real: Segmenter, found: Found) -> None:
        super().__init__()
        self._real, self._found = real, found

    def check_query(self, object: str, spatial_refs: Any = ()) -> None:
        began = time.thread_time()
        try:
            self._real.check_query(object, spatial_refs)
        finally:
            self._found.took(
                time.thread_time() - began,
                f"checking a query of {len(object)} characters and {len(spatial_refs)} references",
            )


def run_table(
    table: pa.Table,
    kinds: str,
    folder: Path,
    rng: random.Random,
    segmenter: FakeSegmenter,
    found: Found,
) -> None:
    """One table through plan, shards and verification. What goes wrong is noted."""
    path = folder / "in.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=rng.choice((7, 40, 1000)),
        compression=rng.choice(("snappy", "zstd", "none")),
    )
    output = tempfile.mkdtemp(dir=folder.parent)
    settings = RunSettings.model_validate(
        {
            "input": str(path),
            "output": output,
            "shard_rows": rng.choice((13, 64, 1000)),
            "segment": {
                "allow_https": rng.random() < 0.5,
                "carry": ["note"] if "note" in table.schema.names else [],
            },
        }
    )
    found.rows += table.num_rows
    faulthandler.dump_traceback_later(MOST_SECONDS * table.num_rows, exit=True)
    try:
        plan = plan_of(settings, REVISION)
        context = ShardContext(segmenter)
        receipts = [process_shard(shard, settings, context) for shard in plan.shards]
        require_every_row_once(plan, settings)
    except InputError:
        found.refused += table.num_rows
    except Exception as error:
        found.wrong.append(f"{kinds} {table.schema.types}: {type(error).__name__}: {error}"[:500])
    else:
        found.masks += sum(receipt.masks for receipt in receipts)
        found.rejects.update(sum((Counter(receipt.rejects) for receipt in receipts), Counter()))
    finally:
        faulthandler.cancel_dump_traceback_later()


def lay_out(folder: Path) -> None:
    """What the URIs of tables name: an image, a link out of the folder, a pipe, a folder."""
    folder.mkdir()
    (folder / "good.png").write_bytes(png(5))
    (folder.parent / "secret.png").write_bytes(png(6))
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")


def fuzz(count: int, seed: int) -> dict[str, Found]:
    """`count` images, then `count` rows."""
    images, rows = Found(), Found()
    real = Segmenter.from_pretrained("demo", device="cpu")
    rng = random.Random(seed)
    note = images
    decode, image_bytes = infer_images.decode, infer_images.image_bytes

    def timed(step: Callable[..., Any]) -> Callable[..., Any]:
        def work(what: Any, *more: Any) -> Any:
            began = time.thread_time()
            try:
                return step(what, *more)
            finally:
                said = (
                    f"{len(what)} bytes {what[:8]!r}"
                    if isinstance(what, bytes)
                    else f"image {str(what.image_uri)[:60]!r}"
                )
                note.took(time.thread_time() - began, said)

        return work

    infer_images.decode, infer_images.image_bytes = timed(decode), timed(image_bytes)
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "table")
            lay_out(folder)
            for name, note in (("images", images), ("rows", rows)):
                began = time.perf_counter()
                made = mutated_images(count, rng)
                for start in range(0, count, TABLE_ROWS):
                    many = min(TABLE_ROWS, count - start)
                    if name == "images":
                        data = [next(made)[1] for _ in range(many)]
                        table = pa.table(
                            {"image": pa.array(data, pa.binary()), "query": ["a thing"] * many}
                        )
                    else:
                        table = mutated_table(many, rng)
                    run_table(table, name, folder, rng, Fuzzed(real, note), note)
                note.seconds, note.peak_bytes = time.perf_counter() - began, peak_memory()
    finally:
        infer_images.decode, infer_images.image_bytes = decode, image_bytes
    for note in (images, rows):
        if note.masks + note.rejects.total() + note.refused != note.rows and not note.wrong:
            note.wrong.append(
                f"{note.rows} rows ended as {note.masks} masks, {note.rejects.total()} rejects,"
                f" {note.refused} refused"
            )
        if note.slowest[0] > MOST_SECONDS:
            note.wrong.append(
                f"a row took {note.slowest[0]:.1f} s, more than {MOST_SECONDS:.0f}:"
                f" {note.slowest[1]}"
            )
        if note.peak_bytes > MOST_BYTES:
            note.wrong.append(
                f"the process held {note.peak_bytes / 1e6:,.0f} MB, more than"
                f" {MOST_BYTES / 1e6:,.0f}"
            )
    return {"images": images, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fuzz the pipeline with images and rows.",
        epilog="Example: python -m tests.fuzz --count 300",
    )
    parser.add_argument("--count", type=int, default=2000, help="images, and as many rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    told = parser.parse_args()
    if (
        not worker_environ(None).items() <= os.environ.items()
    ):  # the C library reads it as the process starts
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]],
            os.environ | worker_environ(None),
        )
    warnings.simplefilter("ignore")  # Pillow's about what is broken
    found = fuzz(told.count, told.seed)
    if told.json:
        print(json.dumps({name: vars(each) for name, each in found.items()}, indent=1))
    else:
        for name, each in found.items():
            print(
                f"{name}: {each.rows} in {each.seconds:.1f} s, {each.masks} masks,"
                f" {each.rejects.total()} rejected, {each.refused} refused"
            )
            print(
                f"  rejected: {', '.join(f'{code} {n}' for code, n in each.rejects.most_common())}"
            )
            print(
                f"  slowest {each.slowest[0]:.2f} s ({each.slowest[1]}), peak"
                f" {each.peak_bytes / 1e6:,.0f} MB"
            )
            print("".join(f"  WRONG: {wrong}\n" for wrong in each.wrong), end="")
    sys.exit(any(each.wrong for each in found.values()))


if __name__ == "__main__":
    main()
