#!/usr/bin/env bash
# pycocotools 2.0.11, numpy 2.4.6: mask.area returns numpy.uint32. The difference of two areas, as
# in "how much did the mask grow", wraps around below zero instead of being negative.
# Seen: 4 - 9 pixels = 4294967291.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from pycocotools import mask

small, large = (mask.encode(np.ones((n, n), dtype=np.uint8, order="F")) for n in (2, 3))
difference = mask.area(small) - mask.area(large)
print("type", type(mask.area(small)).__name__, "difference", difference)
assert int(difference) == 4294967291, "the behaviour has changed"
PY
