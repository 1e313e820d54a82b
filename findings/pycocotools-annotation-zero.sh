#!/usr/bin/env bash
# pycocotools 2.0.11: COCOeval stores the id of the matched ground truth in an array in which 0
# means "no match". A ground truth whose annotation id is 0, as tools that count from 0 write, can
# never be found: a perfect prediction has AP 0.
# Seen: the same perfect prediction has AP 1.0 with id 1 and AP 0.0 with id 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def average_precision(annotation_id):
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": annotation_id, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40],
             "area": 1600, "iscrowd": 0}
        ],
    }
    truth.createIndex()
    found = truth.loadRes(
        [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9}]
    )
    judged = COCOeval(truth, found, "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    return float(judged.stats[0])


with contextlib.redirect_stdout(io.StringIO()):
    one, zero = average_precision(1), average_precision(0)
print("AP with annotation id 1:", round(one, 3), " with id 0:", round(zero, 3))
assert one > 0.99 and zero == 0.0, "the behaviour has changed"
PY
