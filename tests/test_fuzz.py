"""Mutated images and rows, a few; `python -m tests.fuzz` tries thousands."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.folders import ROOT


def test_mutated_images_and_rows_end_as_masks_or_rejects() -> None:
    """In a process of its own, which may crash, and whose memory is that of this alone."""
    command = [sys.executable, "-m", "tests.fuzz", "--count", "200", "--seed", "1", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode in (0, 1), f"the process died: {done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    assert [each["wrong"] for each in found.values()] == [[], []]
    images, rows = found["images"], found["rows"]
    assert images["masks"] + sum(images["rejects"].values()) == images["rows"] == 200
    assert rows["masks"] + sum(rows["rejects"].values()) + rows["refused"] == rows["rows"] == 200
    assert min(images["masks"], rows["masks"]) > 10, (
        "nothing survives: the mutations are too coarse to reach what lies deeper"
    )
    assert len(images["rejects"]) >= 2
    assert len(rows["rejects"]) >= 8
