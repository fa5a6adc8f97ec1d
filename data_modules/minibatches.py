"""One Trainer epoch: collect and prepare this rank's rows once, then pass over them in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from data_modules.groups import shuffled
from data_modules.ranges import at_least
from data_modules.source import SourceDataModule
from lightning_nlf.batch import Actor, Batch
from lightning_nlf.maths.means import row_counts, stamp_totals
from lightning_nlf.numbers import Seed, Size

TRAINING, VALIDATION, TEST = range(3)  # independent random streams


class MinibatchDataModule(SourceDataModule):
    """Split rows into the micro-batches of optimizer steps. How a step is split does not change its gradient.

    Subclasses implement `collect`, and set `counters` and `statistics`. Subclasses whose model acts in evaluations also
    implement `evaluate`.

    Args:
        seed: seed for all random numbers of the DataModule; by default the run's `seed_everything`. The random numbers
            of epoch i on rank r depend only on (seed, i, r), so a run resumed at epoch i continues as if it had not
            stopped.
        minibatches: number of optimizer steps per pass. The rows are divided among these steps, and no group is split.
        passes: number of passes over the rows of one epoch.
        rows_per_batch: maximum number of rows in one forward and backward pass; it limits memory use. An optimizer step
            with more rows accumulates the same gradient over several batches. Held-out rows, reference
            log-probabilities and values are computed in batches of this size too. Ranked groups are never split. None =
            all rows of a step at once.
        tokens_per_batch: the same limit in tokens, counting prompt and padding. Rows of similar length share a batch.
    """

    def __init__(
        self,
        seed: Seed | None = None,
        minibatches: Size = 1,
        passes: Size = 1,
        rows_per_batch: Size | None = None,
        tokens_per_batch: Size | None = None,
    ) -> None:
        super().__init__()
        at_least(1, minibatches=minibatches, passes=passes)
        at_least(1, rows_per_batch=rows_per_batch, tokens_per_batch=tokens_per_batch)
        self.rows_per_batch, self.tokens_per_batch = rows_per_batch, tokens_per_batch
        self.seed, self.minibatches, self.passes = seed or 0, minibatches, passes

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        """Collect this rank's rows for one epoch, and add their cost to the counters."""
        raise NotImplementedError

    def refuse_too_few(self, name: str, amount: int, unit: str = "rows") -> None:
        """Check that there are enough rows for all ranks and minibatches, on all ranks together so that none waits.

        Raises ValueError: there are too few rows.

        Args: name: the setting that gives the number; amount: rows (or groups) in an epoch, over all ranks; unit: what
            `amount` counts, for the error message.
        """
        parts = self._world_size * self.minibatches * self._accumulate
        if amount < parts:
            raise ValueError(
                f"{name}: got {amount} {unit}, must be at least {parts} (processes × minibatches × accumulation)"
            )

    # ---- from rows to optimizer steps

    @property
    def updates(self) -> int:
        """Number of optimizer steps per epoch, the same on every rank."""
        return self.passes * self.minibatches

    def train_dataloader(self) -> DataLoader:
        return loader(self.iteration, self.updates * self._accumulate)

    def iteration(self) -> Iterator[Batch]:
        """Collect and prepare the rows of an epoch, then yield the micro-batches of `cut`."""
        rng = self._rng(TRAINING, self.trainer.current_epoch)
        torch.manual_seed(int(rng.integers(2**63)))  # for actions, dropout and everything until the next collection
        actor = self._actor
        with torch.no_grad():
            batch = actor.prepare(self.collect(actor, rng))
        self.counters["iteration"] += 1
        yield from self.cut(batch, rng)

    def cut(self, batch: Batch, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield the micro-batches of all optimizer steps of an epoch, made from the prepared rows in `batch`."""
        steps = [rows for _ in range(self.passes) for rows in shuffled(batch, self.minibatches, rng)]
        yield from self._stamped([batch] * len(steps), steps, rng)

    def _stamped(self, batches: list[Batch], steps: list[Tensor], rng: np.random.Generator) -> Iterator[Batch]:
        """Yield the micro-batches of each optimizer step, stamped with the mask totals of the whole step."""
        # count each batch only once, because it may be in many steps
        by_batch = {key: row_counts(batch) for key, batch in {id(batch): batch for batch in batches}.items()}
        counts = [by_batch[id(batch)] for batch in batches]
        names = list(counts[0]) if counts else []
        local = [
            [count[name][rows.to(count[name].device)].sum() for name in names]
            for count, rows in zip(counts, steps, strict=True)
        ]
        totals = self._sum_over_ranks(torch.tensor(local, dtype=torch.float32))  # (optimizer steps, masks)
        for batch, rows, total in zip(batches, steps, totals, strict=True):
            parts = [rows]
            if self._accumulate > 1:
                parts = [rows[part] for part in shuffled(batch[rows], self._accumulate, rng)]
            by_name = dict(zip(names, total.to(batch.obs.device), strict=True))
            yield from stamp_totals([batch[part] for part in parts], by_name, self._accumulate * self._world_size)

    # ---- evaluation by episodes

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """Play this rank's share of the evaluation episodes, without adding their cost to the counters."""
        raise NotImplementedError

    def evaluated(self, deterministic: bool) -> None:
        """Hook that runs on every rank after each `evaluate` that the Trainer starts."""

    def _evaluation_loaders(self, stream: int) -> list[DataLoader]:
        def episodes(deterministic: bool) -> Iterator[Batch]:
            with self._apart(stream, deterministic) as rng:
                batch = self.evaluate(self._actor, rng, deterministic)
                self.evaluated(deterministic)
            yield batch  # outside the context, because Lightning leaves the generator suspended here

        return [loader(partial(episodes, mode), 1) for mode in (True, False)]

    @contextmanager
    def _apart(self, stream: int, deterministic: bool) -> Iterator[np.random.Generator]:
        """Context without gradients, with fixed random numbers that leave those of training unchanged."""
        rng = self._rng(stream, int(deterministic))
        device = self.trainer.strategy.root_device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(int(rng.integers(2**63)))
            yield rng

    @property
    def _actor(self) -> Actor:
        return cast(Actor, self.trainer.lightning_module)

    # ---- ranks

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.trainer.global_rank, *stream]))

    def _share(self, amount: int) -> int:
        """This rank's share of `amount`. The first ranks get the remainder."""
        return amount // self._world_size + (self.trainer.global_rank < amount % self._world_size)

    def _sum_over_ranks(self, x: Tensor) -> Tensor:
        if self._world_size == 1:
            return x
        strategy = self.trainer.strategy
        return strategy.reduce(x.to(strategy.root_device), reduce_op="sum").cpu()

    def count(self, **amounts: int) -> None:
        """Add amounts to the counters, summed over all ranks."""
        totals = self._sum_over_ranks(torch.tensor(list(amounts.values()), dtype=torch.float64))
        for name, total in zip(amounts, totals.tolist(), strict=True):
            self.counters[name] += round(total)

    # ---- checkpoint: counters are the same on all ranks, and the rest of the state differs

    def rank_state(self) -> dict[str, Any]:
        """The state that differs between ranks, in plain containers and tensors."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `rank_state`."""

    def state_dict(self) -> dict[str, Any]:
        local = self.rank_state()
        ranks: list[Any] = [local]
        if self._world_size > 1:
            ranks = [None] * self._world_size
            torch.distributed.all_gather_object(ranks, local)
        return {"counters": dict(self.counters), "statistics": dict(self.statistics), "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        self.counters.update(state_dict["counters"])
        self.statistics = dict(state_dict.get("statistics", {}))  # a resumed run may begin with a validation
        if self.trainer.state.fn != "fit":
            return  # no collection follows
        if len(ranks) != self._world_size:
            raise ValueError(
                f"ckpt_path: the checkpoint has the state of {len(ranks)} processes, this run has {self._world_size}; "
                "use the same number of devices"
            )
        self.load_rank_state(ranks[self.trainer.global_rank])


class _Iterations(IterableDataset):
    def __init__(self, start: Callable[[], Iterator[Batch]], length: int) -> None:
        self.start, self.length = start, length

    def __len__(self) -> int:
        # Without a length Lightning prefetches a batch, and the rollout would use a policy that is one update old.
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def loader(start: Callable[[], Iterator[Batch]], length: int) -> DataLoader:
    """A DataLoader over the `length` batches that `start` yields."""
    # Every iterator draws a seed for workers that never start; this generator is used by nothing else.
    return DataLoader(_Iterations(start, length), batch_size=None, generator=torch.Generator())
