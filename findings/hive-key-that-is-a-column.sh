#!/usr/bin/env bash
# pyarrow 26.0.1, DuckDB 2.0.1, Polars 2.1.0: where a folder is named split=test and the file in it
# has a column `split` too, with "train" in it, readers give two answers and one refuses. The column's
# values are replaced without a word by pyarrow.dataset, DuckDB and a Polars scan of the folder; a
# Polars scan of a glob over the same file keeps them; pyarrow.parquet.read_table raises. A table
# that was written by split and moved to another folder changes its content by that.
# Seen: 'test' from three readers, 'train' from one, ArrowTypeError from one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pyarrow==26.0.1 duckdb==2.0.1 polars==2.1.0
"$folder/venv/bin/python" - "$folder/table" <<'PY'
import sys
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

root = Path(sys.argv[1])
(root / "split=test").mkdir(parents=True)
pq.write_table(pa.table({"q": ["a"], "split": ["train"]}), root / "split=test/part.parquet")
glob = f"{root}/**/*.parquet"
readers = {
    "pyarrow.dataset": lambda: pyarrow.dataset.dataset(root, partitioning="hive").to_table()["split"],
    "pyarrow.read_table": lambda: pq.read_table(root)["split"],
    "DuckDB": lambda: [row[0] for row in duckdb.sql(f"select split from '{glob}'").fetchall()],
    "Polars, folder": lambda: polars.scan_parquet(root).collect()["split"],
    "Polars, glob": lambda: polars.scan_parquet(glob).collect()["split"],
}
found = {}
for name, read in readers.items():
    try:
        (value,) = list(read())
        found[name] = str(value)
    except Exception as error:
        found[name] = type(error).__name__
    print(f"{name}: {found[name]}")
assert found == {
    "pyarrow.dataset": "test",
    "pyarrow.read_table": "ArrowTypeError",
    "DuckDB": "test",
    "Polars, folder": "test",
    "Polars, glob": "train",
}, "the behaviour has changed"
PY
