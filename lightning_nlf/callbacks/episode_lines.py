"""Summarise episodes as records of a JSON Lines file: policy mode, return, length, and termination."""

from __future__ import annotations

from typing import Any

from lightning_nlf.batch import Batch
from lightning_nlf.maths.steps import row_sums

LOADERS = ("deterministic", "sampled")


def acting(loader: int) -> str:
    """How the policy acts in an evaluation loader. Loader 0 takes the mode of the distribution, loader 1 samples."""
    return LOADERS[loader] if loader < len(LOADERS) else f"loader {loader}"


def episodes(batch: Batch, mode: str) -> list[dict[str, Any]]:
    """One dictionary per row of `batch`: `who` (the value of `mode`), `return`, `length` in steps, and `terminated`."""
    lengths = batch.valid.sum(1).tolist()
    rows: list[dict[str, Any]] = [{"who": mode, "length": length} for length in lengths]
    if batch.rewards is not None:
        returns = row_sums(batch.rewards, batch.valid).tolist()
        rows = [row | {"return": x} for row, x in zip(rows, returns, strict=True)]
    if batch.terminated is not None:
        rows = [row | {"terminated": x} for row, x in zip(rows, batch.terminated.tolist(), strict=True)]
    return rows
