#!/usr/bin/env bash
# pycocotools 2.0.11: mask.merge of masks of two different sizes raises nothing. It returns a mask
# of size 0 x 0 with no runs, so an intersection or union over a mask of another image (or of one
# image before and after a resize) quietly has area 0.
# Seen: merge of a full 4 x 4 and a full 5 x 5 mask: size [0, 0], area 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from pycocotools import mask

four, five = (mask.encode(np.ones((n, n), dtype=np.uint8, order="F")) for n in (4, 5))
merged = mask.merge([four, five])
print("merged", merged, "area", int(mask.area(merged)))
assert merged["size"] == [0, 0], "the behaviour has changed"
assert int(mask.area(merged)) == 0, "the behaviour has changed"
PY
