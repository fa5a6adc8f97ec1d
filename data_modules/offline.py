"""Training on saved rows instead of rollouts."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.groups import grouped
from data_modules.minibatches import MinibatchDataModule
from lightning_nlf.batch import Actor, Batch

_FIELDS = {field.name for field in fields(Batch)} - {"totals"}
_NEEDED = ("obs", "actions", "valid", "mask")


def save_batch(batch: Batch, path: str | Path) -> None:
    """Save the fields of a batch, without totals, as a plain dict of tensors for `OfflineDataModule`."""
    torch.save(_plain(batch.detach().map(lambda x: x.cpu().clone())), path)


def load_batch(path: str | Path) -> Batch:
    """Load a batch from a file that `save_batch` wrote.

    Raises:
        ValueError: the file does not exist or holds something other than tensors; or a field is unknown, is missing, or
            has a different number of rows from the other fields.
    """
    if not Path(path).is_file():
        raise ValueError(f"path: there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"path: {path} is not a file of plain tensors: {cause}") from None
    if not isinstance(content, dict):
        raise ValueError(f"path: {path} has a {type(content).__name__} instead of a dict of field names and tensors")
    return _checked(content, f"path: {path}")


def _plain(batch: Batch) -> dict[str, Any]:
    present = {name: value for name in sorted(_FIELDS) if (value := getattr(batch, name)) is not None}
    return {name: _plain(value) if isinstance(value, Batch) else value for name, value in present.items()}


def _checked(content: dict[str, Any], where: str) -> Batch:
    if unknown := sorted(set(content) - _FIELDS):
        raise ValueError(f"{where}: unknown field {', '.join(unknown)}; a batch has {', '.join(sorted(_FIELDS))}")
    if missing := [name for name in _NEEDED if name not in content]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing; a batch needs {', '.join(_NEEDED)}")
    if "view" in content:
        content = content | {"view": _checked(content["view"], f"{where}, view")}
    sizes = dict(size for name, value in content.items() for size in _sizes(name, value, where))
    for name, size in sizes.items():
        if size != sizes["mask"]:
            raise ValueError(f"{where}: {name} has {size} rows, mask has {sizes['mask']}")
    return Batch(**content)


def _sizes(name: str, value: Any, where: str) -> Iterator[tuple[str, int]]:
    """The number of rows of each tensor in a field, with the tensor's full name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _sizes(f"{name}.{key}", inner, where)
    elif isinstance(value, Batch) or isinstance(value, Tensor) and value.ndim > 0:
        yield name, len(value)
    else:
        raise ValueError(f"{where}: {name} is a {type(value).__name__}, must be a tensor with rows")


class OfflineDataModule(MinibatchDataModule):
    """Train on the rows of a file from `save_batch`, for example for behaviour cloning or on scored replies.

    In every epoch the model prepares the rows again, and the rows are shuffled. The groups of rows are divided among
    the ranks, and each rank has the same rows in every epoch.

    Args:
        path: path of the file.
        seed, minibatches, passes, rows_per_batch, tokens_per_batch: see `MinibatchDataModule`.
    """

    rows_are_given = True

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.rows: Batch | None = None

    def setup(self, stage: str) -> None:
        if self.rows is None:
            self.rows = load_batch(self.path)

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        assert self.rows is not None, "setup comes first"
        places, groups = grouped(self.rows)
        self.refuse_too_few(self.path, groups, "rows" if self.rows.group is None else "groups")
        return self.rows[places % self._world_size == self.trainer.global_rank]
