"""One row of the result: a figure, what was measured, what it is compared to and whether its aim is reached.

Nothing stands here that was not measured: what could not be is None, with the reason in `note`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Aim:
    """What is wanted: `of` the row's own value or of its ratio, at least or at most `bound`."""

    text: str
    of: Literal["ours", "ratio"]
    at: Literal["least", "most"]
    bound: float

    def reached(self, ours: float | None, ratio: float | None) -> bool | None:
        """Whether it is; None when that was not measured."""
        value = ours if self.of == "ours" else ratio
        if value is None:
            return None
        return value >= self.bound if self.at == "least" else value <= self.bound


@dataclass(frozen=True)
class Row:
    """`ratio` is ours to the fastest peer, or to what `note` names. `runs` are the single measurements."""

    key: str
    figure: str
    unit: str
    ours: float | None
    peers: Mapping[str, float | None] = field(default_factory=dict)
    ratio: float | None = None
    aim: Aim | None = None
    note: str = ""
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None without an aim or without a measurement."""
        return None if self.aim is None else self.aim.reached(self.ours, self.ratio)

    def as_json(self) -> dict[str, Any]:
        """The row for `--json`."""
        return {
            "key": self.key,
            "figure": self.figure,
            "unit": self.unit,
            "nightshift": self.ours,
            "peers": dict(self.peers),
            "ratio": self.ratio,
            "aim": self.aim.text if self.aim else None,
            "reached": self.reached,
            "note": self.note,
            "runs": {name: list(values) for name, values in self.runs.items()},
        }


def compared(
    key: str, figure: str, unit: str, runs: Mapping[str, Sequence[float]], *, ours: str, better: Better,
    aim: Aim | None = None, note: str = "",
) -> Row:  # fmt: skip
    """A row of medians over the runs of all contestants, with the ratio of ours to the fastest peer."""
    medians = {name: statistics.median(values) for name, values in runs.items() if values}
    own = medians.get(ours)
    others = {name: medians.get(name) for name in runs if name != ours}
    measured = [value for value in others.values() if value is not None]
    ratio = None
    if own is not None and measured:
        ratio = own / (max(measured) if better == "higher" else min(measured))
    return Row(key, figure, unit, own, others, ratio, aim, note, runs)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
