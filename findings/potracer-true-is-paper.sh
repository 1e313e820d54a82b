#!/usr/bin/env bash
# potracer 0.0.4: potrace.Bitmap takes a boolean array in which False is ink and True is paper, the
# other way round from a mask. Bitmap(mask) traces the background: the outline of everything else,
# with the object as a hole.
# Seen: a square of 4 x 4 pixels in an image of 10 x 10 gives two curves with Bitmap(mask), and one
# with Bitmap(mask == 0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check potracer==0.0.4 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import potrace

square = np.zeros((10, 10), dtype=bool)
square[3:7, 3:7] = True
as_mask = potrace.Bitmap(square).trace()
inverted = potrace.Bitmap(square == 0).trace()
print("curves of Bitmap(mask):", len(as_mask), " of Bitmap(mask == 0):", len(inverted))
assert (len(as_mask), len(inverted)) == (2, 1), "the behaviour has changed"
PY
