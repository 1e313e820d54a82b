"""The log of a training run: a CSV file with a header and one row for some steps."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


class RunningMeans:
    """Means of the metrics of some steps; a metric counts in the steps that have it."""

    def __init__(self) -> None:
        self.steps = 0
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count the metrics of one more step."""
        self.steps += 1
        for name, value in metrics.items():
            self._values[name].append(value)

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {}
        for name, values in self._values.items():
            means[name] = sum(values) / len(values)
        self._values.clear()
        self.steps = 0
        return means


class CsvLog:
    """A CSV file that is written row by row; its first column is the step.

    A run that resumes drops the rows that the stopped run wrote after its last checkpoint. A cell
    without a value is `nan`.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, after: int) -> None:
        """Open a log of `columns` and keep its rows up to step `after`.

        Raises:
            ValueError: if the file has other columns.
        """
        self._columns = [*columns]
        kept = [row for row in self._read(path) if int(row[0]) <= after]
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows([self._columns, *kept])
        self._file.flush()

    def _read(self, path: Path) -> list[list[str]]:
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        if not rows:
            return []
        header = rows.pop(0)
        if header != self._columns:
            raise ValueError(
                f"{path}: its columns are not those of this version, {','.join(self._columns)};"
                " train into a new folder"
            )
        return rows

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, values: Mapping[str, float | str]) -> None:
        """Append a row, to five digits."""
        cells = [values.get(name, math.nan) for name in self._columns]
        self._writer.writerow(map(_format, cells))
        self._file.flush()


def _format(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)
