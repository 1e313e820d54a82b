#!/usr/bin/env bash
# pycocotools 2.0.11, numpy 2.4.6: mask.encode takes a uint8 array and starts a new run at every
# change of value, not at every change between zero and non-zero. A mask that holds the numbers 1
# and 2 (two touching objects of an instance map) encodes without an error into a mask that has lost
# the second object and gained background. A mask of 0 and 255 is fine.
# Seen: the row 0 1 1 2 2 0 decodes to 0 1 1 0 0 1, area 3 instead of 4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from pycocotools import mask

two_objects = np.asfortranarray([[0], [1], [1], [2], [2], [0]], dtype=np.uint8)
rle = mask.encode(two_objects)
decoded = mask.decode(rle)[:, 0].tolist()
print("in", two_objects[:, 0].tolist(), "out", decoded, "area", int(mask.area(rle)))
assert decoded == [0, 1, 1, 0, 0, 1], "the behaviour has changed"
assert int(mask.area(rle)) == 3, "the behaviour has changed"
as_255 = np.asfortranarray((two_objects > 0) * 255, dtype=np.uint8)
assert mask.decode(mask.encode(as_255))[:, 0].tolist() == [0, 1, 1, 1, 1, 0]
PY
