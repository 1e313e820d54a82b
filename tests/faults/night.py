"""A run as a process of its own, with a model that answers at once: what the faults are done to.

Run: `python -m tests.faults.night SETTINGS.json`; prints what came of it as one JSON document.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows.prefect_api import configure
from schemas.settings import RunSettings

FACTORY = "tests.fakes:FakeSegmenter"


def main() -> None:
    configure(verbose=False)
    from flows.segment import segment

    settings = RunSettings.model_validate_json(Path(sys.argv[1]).read_text())
    try:
        summary = segment(settings, factory=FACTORY)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    print(summary.model_dump_json())


if __name__ == "__main__":
    main()
