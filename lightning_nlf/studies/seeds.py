"""Seeds of a study: which are for tuning, which for the report, and which of them share a start."""

from __future__ import annotations

import re
from typing import Any

from lightning_nlf.studies.section import Section

_MOST = 10_000
_LARGEST = 2**32
_EXPECTED = "seeds: a range such as 0-9, a number, or a list of these"


def read_seeds(section: Section, tuned: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds for tuning and for the report. Args: tuned: Whether some arm has a grid.

    Raises:
        ConfigurationError: A seed is for both or appears twice, or seeds are missing.
    """
    section.allow(("tune", "report"))
    if tuned and "tune" not in section:
        raise section.error("tune", "missing, and an arm has a grid; write seeds: {tune: 0-9, report: 1000-1019}")
    if "report" not in section:
        raise section.error("report", "missing; write seeds: {tune: 0-9, report: 1000-1019}")
    tune = _seeds(section, "tune") if "tune" in section else ()
    report = _seeds(section, "report")
    shared = sorted({*tune} & {*report})
    if shared:
        raise section.error("report", f"seed {shared[0]} is also a tuning seed; report on seeds that tuning never used")
    return tune, report


def read_starts(section: Section, tune: tuple[int, ...], report: tuple[int, ...]) -> dict[int, int]:
    """The first seed of each seed's start. The seeds are spread over the starts in turn, tuning and report apart."""
    if "starts" not in section:
        return {seed: seed for seed in (*tune, *report)}
    starts = section.count("starts", 1)
    if starts > len(report):
        raise section.error("starts", f"{starts} starts for {len(report)} report seeds; each start needs a seed")
    return {seed: seeds[index % starts] for seeds in (tune, report) for index, seed in enumerate(seeds)}


def _seeds(section: Section, key: str) -> tuple[int, ...]:
    value = section.value[key]
    entries = value if isinstance(value, list) else [value]
    seeds: list[int] = []
    for entry in entries:
        seeds += _range(section, key, entry, _MOST - len(seeds))
    if not seeds:
        raise section.expected(key, _EXPECTED)
    for earlier, seed in zip(sorted(seeds), sorted(seeds)[1:], strict=False):
        if earlier == seed:
            raise section.error(key, f"seed {seed} appears twice; delete one")
    return tuple(seeds)


def _range(section: Section, key: str, entry: Any, room: int) -> range:
    if isinstance(entry, int) and not isinstance(entry, bool):
        low = high = entry
    else:
        ends = re.fullmatch(r"\s*(\d{1,10})\s*-\s*(\d{1,10})\s*", entry, re.ASCII) if isinstance(entry, str) else None
        if not ends:
            raise section.expected(key, _EXPECTED)
        low, high = int(ends[1]), int(ends[2])
    if not 0 <= low <= high < _LARGEST:
        raise section.error(key, f"expected seeds from 0 to {_LARGEST - 1:,}, the lower first, got {entry!r}")
    if high - low >= room:
        raise section.error(key, f"more than {_MOST:,} seeds")
    return range(low, high + 1)
