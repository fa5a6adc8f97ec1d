"""Check that `fit` accepts every arm of a study, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.cli.yaml_places import places_of
from lightning_nlf.studies.runs import in_place
from lightning_nlf.studies.spec import Arm, Range, Study


def check(study: Study) -> None:
    """Read the configuration of each arm, with its changes and each value of its grid, as `fit` does.

    This imports Lightning, which takes seconds; a configuration takes about 0.3 s.

    Raises:
        ConfigurationError: `fit` would refuse an arm. The message gives the key and line in the study's yaml, if the
            mistake is there.
    """
    from lightning_nlf.cli.parts import Parts

    for arm in study.arms.values():
        for cell in cells_with_each_value(arm):
            changes = json.loads(in_place(json.dumps({**arm.changes, **cell}), study, study.report[0]))
            try:
                Parts(arm.words, changes, build=False)
            except ConfigurationError as error:
                raise ConfigurationError(_with_place(str(error), study, arm)) from None


def cells_with_each_value(arm: Arm) -> Iterator[dict[str, Any]]:
    """As few cells as contain each value of the grid: as many as its longest list. A range gives its two ends."""
    lists: Mapping[str, Any] = {
        key: (values.low, values.high) if isinstance(values, Range) else values for key, values in arm.grid.items()
    }
    for index in range(max(map(len, lists.values()), default=1)):
        yield {key: values[min(index, len(values) - 1)] for key, values in lists.items()}


def _with_place(message: str, study: Study, arm: Arm) -> str:
    """The message of `fit` with the key and line of the study instead of a flag, or with the arm before it."""
    name = arm.name.split("/")[0]
    lines = {place.name: place for place in places_of(str(study.file), "")}
    for key in sorted({**arm.changes, **arm.grid}, key=len, reverse=True):
        sources = (
            *(f"arms.{name}.settings.{arm.setting}.{part}.{key}" for part in ("grid", "changes")),
            *(f"arms.{name}.{part}.{key}" for part in ("grid", "changes")),
            f"settings.{arm.setting}.{key}",
        )
        place = next((lines[source] for source in sources if source in lines), None)
        if place and message.startswith((f"--{key}:", f"--{key} ")):
            return f"{place}: {message.removeprefix(f'--{key}').lstrip(': ')}"
    return f"arms.{arm.name} ({study.file}): {message}"
