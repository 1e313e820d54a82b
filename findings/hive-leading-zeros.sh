#!/usr/bin/env bash
# pyarrow 26.0.1, DuckDB 2.0.1, Polars 2.1.0: of a folder named camera=007, pyarrow and Polars make
# the number 7 and DuckDB the text "007". A join of masks with their input on such a key finds nothing, or the
# wrong row where camera=7 exists as well: two folders are one value to the first two readers.
# Seen: two distinct values of `camera` in DuckDB, one in pyarrow and Polars.
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
import pyarrow.parquet as pq

root = Path(sys.argv[1])
for name in ("camera=007", "camera=7"):
    (root / name).mkdir(parents=True)
    pq.write_table(pa.table({"q": [name]}), root / name / "part.parquet")
query = f"select distinct camera from '{root}/**/*.parquet'"
found = {
    "pyarrow": set(pq.read_table(root)["camera"].to_pylist()),
    "Polars": set(polars.scan_parquet(root).collect()["camera"]),
    "DuckDB": {row[0] for row in duckdb.sql(query).fetchall()},
}
for reader, values in found.items():
    print(f"{reader}: {sorted(values)}")
assert found == {"pyarrow": {7}, "Polars": {7}, "DuckDB": {"007", "7"}}, "the behaviour has changed"
PY
