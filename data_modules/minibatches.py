"""One trainer epoch = the rows of this rank, prepared once, and some passes of minibatches over them."""

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

TRAINING, VALIDATION, TEST = range(3)  # streams of chance that never meet


class MinibatchDataModule(SourceDataModule):
    """Cuts rows into the micro-batches of optimizer steps that do not depend on how they were cut.

    A child says where the rows come from (`collect`), and keeps `counters` and `statistics`. One whose model acts in
    an evaluation says how (`evaluate`).

    Args:
        seed: of everything drawn here; epoch i of rank r depends on (seed, i, r) alone, so a run that is resumed at
            epoch i goes on as if it had never stopped.
        minibatches: optimizer steps a pass; each has its share of the rows, and never splits a group.
        passes: over the rows of one epoch.
        rows_per_batch: rows that a network reads at a time, forward and backward: what bounds the memory. An optimizer
            step of more rows has the same gradient, added up over its parts; held-out rows, a reference and values are
            read in such parts too. Ranked groups are never split. Without it a network reads all rows of a step.
        tokens_per_batch: the same by tokens, prompt and padding included; rows of like length are read together.
    """

    def __init__(
        self,
        seed: Seed = 0,
        minibatches: Size = 1,
        passes: Size = 1,
        rows_per_batch: Size | None = None,
        tokens_per_batch: Size | None = None,
    ) -> None:
        super().__init__()
        at_least(1, minibatches=minibatches, passes=passes)
        at_least(1, rows_per_batch=rows_per_batch, tokens_per_batch=tokens_per_batch)
        self.rows_per_batch, self.tokens_per_batch = rows_per_batch, tokens_per_batch
        self.seed, self.minibatches, self.passes = seed, minibatches, passes

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        """This rank's rows of one epoch; counts what they cost."""
        raise NotImplementedError

    def refuse_too_few(self, name: str, amount: int, what: str = "rows") -> None:
        """Raises ValueError on every rank alike, so that none is left waiting for the others.

        Args: amount: rows (or groups) of an epoch, over all ranks; name: the knob that says so.
        """
        parts = self._world_size * self.minibatches * self._accumulate
        if amount < parts:
            raise ValueError(f"{name}: {amount} {what} for {parts} parts (processes × minibatches × accumulation)")

    # ---- from rows to optimizer steps

    @property
    def updates(self) -> int:
        """Optimizer steps an epoch, the same on every rank."""
        return self.passes * self.minibatches

    def train_dataloader(self) -> DataLoader:
        return loader(self.iteration, self.updates * self._accumulate)

    def iteration(self) -> Iterator[Batch]:
        """Collect, prepare, then the micro-batches of each optimizer step, with their totals stamped."""
        rng = self._rng(TRAINING, self.trainer.current_epoch)
        torch.manual_seed(int(rng.integers(2**63)))  # actions, dropout: whatever draws until the next collection
        actor = self._actor
        with torch.no_grad():
            batch = actor.prepare(self.collect(actor, rng))
        self.counters["iteration"] += 1
        yield from self.cut(batch, rng)

    def cut(self, batch: Batch, rng: np.random.Generator) -> Iterator[Batch]:
        """The micro-batches of every optimizer step of an epoch whose prepared rows are `batch`."""
        steps = [rows for _ in range(self.passes) for rows in shuffled(batch, self.minibatches, rng)]
        yield from self._stamped([batch] * len(steps), steps, rng)

    def _stamped(self, batches: list[Batch], steps: list[Tensor], rng: np.random.Generator) -> Iterator[Batch]:
        """The rows of each optimizer step, as micro-batches that know how many steps of each mask it has in all."""
        # the same batch stands in many steps
        known = {key: row_counts(batch) for key, batch in {id(batch): batch for batch in batches}.items()}
        counts = [known[id(batch)] for batch in batches]
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
            named = dict(zip(names, total.to(batch.obs.device), strict=True))
            yield from stamp_totals([batch[part] for part in parts], named, self._accumulate * self._world_size)

    # ---- evaluation by playing

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """This rank's share of the evaluation episodes; costs nothing that is counted."""
        raise NotImplementedError

    def evaluated(self, deterministic: bool) -> None:
        """After each `evaluate` of the Trainer's, on every rank."""

    def _evaluation_loaders(self, stream: int) -> list[DataLoader]:
        def played(deterministic: bool) -> Iterator[Batch]:
            with self._apart(stream, deterministic) as rng:
                batch = self.evaluate(self._actor, rng, deterministic)
                self.evaluated(deterministic)
            yield batch  # outside: Lightning holds the generator, and would stay within

        return [loader(partial(played, mode), 1) for mode in (True, False)]

    @contextmanager
    def _apart(self, stream: int, deterministic: bool) -> Iterator[np.random.Generator]:
        """Inside, nothing is drawn that training draws, and the same every time; without gradients."""
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
        """This rank's part of `amount`, the remainder to the first ranks."""
        return amount // self._world_size + (self.trainer.global_rank < amount % self._world_size)

    def _sum_over_ranks(self, x: Tensor) -> Tensor:
        if self._world_size == 1:
            return x
        strategy = self.trainer.strategy
        return strategy.reduce(x.to(strategy.root_device), reduce_op="sum").cpu()

    def count(self, **amounts: int) -> None:
        """Add to the counters, over all ranks."""
        totals = self._sum_over_ranks(torch.tensor(list(amounts.values()), dtype=torch.float64))
        for name, total in zip(amounts, totals.tolist(), strict=True):
            self.counters[name] += round(total)

    # ---- checkpoint: counters are the same everywhere, the rest is each rank's own

    def rank_state(self) -> dict[str, Any]:
        """What only this rank knows, as plain containers and tensors."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Back to where `rank_state` was taken."""

    def state_dict(self) -> dict[str, Any]:
        own = self.rank_state()
        ranks: list[Any] = [own]
        if self._world_size > 1:
            ranks = [None] * self._world_size
            torch.distributed.all_gather_object(ranks, own)
        return {"counters": dict(self.counters), "statistics": dict(self.statistics), "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        self.counters.update(state_dict["counters"])
        self.statistics = dict(state_dict.get("statistics", {}))  # for a resume that goes on with a validation
        if self.trainer.state.fn != "fit":
            return  # nothing is collected
        if len(ranks) != self._world_size:
            raise ValueError(f"the checkpoint is of {len(ranks)} processes, this run has {self._world_size}")
        self.load_rank_state(ranks[self.trainer.global_rank])


class _Iterations(IterableDataset):
    def __init__(self, start: Callable[[], Iterator[Batch]], length: int) -> None:
        self.start, self.length = start, length

    def __len__(self) -> int:
        # Without a length Lightning fetches one batch ahead, and the rollout comes from a policy one update old.
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def loader(start: Callable[[], Iterator[Batch]], length: int) -> DataLoader:
    """A loader of `length` batches that `start` yields, each as it is."""
    # Every iterator draws a seed for workers that are never started: from a generator that nobody else draws from.
    return DataLoader(_Iterations(start, length), batch_size=None, generator=torch.Generator())
