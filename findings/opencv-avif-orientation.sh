#!/usr/bin/env bash
# opencv-python-headless 5.0.0, pillow 13.0.0: cv2.imdecode turns a picture by its EXIF orientation
# when it decodes to colour, for JPEG, PNG, WebP and TIFF, but never for AVIF. One loader gives
# masks in two frames, by the file's format alone.
# Seen: a picture of 40 x 20 with orientation 6 comes out as (40, 20) pixels (height, width) from
# JPEG, PNG and WebP, and as (20, 40) from AVIF.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 pillow==13.0.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import io

import cv2
import numpy as np
from PIL import Image

shapes = {}
for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
    picture = Image.new("RGB", (40, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, exif=exif.tobytes())
    decoded = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    shapes[kind] = decoded.shape[:2]
print(shapes)
turned = all(shapes[kind] == (40, 20) for kind in ("JPEG", "PNG", "WEBP"))
assert turned, "the behaviour has changed"
assert shapes["AVIF"] == (20, 40), "the behaviour has changed"
PY
