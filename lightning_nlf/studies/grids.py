"""The grid of an arm in the yaml of a study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_nlf.studies.section import Section, described, is_number
from lightning_nlf.studies.spec import Arm, Range, Search

_MOST_CELLS = 10_000
_MOST_VALUES = 1_000
# Keys of `fit` that the study sets.
BY_STUDY = {
    "seed_everything": "list the seeds under seeds",
    "run_dir": "each run has its folder",
    "ckpt_path": "a run resumes by itself",
    "config": "name the yaml under yaml",
}


def read_grid(section: Section) -> dict[str, Sequence[Any] | Range]:
    """The values of each key, a list or a range."""
    grid: dict[str, Sequence[Any] | Range] = {}
    for key, value in section.value.items():
        if isinstance(value, Mapping):
            grid[key] = _range(section.section(key))
        elif not isinstance(value, list) or not value:
            raise section.expected(key, "a list of values, or {low: …, high: …, log: true}")
        else:
            section.check_value(key)
            if len(value) > _MOST_VALUES:
                raise section.error(key, f"{len(value):,} values; at most {_MOST_VALUES:,}, or a range")
            for first, second in itertools.combinations(value, 2):
                if first == second and isinstance(first, bool) == isinstance(second, bool):
                    raise section.error(key, f"{described(first)} appears twice; delete one")
            grid[key] = tuple(value)
    return grid


def _range(section: Section) -> Range:
    section.allow(("low", "high", "log"))
    low, high, log = section.number("low"), section.number("high"), section.value.get("log", False)
    if not isinstance(log, bool):
        raise section.expected("log", "true or false")
    if not low < high:
        raise section.error("high", f"expected a number above low ({low}), got {high}")
    if log and low <= 0:
        raise section.error("low", f"a log scale needs a number above 0, got {low}")
    return Range(low, high, log)


def check_grid(section: Section, arm: Arm, search: Search) -> None:
    """Refuse keys that the study sets, keys with a change and a grid, and a grid that does not fit the search."""
    for key in (*arm.changes, *arm.grid):
        below = section.section("grid" if key in arm.grid else "changes")
        if key.split(".")[0] in BY_STUDY:
            raise below.error(key, f"this key is set by the study: {BY_STUDY[key.split('.')[0]]}")
        if key in arm.changes and key in arm.grid:
            raise below.error(key, "the arm also has a change of this key; delete one of them")
    below = section.section("grid")
    ranges = [key for key, values in arm.grid.items() if isinstance(values, Range)]
    if ranges and search.sampler == "grid":
        raise below.error(ranges[0], "a range needs search: {sampler: random} or {sampler: tpe}; a grid needs a list")
    cells = math.prod(len(values) for values in arm.grid.values() if not isinstance(values, Range))
    if not ranges and search.sampler == "grid" and cells > _MOST_CELLS:
        raise section.error(
            "grid", f"{cells:,} cells; at most {_MOST_CELLS:,}. Use search: {{sampler: random, cells: 50}}"
        )
    if arm.grid and not ranges and search.cells is not None and search.cells > cells:
        raise section.error("grid", f"it has {cells} cells, but search.cells is {search.cells}; use sampler: grid")


def contains(grid: Mapping[str, Sequence[Any] | Range], cell: Mapping[str, Any]) -> bool:
    """Whether a cell has a value of each list or range of a grid, and nothing else."""
    return cell.keys() == grid.keys() and all(_has(values, cell[key]) for key, values in grid.items())


def _has(values: Sequence[Any] | Range, value: Any) -> bool:
    if isinstance(values, Range):
        return is_number(value) and values.low <= value <= values.high
    return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in values)
