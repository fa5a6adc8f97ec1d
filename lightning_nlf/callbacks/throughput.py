"""Throughput of a language fit: tokens per second of collection and of training."""

from __future__ import annotations

import time

from torch import Tensor

from lightning_nlf.batch import Batch


class Throughput:
    """Counts tokens and seconds of collection and training.

    Collection lasts from the start of an iteration to its first batch, and training from there to the end of its last
    batch. Validations and checkpoints count as neither collection nor training.
    """

    def __init__(self) -> None:
        self._seconds = {"collected": 0.0, "trained": 0.0}
        # "trained" is a scalar tensor on the device of the batches, so that counting does not wait for the device.
        self._tokens: dict[str, int | Tensor] = {"collected": 0, "trained": 0}
        self._since = 0.0
        self._before = 0  # tokens collected before the iteration

    def iteration_begins(self, collected: int) -> None:
        """Start the clock of an iteration. `collected` is the total number of tokens collected so far."""
        self._since, self._before = time.monotonic(), collected

    def collection_ends(self, collected: int) -> None:
        self._tokens["collected"] += collected - self._before
        self._before = collected
        self._pass("collected")

    def batch_ends(self, batch: Batch, ranks: int) -> None:
        """Count the tokens of a batch. Assumes that all `ranks` train on about as many tokens."""
        steps = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        self._tokens["trained"] += steps.sum() * ranks
        self._pass("trained")

    def _pass(self, kind: str) -> None:
        now = time.monotonic()
        self._seconds[kind] += now - self._since
        self._since = now

    def speeds(self) -> dict[str, float]:
        """Tokens per second of collection and of training, by name. A part that never ran is left out."""
        return {kind: int(n) / max(self._seconds[kind], 1e-9) for kind, n in self._tokens.items() if n}
