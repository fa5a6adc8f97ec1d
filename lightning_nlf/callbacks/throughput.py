"""How fast a fit of language goes: tokens collected and learned from, a second of either."""

from __future__ import annotations

import time

from torch import Tensor

from lightning_nlf.batch import Batch


class Throughput:
    """Collecting is from the start of an iteration to its first batch, learning from there to the end of its last.

    What lies between, such as validations and checkpoints, is neither.
    """

    def __init__(self) -> None:
        self._seconds = {"collected": 0.0, "learned": 0.0}
        # learned: a tensor () where the batches are: nobody waits for it before it is shown
        self._tokens: dict[str, int | Tensor] = {"collected": 0, "learned": 0}
        self._since = 0.0
        self._had = 0  # tokens collected when the iteration began

    def iteration_begins(self, collected: int) -> None:
        """`collected` tokens in all, up to now."""
        self._since, self._had = time.monotonic(), collected

    def collection_ends(self, collected: int) -> None:
        self._tokens["collected"] += collected - self._had
        self._had = collected
        self._pass("collected")

    def batch_ends(self, batch: Batch, ranks: int) -> None:
        """Learned from on each of the `ranks`, about as many tokens on one as on another."""
        steps = batch.mask if batch.expert_mask is None else batch.mask | batch.expert_mask
        self._tokens["learned"] += steps.sum() * ranks
        self._pass("learned")

    def _pass(self, what: str) -> None:
        now = time.monotonic()
        self._seconds[what] += now - self._since
        self._since = now

    def speeds(self) -> dict[str, float]:
        """Tokens a second, of what there was of either."""
        return {what: int(n) / max(self._seconds[what], 1e-9) for what, n in self._tokens.items() if n}
