#!/usr/bin/env bash
# pyarrow 26.0.1, datasets 5.2.0: pyarrow writes columns of type list_view to Parquet and reads them
# back as such, but load_dataset of the same file fails: a table that one library of a pipeline
# writes is unreadable to the next. Write plain lists.
# Seen: the type read back by pyarrow is list_view<...>; load_dataset raises, and reads the file
# with list.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 datasets==5.2.0
HF_HUB_OFFLINE=1 HF_HOME="$folder/hf" "$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset

folder = sys.argv[1]
values = [[1, 2], [3]]
pq.write_table(pa.table({"box": pa.array(values, pa.list_(pa.int32()))}), f"{folder}/plain.parquet")
pq.write_table(
    pa.table({"box": pa.array(values, pa.list_view(pa.int32()))}), f"{folder}/view.parquet"
)
print("pyarrow reads", pq.read_schema(f"{folder}/view.parquet").field("box").type)
plain = load_dataset("parquet", data_files=f"{folder}/plain.parquet", split="train")
assert plain[0]["box"] == [1, 2]
try:
    view = load_dataset("parquet", data_files=f"{folder}/view.parquet", split="train")
    outcome = f"read: {view[0]}"
except Exception as error:
    outcome = f"raised {type(error).__name__}: {str(error)[:100]}"
print("datasets", outcome)
assert outcome.startswith("raised"), "the behaviour has changed"
PY
