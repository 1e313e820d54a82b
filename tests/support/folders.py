"""Folders of the checkout and beside it, and the tests in them that take long."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "model", "schemas")
SHARED = ROOT.parent / "shared"

# What --fast leaves out, as `make test-fast` does: tests that start processes, train or segment
# hundreds of images, each more than ten seconds by itself.
SLOW = {
    "tests/flows",
    "tests/model/decoding/test_batch_invariance.py",
    "tests/model/scenes/test_scenes.py",
    "tests/model/train",
    "tests/tasks/test_object_storage.py",
    "tests/test_architecture.py",
    "tests/test_fuzz.py",
    "tests/test_local.py",
    "tests/test_packaging.py",
}
