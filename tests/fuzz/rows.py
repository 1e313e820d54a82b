"""Mutated rows: what strangers write into tables, in columns of every type that is taken."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.tables import IMAGE, png

REFUSED = 0.1  # share of tables with a column of a type that is not taken

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
        return [_sound_ref(rng) for _ in range(rng.choice((0, 1, 2, 2000)))]
    return [_odd_ref(rng) for _ in range(rng.randrange(4))]


def _sound_ref(rng: random.Random) -> list[float]:
    return [rng.random() for _ in range(rng.choice((2, 4)))]


def _odd_ref(rng: random.Random) -> list[float | None] | None:
    length = rng.choice((0, 1, 2, 2, 3, 4, 4, 9))
    return rng.choice((None, [rng.choice(NUMBERS) for _ in range(length)]))


def _text(rng: random.Random) -> str | None:
    if rng.random() < 0.3:
        return "".join(_character(rng) for _ in range(20))
    return rng.choice((*WORDS, None))


def _character(rng: random.Random) -> str:
    ascii, basic = rng.randrange(32, 127), rng.randrange(0xD7FF)
    return chr(rng.choice((ascii, basic, rng.randrange(0x10000, 0x10FFFF))))


def _uri(rng: random.Random) -> str:
    if rng.random() < 0.9:
        return rng.choice(URIS)
    return "".join(chr(rng.randrange(1, 0x2000)) for _ in range(rng.randrange(60)))


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
    if rng.random() < 0.1:
        return rng.choice(ROW_IDS)
    return f"r{rng.random()}"


def _mode(rng: random.Random) -> str | None:
    if rng.random() < 0.1:
        return rng.choice(("", "all", "ONE", "x" * 10_000))
    return rng.choice(("one", None))


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
    """Return rows of columns whose types are taken, or now and then of one that is not.

    Values that a type cannot hold are null. Some text is no UTF-8.
    """
    optional = [name for name in ("row_id", "spatial_refs", "mode") if rng.random() < 0.7]
    names = ["image", "query", *optional, "note"]
    columns = {}
    for name in names:
        kind, value = rng.choice(TAKEN[name])
        columns[name] = pa.concat_arrays([_array(value(rng), kind) for _ in range(rows)])
        if kind == pa.string() and rng.random() < 0.2:
            texts = [_broken_text(text, rng) for text in columns[name].to_pylist()]
            columns[name] = pa.array(texts, pa.binary()).view(pa.string())
    if rng.random() < REFUSED:
        columns[rng.choice(names[:-1])] = pa.nulls(rows, rng.choice(NOT_TAKEN))
    return pa.table(columns)


def _broken_text(text: str | None, rng: random.Random) -> bytes | None:
    if text is None or rng.random() < 0.8:
        return None
    return b"\xff" + text.encode()


def _array(value: Any, kind: pa.DataType) -> pa.Array:
    if value and kind == pa.list_(pa.list_(pa.float16())):
        value = [_as_float16(ref) for ref in value]
    try:
        if pa.types.is_dictionary(kind):
            return pa.array([value], pa.string()).cast(kind)
        return pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError):
        return pa.nulls(1, kind)


def _as_float16(ref: list[float | None] | None) -> Any:
    if ref is None:
        return None
    return [value if value is None else np.float16(value) for value in ref]
