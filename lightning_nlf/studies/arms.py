"""The arms in the yaml of a study, one per setting."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import get_loader

from lightning_nlf.cli.errors import ConfigurationError, nearest
from lightning_nlf.cli.yaml_bounds import read_text
from lightning_nlf.cli.yaml_places import config_files, flags, places_of
from lightning_nlf.studies.grids import BY_STUDY, check_grid, read_grid
from lightning_nlf.studies.runs import digest
from lightning_nlf.studies.section import Section
from lightning_nlf.studies.spec import COUNTERS, Arm, Range, Search

_KEYS = ("yaml", "changes", "grid", "budgets", "tune_budgets", "metric")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_MOST_ROWS = 1_000
_YAML = "the path of a yaml, perhaps with flags of fit behind it"


@dataclass(frozen=True)
class Entry:
    """What one place of the yaml says about an arm: the arm itself, or a setting of it."""

    section: Section
    words: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any] | Range] | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)
    tune_budgets: Mapping[str, float] = field(default_factory=dict)
    metric: str = ""


def read_arms(root: Section, recipe: Mapping[str, Any], search: Search) -> dict[str, Arm]:
    """All arms by name, in the order of the yaml. Args: recipe: What the runs of all arms depend on.

    Raises:
        ConfigurationError: A key, value, yaml, setting or counter is wrong.
    """
    section = root.section("arms", "arms by name, such as {joint: conf/pendulum/joint.yaml}")
    if not section.value:
        raise root.error("arms", "missing; name the yamls to compare, such as arms: {joint: conf/pendulum/joint.yaml}")
    settings = root.section("settings", "settings by name, each with its changes, such as {fifty: {data.limit: 50}}")
    for part in (section, settings):
        for name in part.value:
            check_name(part, name)
    budgets, tune_budgets = read_budgets(root, "budgets"), read_budgets(root, "tune_budgets")
    arms: dict[str, Arm] = {}
    folders: dict[str, str] = {}
    for name in section.value:
        for setting, entries in _entries(section, name, settings):
            arm = _arm(name, setting, [Entry(root, budgets=budgets, tune_budgets=tune_budgets), *entries], recipe)
            twin = folders.setdefault(arm.name.replace("/", "-"), arm.name)
            if twin != arm.name:
                raise section.error(name, f"{arm.name} and {twin} would have the same folder; rename one")
            check_grid(entries[-1].section if entries[-1].grid else entries[-2].section, arm, search)
            arms[arm.name] = arm
            if len(arms) > _MOST_ROWS:
                raise root.error("arms", f"more than {_MOST_ROWS:,} arms and settings")
    return arms


def check_name(section: Section, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise section.error(name, "a name has letters, digits and any of _ . + - (at most 64); it names folders")


def read_budgets(section: Section, key: str) -> dict[str, float]:
    """Limits by counter; empty if the key is missing."""
    below = section.section(key, "limits by counter, such as {env_steps: 40000}")
    below.allow(COUNTERS, "counter")
    for name in below.value:
        if below.number(name, "a number above 0") <= 0:
            raise below.expected(name, "a number above 0")
    return dict(below.value)


def _entries(section: Section, name: str, settings: Section) -> Iterator[tuple[str, list[Entry]]]:
    """Each setting of an arm, with the entries that give the arm's values in it, the weakest first."""
    value = section.value[name]
    if isinstance(value, str):
        arm = Section({"yaml": value}, f"{section.path}.{name}", section.file, section.lines)
    else:
        arm = section.section(name, f"{_YAML}, or a mapping with the key yaml")
    arm.allow((*_KEYS, "settings"))
    base = _entry(arm)
    if not base.words:
        raise arm.error("yaml", "missing; write yaml: conf/….yaml")
    names = _settings_of(arm, settings)
    overrides = arm.section("settings") if isinstance(arm.value.get("settings"), Mapping) else None
    for setting in names or [""]:
        shared = [Entry(settings, changes=settings.values(setting))] if setting else []
        override = Entry(arm)
        if overrides is not None and setting:
            below = overrides.section(setting, f"a mapping with any of {', '.join(_KEYS)}")
            below.allow(_KEYS)
            override = _entry(below)
        yield setting, [*shared, base, override]


def _settings_of(arm: Section, settings: Section) -> list[str]:
    value = arm.value.get("settings")
    if value is None:
        return list(settings.value)
    names = [str(name) for name in value] if isinstance(value, (list, Mapping)) else []
    if not names:
        raise arm.expected("settings", "a list of names of settings, or a mapping from such names to changed keys")
    if not settings.value:
        raise arm.error("settings", "the study has no settings; add the key settings beside arms")
    for name in names:
        if name not in settings.value:
            hint = nearest(name, settings.value) or f"There are {', '.join(settings.value)}."
            raise arm.error("settings", f"no such setting: {name}. {hint}")
    return list(dict.fromkeys(names))


def _entry(section: Section) -> Entry:
    return Entry(
        section,
        _words(section) if "yaml" in section else (),
        section.values("changes"),
        read_grid(section.section("grid", "values by dotted key, such as {model.lr: [0.01, 0.02]}"))
        if "grid" in section
        else None,
        read_budgets(section, "budgets"),
        read_budgets(section, "tune_budgets"),
        section.text("metric", "a metric of validations, such as val/return") if "metric" in section else "",
    )


def _words(section: Section) -> tuple[str, ...]:
    """Arguments of `fit` for a yaml with flags behind it, after a check that its yamls can be read."""
    try:
        file, *rest = shlex.split(section.text("yaml", _YAML))
    except ValueError as error:
        raise section.error("yaml", f"expected {_YAML}: {str(error).lower()}") from None
    words = ("--config", file, *rest)
    for flag in flags(words):
        if flag.keys and flag.keys[0] in BY_STUDY and flag.keys[0] != "config":
            raise section.error("yaml", f"{flag.name} is set by the study: {BY_STUDY[flag.keys[0]]}")
    for path in config_files(words):
        try:
            places_of(path, "")
        except ConfigurationError as error:
            raise section.error("yaml", str(error)) from None
    return words


def _arm(name: str, setting: str, entries: Sequence[Entry], recipe: Mapping[str, Any]) -> Arm:
    """The arm that its entries describe: the later win, key by key; yaml and grid as a whole."""
    words = [entry.words for entry in entries if entry.words][-1]
    changes = {key: value for entry in entries for key, value in entry.changes.items()}
    grids = [entry.grid for entry in entries if entry.grid is not None]
    metric = next((entry.metric for entry in reversed(entries) if entry.metric), "")
    contents = [repr(get_loader("yaml")(read_text(file))) for file in config_files(words)]  # without comments
    return Arm(
        f"{name}/{setting}" if setting else name,
        words,
        changes,
        grids[-1] if grids else {},
        {key: value for entry in entries for key, value in entry.budgets.items()},
        {key: value for entry in entries for key, value in entry.tune_budgets.items()},
        setting,
        digest(
            {
                **recipe,
                **({"metric": metric} if metric else {}),
                "words": words,
                "changes": changes,
                "contents": contents,
            }
        ),
        metric,
    )
