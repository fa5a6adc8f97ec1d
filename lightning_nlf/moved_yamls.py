"""New paths of yamls that were moved inside `conf/`, for error messages."""

from __future__ import annotations

import csv
import os
import shlex
from pathlib import Path

MOVED = "moved.csv"  # a file in `conf/` with columns `old` and `new` (path and flags)


def new_place(file: str) -> str | None:
    """The new path of a moved yaml, such as `conf/reviews/dpo.yaml` for `conf/rlhf/dpo.yaml`.

    None if the yaml was not moved.

    If the old yaml is now a variant of another yaml, the path is followed by the flags that select this variant.
    """
    path = Path(file)
    # os.path.isfile returns False for an impossible path, where Path.is_file raises an error.
    conf = next((folder for folder in path.parents if os.path.isfile(folder / MOVED)), None)
    if conf is None:
        return None
    new = _moved(conf).get(path.relative_to(conf).as_posix())
    return None if new is None else str(conf / new)


def arguments(conf: Path, name: str) -> list[str]:
    """Arguments of the command line for a yaml, or for a variant: a yaml with flags.

    Args:
        conf: The folder of all yamls.
        name: Path below `conf` without `.yaml`: `reviews/dpo`, or `reviews/dpo_hinge`, a variant of it in `moved.csv`.
    """
    file, *flags = shlex.split(_moved(conf).get(f"{name}.yaml", f"{name}.yaml"))
    return ["--config", str(conf / file), *flags]


def _moved(conf: Path) -> dict[str, str]:
    with (conf / MOVED).open(newline="", encoding="utf-8") as lines:
        return {row["old"]: row["new"] for row in csv.DictReader(lines)}
