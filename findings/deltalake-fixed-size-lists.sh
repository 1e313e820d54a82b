#!/usr/bin/env bash
# deltalake 1.6.6, pyarrow 26.0.1: a column of fixed-size lists (a box of four numbers) is accepted
# and comes back as a plain list: the length is not part of a Delta schema. Readers that stack boxes
# into an array must check the length themselves, and schemas of two engines no longer compare
# equal.
# Seen: fixed_size_list<int32>[4] in, list<int32> out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check deltalake==1.6.6 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder/table" <<'PY'
import sys

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

boxes = pa.array([[1, 2, 3, 4]], pa.list_(pa.int32(), 4))
write_deltalake(sys.argv[1], pa.table({"bbox": boxes}))
back = DeltaTable(sys.argv[1]).to_pyarrow_table().schema.field("bbox").type
print("in", boxes.type, "out", back)
assert pa.types.is_fixed_size_list(boxes.type)
assert pa.types.is_list(back) and not pa.types.is_fixed_size_list(back), "the behaviour has changed"
PY
