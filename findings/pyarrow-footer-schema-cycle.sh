#!/usr/bin/env bash
# pyarrow 26.0.1: reading FileMetaData.schema once makes a reference cycle, so that the footer is
# freed only when Python's cyclic garbage collector runs. A planner that looks at thousands of
# footers, each dropped at once, holds them all for a long while (10,000 footers: 300 to 471 MB, 190
# MB without).
# Seen with the collector switched off: without .schema the footer goes with its last reference,
# with .schema it stays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder/table.parquet" <<'PY'
import gc
import sys
import weakref

import pyarrow as pa
import pyarrow.parquet as pq

pq.write_table(pa.table({"a": [1]}), sys.argv[1])
gc.disable()


def survives(look):
    footer = pq.read_metadata(sys.argv[1])
    look(footer)
    try:
        watch = weakref.ref(footer)
    except TypeError:
        watch = None
    before = sum(type(each).__name__ == "FileMetaData" for each in gc.get_objects())
    del footer
    after = sum(type(each).__name__ == "FileMetaData" for each in gc.get_objects())
    return after == before if watch is None else watch() is not None


plain, schema = survives(lambda f: f.num_rows), survives(lambda f: f.schema)
print("kept without .schema:", plain, " kept with .schema:", schema)
assert (plain, schema) == (False, True), "the behaviour has changed"
PY
