#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6, pycocotools 2.0.11: safetensors.numpy.save_file writes the memory
# of a Fortran-ordered array as it lies and keeps its shape, so that it reads back scrambled,
# without an error. pycocotools' mask.decode returns such arrays, so masks cached this way are
# wrong.
# Seen: a decoded mask of one filled row reads back as scattered pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    safetensors==0.8.0 numpy==2.4.6 pycocotools==2.0.11
"$folder/venv/bin/python" -W ignore - "$folder/mask.safetensors" <<'PY'
import sys

import numpy as np
from pycocotools import mask
from safetensors.numpy import load_file, save_file

stripe = np.zeros((3, 4), dtype=np.uint8, order="F")
stripe[1] = 1
decoded = mask.decode(mask.encode(stripe))
save_file({"mask": decoded}, sys.argv[1])
back = load_file(sys.argv[1])["mask"]
print("saved", decoded.tolist(), "loaded", back.tolist())
assert back.shape == decoded.shape
assert not np.array_equal(back, decoded), "the behaviour has changed"
save_file({"mask": np.ascontiguousarray(decoded)}, sys.argv[1])
assert np.array_equal(load_file(sys.argv[1])["mask"], decoded)
PY
