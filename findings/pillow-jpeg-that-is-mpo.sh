#!/usr/bin/env bash
# Pillow 13.0.0: Image.open(..., formats=["JPEG"]) of a multi-picture JPEG, as many telephones and
# stereo cameras write them, gives an image whose `format` is "MPO" and which has two frames. So a check
# of `format` against the list that was handed to `open` turns valid photographs away, and saving
# with `format=image.format` writes a container with one picture. Decide by the magic bytes.
# Seen: format MPO, 2 frames, although only JPEG was allowed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
"$folder/venv/bin/python" - <<'PY'
import io

from PIL import Image

file = io.BytesIO()
left, right = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
left.save(file, "MPO", save_all=True, append_images=[right])
image = Image.open(file, formats=["JPEG"])
print("allowed: JPEG; opened:", image.format, "with", image.n_frames, "frames")
assert (image.format, image.n_frames) == ("MPO", 2), "the behaviour has changed"
PY
