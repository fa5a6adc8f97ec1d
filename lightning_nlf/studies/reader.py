"""Read the yaml of a study, with one clear error for each mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

from lightning_nlf.cli.errors import ConfigurationError, nearest
from lightning_nlf.cli.yaml_bounds import read_text
from lightning_nlf.cli.yaml_places import flags, places_of
from lightning_nlf.studies.arms import check_name, read_arms
from lightning_nlf.studies.check import check
from lightning_nlf.studies.first import arguments, is_of_start, subcommand
from lightning_nlf.studies.section import Section, described
from lightning_nlf.studies.seeds import read_seeds, read_starts
from lightning_nlf.studies.spec import FOLDER, PRUNERS, SAMPLERS, Arm, Search, Solved, Study

__all__ = ["check", "read"]

KEYS = (
    *("arms", "settings", "baseline", "metric", "also", "direction", "last", "solved", "budgets", "tune_budgets"),
    *("seeds", "starts", "first", "search", "results"),
)
_WRITERS = ("fit", "predict")
_PLACE = "--run_dir {study}/first/{start}/sft"


def read(file: str) -> Study:
    """The study in a yaml.

    Raises:
        ConfigurationError: The yaml is wrong. The message gives the key, file, line, and what to do.
    """
    places = places_of(file, "")  # checks size, depth, tags and double keys
    root = Section.whole(get_loader("yaml")(read_text(file)), file, places)
    root.allow(KEYS)
    name = Path(file).stem
    try:
        check_name(root, name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: the file names the study: {str(error).partition(': ')[2]}") from None
    metric, first, search = root.text("metric", "val/return"), _first(root), _search(root.section("search"))
    solved, higher = _criterion(root)
    ends = None if solved is None else asdict(solved)  # a run ends when it is solved
    arms = read_arms(root, {"metric": metric, "first": first, "solved": ends, "higher": higher}, search)
    tune, report = read_seeds(root.section("seeds"), any(arm.grid for arm in arms.values()))
    starts = read_starts(root, tune, report)
    _check_places(root, first, len({*starts.values()}))
    return Study(
        name=name,
        file=Path(file),
        folder=FOLDER / name,
        arms=arms,
        baselines=_baselines(root, arms),
        metric=metric,
        tune=tune,
        report=report,
        starts=starts,
        higher=higher,
        last=root.count("last", 1),
        solved=solved,
        first=first,
        search=search,
        results=_results(root),
        also=root.texts("also", "a list of further metrics, such as [val/kl_sampled]"),
    )


def _criterion(root: Section) -> tuple[Solved | None, bool]:
    """When a run is solved, if the yaml says so, and whether a higher metric is better."""
    direction = root.choice("direction", ("max", "min"), "max")
    if "solved" not in root:
        return None, direction == "max"
    if "last" in root:
        raise root.error("last", "not used beside solved; delete one of them")
    solved = root.section("solved", "a mapping such as {at_least: 950, in_a_row: 3}")
    solved.allow(("at_least", "at_most", "in_a_row"))
    if ("at_least" in solved) == ("at_most" in solved):
        raise root.error("solved", "expected one of at_least and at_most")
    key = "at_least" if "at_least" in solved else "at_most"
    if "direction" in root and (direction == "max") != (key == "at_least"):
        raise root.error("direction", f"{direction} contradicts solved.{key}; delete direction")
    return Solved(solved.number(key), solved.count("in_a_row", 1)), key == "at_least"


def _baselines(root: Section, arms: Mapping[str, Arm]) -> dict[str, str]:
    """The baseline of each arm: in the same setting if there, else in the baseline's first setting."""
    baseline = root.text("baseline", "the name of an arm")
    rows = {arm.setting: name for name, arm in arms.items() if name.split("/")[0] == baseline}
    if baseline in arms:  # also the name of a row, such as joint/fifty
        rows = {"": baseline}
    if not rows:
        names = dict.fromkeys([*(name.split("/")[0] for name in arms), *arms])
        raise root.error("baseline", f"no such arm: {baseline}. {nearest(baseline, names) or _there_are(names)}")
    first = next(iter(rows.values()))
    return {name: rows.get(arm.setting, first) for name, arm in arms.items()}


def _there_are(names: Mapping[str, Any]) -> str:
    return f"There are {', '.join(names)}."


def _search(section: Section) -> Search:
    section.allow(("sampler", "cells", "pruner"))
    sampler = section.choice("sampler", SAMPLERS, "grid")
    if sampler == "grid" and "cells" in section:
        raise section.error("cells", "sampler: grid runs all cells; delete cells, or use sampler: random or tpe")
    if sampler != "grid" and "cells" not in section:
        raise section.error("cells", f"missing; sampler: {sampler} needs a number of cells, such as cells: 20")
    cells = None if sampler == "grid" else section.count("cells", 1)
    return Search(sampler, cells, section.choice("pruner", PRUNERS, "none"))


def _first(root: Section) -> tuple[str, ...]:
    """Commands. A list of words for a shell is not allowed, because no shell reads them."""
    commands = root.texts("first", f"a list of commands, such as [fit --config conf/reviews/sft.yaml {_PLACE}]")
    for command in commands:
        try:
            arguments(command)
        except ValueError as error:
            raise root.error("first", f"{command!r}: {str(error).lower()}") from None
    return commands


def _check_places(root: Section, commands: Iterable[str], starts: int) -> None:
    """Refuse a command that writes into a run folder which other starts or other studies also use."""
    for command in commands:
        words = arguments(command)
        if subcommand(words) not in _WRITERS:
            continue
        folder = next((flag.value for flag in reversed(flags(words)) if flag.keys == ("run_dir",)), "")
        if not folder:
            reason = "without --run_dir, all starts and all studies would share its folder"
        elif starts > 1 and is_of_start(command) and "{start}" not in folder:
            reason = f"the {starts} starts would share the folder {folder}"
        else:
            continue
        raise root.error("first", f"{described(command)}: {reason}. Write {_PLACE}, or another folder with {{start}}")


def _results(root: Section) -> Path | None:
    if "results" not in root:
        return None
    path = Path(root.text("results", "a path without suffix, such as benchmarks/results/speedup"))
    if path.suffix in (".json", ".md", ".png") or not path.name:
        raise root.expected("results", "a path without suffix, such as benchmarks/results/speedup")
    return path
