"""What a file of an input is: a table, known by its first and last bytes, or something else."""

from __future__ import annotations

import re
from typing import Any

from wordmask.tasks.storage import Store, retry_reads

PARQUET_SUFFIXES = (".parquet", ".pq")
PARQUET_MAGIC = b"PAR1"  # at both ends of every Parquet file
HEAD_BYTES = 64
# Files with these names are no tables, and are not opened to see.
OTHER_SUFFIX = re.compile(
    r"""\.(
        avif|bmp|gif|heic|jfif|jpeg|jpg|png|svg|tif|tiff|webp
        |avi|flac|mkv|mov|mp3|mp4|wav|webm
        |csv|html|json|jsonl|log|md|pdf|py|rst|toml|tsv|txt|xml|yaml|yml
        |arrow|avro|feather|h5|lance|npy|npz|orc|pkl|pt|safetensors|sqlite
        |7z|bz2|gz|tar|tgz|xz|zip|zst
        |crc|dvc|inprogress|lock|md5|partial|sha256|tmp
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
DVC_SUFFIX = ".dvc"
DVC_POINTERS = "pointers of DVC; fetch the files with `dvc pull`"
LFS_POINTER = "a Git LFS pointer: fetch the file with `git lfs pull`"
# Other kinds by their first bytes, in words that go on with "is".
KINDS = {
    LFS_POINTER: rb"version https://git-lfs",
    "a git-annex pointer: fetch the file with `git annex get`": rb"/annex/objects/",
    "encrypted Parquet: decrypt it": rb"PARE",
    "Arrow IPC or Feather, not Parquet": rb"ARROW1|FEA1",
    "ORC, not Parquet": rb"ORC",
    "Avro, not Parquet": rb"Obj\x01",
    "gzip, not Parquet": rb"\x1f\x8b",
    "Zstandard, not Parquet": rb"\x28\xb5\x2f\xfd",
    "a ZIP archive, not Parquet": rb"PK\x03\x04",
    "markup such as a web page, not Parquet": rb"\s*<",
    "JSON, not Parquet": rb"\s*[{\[]",
}
EMPTY = "empty: it has 0 bytes"
ENDS_EARLY = "truncated, or still being written: it begins as Parquet, but does not end so"


def is_table_by_name(path: str) -> bool:
    """Return whether a file's name says that it is Parquet."""
    return path.lower().endswith(PARQUET_SUFFIXES)


def why_no_table_by_name(path: str) -> str | None:
    """Return why a file is no table, as far as its name says so, else None."""
    found = OTHER_SUFFIX.search(path)
    if found is None:
        return None
    suffix = found.group().lower()
    if suffix == DVC_SUFFIX:
        return DVC_POINTERS
    return f"no tables by their names ({suffix})"


def why_not_parquet(store: Store, size: int) -> str | None:
    """Return what a file is, if it is not Parquet at both of its ends, else None.

    The answer goes on with "is". One or two small ranges are read.
    """
    if size == 0:
        return EMPTY
    head = read_range(store, 0, min(size, HEAD_BYTES))
    if not head.startswith(PARQUET_MAGIC):
        return _kind(head)
    tail = read_range(store, max(0, size - len(PARQUET_MAGIC)), size)
    if tail != PARQUET_MAGIC:
        return ENDS_EARLY
    return None


def read_range(store: Store, start: int, stop: int) -> bytes:
    """Return some bytes of a file."""
    data: Any = retry_reads(lambda: store.fs.cat_file(store.root, start=start, end=stop))
    return bytes(data)


def _kind(head: bytes) -> str:
    for words, beginning in KINDS.items():
        if re.match(beginning, head):
            return words
    return "not Parquet"
