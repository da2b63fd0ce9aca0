"""The metrics of one training, column by column, as far as they have come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean, median

__all__ = ["Column", "Curves"]

WINDOW = 5
"""Rows that "at the start" and "of late" mean: one iteration may be an outlier."""


@dataclass(frozen=True, slots=True)
class Column:
    """One metric: the iterations that have it, and its values."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def start(self, num: int = WINDOW) -> float:
        """Mean of the first `num` values."""
        return fmean(self.values[:num])

    def recent(self, num: int = WINDOW) -> float:
        """Mean of the last `num` values."""
        return fmean(self.values[-num:])

    def median_at_start(self, num: int = WINDOW) -> float:
        """Median of the first `num` values."""
        return median(self.values[:num])

    def recent_median(self, num: int = WINDOW) -> float:
        """Median of the last `num` values."""
        return median(self.values[-num:])

    def smoothed(self, num: int = WINDOW) -> list[float]:
        """Mean of each `num` values in a row."""
        sums = [0.0, *accumulate(self.values)]
        return [(later - earlier) / num for earlier, later in zip(sums, sums[num:], strict=False)]

    def last_iterations(self, num: int = WINDOW) -> tuple[int, int]:
        """First and last iteration of the last `num` values."""
        return self.iterations[-num:][0], self.iterations[-1]


EMPTY = Column()


class Curves:
    """The rows of one training in the order of their iterations."""

    def __init__(self, rows: Sequence[Mapping[str, object]] = ()) -> None:
        """Begin with `rows`."""
        self._columns: dict[str, Column] = {}
        self.num_rows = 0
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row; what is no finite number in it is passed over."""
        iteration = row.get("iteration")
        assert isinstance(iteration, int | float)
        self.num_rows += 1
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                column = self._columns.get(name)
                if column is None:
                    column = self._columns[name] = Column()
                column.iterations.append(int(iteration))
                column.values.append(float(value))

    def __getitem__(self, name: str) -> Column:
        """The metric `name`, empty where no row has it."""
        return self._columns.get(name, EMPTY)

    def has(self, *names: str, num: int = 1) -> bool:
        """Whether each of the metrics has at least `num` values."""
        return all(len(self[name]) >= num for name in names)

    def without(self, after: int, until: int) -> "Curves":
        """The same without the iterations from `after` + 1 to `until`, which were taken back."""
        kept = Curves()
        for name, column in self._columns.items():
            pairs = [(x, y) for x, y in zip(column.iterations, column.values, strict=True) if not after < x <= until]
            if pairs:
                kept._columns[name] = Column([x for x, _ in pairs], [y for _, y in pairs])
        kept.num_rows = len(kept["iteration"])
        return kept
