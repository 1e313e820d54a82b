#!/usr/bin/env bash
# pyarrow 26.0.1: the Parquet writer leaves a column chunk's minimum and maximum out when one of
# them is longer than 4,096 bytes, and says nothing. A column of file names or short strings has
# statistics; one long value (an RLE string, a data: URI) and filters on that chunk prune nothing.
# Seen: has_min_max is true for a longest value of 4,096 bytes and false for 4,097.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder/table.parquet" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq


def has_range(longest):
    pq.write_table(pa.table({"value": ["b", "a" * longest]}), sys.argv[1])
    statistics = pq.read_metadata(sys.argv[1]).row_group(0).column(0).statistics
    return statistics is not None and statistics.has_min_max


found = {length: has_range(length) for length in (100, 4096, 4097)}
print(found)
assert found == {100: True, 4096: True, 4097: False}, "the behaviour has changed"
PY
