"""One trainer epoch = one collection and some passes of minibatches over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from data_modules.label_buffer import LabelBuffer
from lightning_nlf.batch import Actor, Batch
from lightning_nlf.functional import row_counts, stamp_totals

TRAINING, VALIDATION, TEST = range(3)  # streams of chance that never meet


class RolloutDataModule(L.LightningDataModule):
    """Collects with the model that is being trained, and cuts what it collected into minibatches.

    A child says how to `collect` and how to `evaluate`, and keeps `counters` and `statistics`.

    Args:
        seed: of everything drawn here; collection i of rank r depends on (seed, i, r) alone, so a run that is
            resumed at iteration i goes on as if it had never stopped.
        minibatches: optimizer steps a pass; each has its share of the rows, and never splits a group.
        passes: over one collection.
        label_buffer: remembers the expert's labels over collections, for imitation on top of the minibatches.
    """

    def __init__(
        self, seed: int = 0, minibatches: int = 1, passes: int = 1, label_buffer: LabelBuffer | None = None
    ) -> None:
        super().__init__()
        for name, value in (("minibatches", minibatches), ("passes", passes)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, must be at least 1")
        self.seed, self.minibatches, self.passes, self.label_buffer = seed, minibatches, passes, label_buffer
        self.counters: dict[str, int] = {"iteration": 0, "env_steps": 0, "expert_steps": 0, "labels": 0}  # all ranks
        self.statistics: dict[str, float] = {}  # of the last collection, all ranks

    # ---- what a child says

    def collect(self, actor: Actor, rng: np.random.Generator) -> Batch:
        """Fresh rows of this rank; counts what they cost."""
        raise NotImplementedError

    def evaluate(self, actor: Actor, rng: np.random.Generator, deterministic: bool) -> Batch:
        """This rank's share of the evaluation episodes; costs nothing that is counted."""
        raise NotImplementedError

    def exhibits(self, folder: Path) -> list[Path]:
        """Files for people to look at, written into `folder`: an episode as a GIF, a transcript."""
        return []

    # ---- loaders

    def train_dataloader(self) -> DataLoader:
        return _loader(self.iteration, self.updates * self._accumulate)

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(VALIDATION)

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(TEST)

    def predict_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(TEST)

    @property
    def updates(self) -> int:
        """Optimizer steps an iteration, the same on every rank."""
        return self.passes * self.minibatches + (self.label_buffer.updates if self.label_buffer else 0)

    def iteration(self) -> Iterator[Batch]:
        """Collect, prepare, then the micro-batches of each optimizer step, with their totals stamped."""
        rng = self._rng(TRAINING, self.trainer.current_epoch)
        torch.manual_seed(int(rng.integers(2**63)))  # actions, dropout: whatever draws until the next collection
        actor = self.trainer.lightning_module
        with torch.no_grad():
            batch = actor.prepare(self.collect(actor, rng))
        self.counters["iteration"] += 1
        steps = [rows for _ in range(self.passes) for rows in shuffled(batch, self.minibatches, rng)]
        yield from self._stamped([batch] * len(steps), steps, rng)
        if self.label_buffer is not None:
            drawn = [self.label_buffer.draw(batch, rng) for _ in range(self.label_buffer.updates)]
            yield from self._stamped(drawn, [torch.arange(len(labels)) for labels in drawn], rng)

    def _stamped(self, batches: list[Batch], steps: list[Tensor], rng: np.random.Generator) -> Iterator[Batch]:
        """The rows of each optimizer step, as micro-batches that know how many steps of each mask it has in all."""
        counts = [row_counts(batch) for batch in batches]
        names = list(counts[0]) if counts else []
        local = [[count[name][rows.to(count[name].device)].sum() for name in names] for count, rows in zip(counts, steps, strict=True)]
        totals = self._sum_over_ranks(torch.tensor(local, dtype=torch.float32))  # (optimizer steps, masks)
        for batch, rows, total in zip(batches, steps, totals, strict=True):
            parts = [rows[part] for part in shuffled(batch[rows], self._accumulate, rng)] if self._accumulate > 1 else [rows]
            named = dict(zip(names, total.to(batch.obs.device), strict=True))
            yield from stamp_totals([batch[part] for part in parts], named, self._accumulate * self._world_size)

    def _evaluation_loaders(self, stream: int) -> list[DataLoader]:
        def played(deterministic: bool) -> Iterator[Batch]:
            rng = self._rng(stream, int(deterministic))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(int(rng.integers(2**63)))
                yield self.evaluate(self.trainer.lightning_module, rng, deterministic)

        return [_loader(lambda d=mode: played(d), 1) for mode in (True, False)]

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
        return x if self._world_size == 1 else self.trainer.strategy.reduce(x, reduce_op="sum").cpu()

    def count(self, **amounts: int) -> None:
        """Add to the counters, over all ranks."""
        totals = self._sum_over_ranks(torch.tensor(list(amounts.values()), dtype=torch.float64))
        for name, total in zip(amounts, totals.tolist(), strict=True):
            self.counters[name] += round(total)

    # ---- checkpoint: counters are the same everywhere, the rest is each rank's own

    def rank_state(self) -> dict[str, Any]:
        """What only this rank knows, as plain containers and tensors."""
        return {} if self.label_buffer is None else {"label_buffer": self.label_buffer.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        if self.label_buffer is not None:
            self.label_buffer.load_state_dict(state["label_buffer"])

    def state_dict(self) -> dict[str, Any]:
        own = self.rank_state()
        ranks: list[Any] = [own]
        if self._world_size > 1:
            ranks = [None] * self._world_size
            torch.distributed.all_gather_object(ranks, own)
        return {"counters": dict(self.counters), "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        if len(ranks) != self._world_size:
            raise ValueError(f"the checkpoint is of {len(ranks)} processes, this run has {self._world_size}")
        self.counters.update(state_dict["counters"])
        self.load_rank_state(ranks[self.trainer.global_rank])


def shuffled(batch: Batch, parts: int, rng: np.random.Generator) -> list[Tensor]:
    """Row indices in `parts` random parts of nearly equal numbers of groups; rows of one group stay together.

    Raises:
        ValueError: fewer groups than parts.
    """
    rows = torch.arange(len(batch)) if batch.group is None else batch.group.cpu()
    groups = rows.unique()
    if len(groups) < parts:
        what = "rows" if batch.group is None else "groups"
        raise ValueError(f"minibatches: {parts} parts asked of a collection of {len(groups)} {what}")
    order = groups[torch.from_numpy(rng.permutation(len(groups)))]
    return [torch.isin(rows, part).nonzero()[:, 0] for part in order.tensor_split(parts)]


class _Iterations(IterableDataset):
    def __init__(self, start: Callable[[], Iterator[Batch]], length: int) -> None:
        self.start, self.length = start, length

    def __len__(self) -> int:
        # Without a length Lightning fetches one batch ahead, and the rollout comes from a policy one update old.
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def _loader(start: Callable[[], Iterator[Batch]], length: int) -> DataLoader:
    return DataLoader(_Iterations(start, length), batch_size=None)
