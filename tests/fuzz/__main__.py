"""Mutated images and mutated rows through the real code of a shard.

    python -m tests.fuzz [--count N] [--seed S] [--json]

Each row ends as a mask or a reject, within its time and memory. There are N images of twelve
formats with bytes changed, cut, doubled and spliced (half of the PNGs with their checksums made
right again), and among them bombs of pixels; and N rows with what strangers write into tables, of
every column type that is taken, and of some that are refused as a whole. The shipped model checks
the queries, and a fake answers them at once. Every output is verified. The exit code is 1 if a
table ended otherwise, a row took longer than `MAX_SECONDS`, or the process came to hold more than
`MAX_BYTES`.

Measured on 2 shared, busy cores of an AVX2 machine, Pillow 13.0, 25 November 2026, seed 0, 2,000 of
each, in the environment of a worker: images: 56 s, 526 masks, 1,474 rejects (image_unreadable
1,219, image_truncated 249, image_too_large 6); slowest 2.7 s of processor time, a PNG of 74 bytes
that says 99,999,999 x 1 pixels. rows: 18 s, 171 masks, 1,829 rejects of 14 codes; slowest 0.1 s.
The process held 2,359 MB at most; it was 4,180 before `tasks.infer` bounded what is decoded ahead
by pixels and `tasks.images` decoded in strips. Found with seed 1, and mended: a header that asked
Pillow for absurd memory ended its shard with MemoryError.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings

from tests.fuzz.run import Findings, fuzz
from wordmask.flows.execution.cluster import worker_environ


def main() -> None:
    """Fuzz in the environment of a worker, and print what was found."""
    parser = argparse.ArgumentParser(
        description="Fuzz the pipeline with images and rows.",
        epilog="Example: python -m tests.fuzz --count 300",
    )
    parser.add_argument("--count", type=int, default=2000, help="images, and as many rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    environ = worker_environ(None)
    if not environ.items() <= os.environ.items():
        # The C library reads it as the process starts.
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | environ)
    warnings.simplefilter("ignore")  # Pillow's about what is broken
    findings = fuzz(options.count, options.seed)
    if options.json:
        print(json.dumps({name: vars(found) for name, found in findings.items()}, indent=1))
    else:
        for name, found in findings.items():
            print_findings(name, found)
    sys.exit(any(found.wrong for found in findings.values()))


def print_findings(name: str, found: Findings) -> None:
    """Print how the rows ended, the slowest step, the memory, and what went wrong."""
    print(
        f"{name}: {found.rows} in {found.seconds:.1f} s, {found.masks} masks,"
        f" {found.rejects.total()} rejected, {found.refused} refused"
    )
    codes = ", ".join(f"{code} {n}" for code, n in found.rejects.most_common())
    print(f"  rejected: {codes}")
    seconds, step = found.slowest
    print(f"  slowest {seconds:.2f} s ({step}), peak {found.peak_bytes / 1e6:,.0f} MB")
    for wrong in found.wrong:
        print(f"  WRONG: {wrong}")


if __name__ == "__main__":
    main()
