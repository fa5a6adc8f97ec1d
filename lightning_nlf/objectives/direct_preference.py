"""Preference learning without a reward model: base of DPO and its reference-free variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import comparison_shares
from lightning_nlf.maths.preferences import Pairs, pairs
from lightning_nlf.objective import Best, Evaluation, Objective, Term


def reply_steps(batch: Batch) -> Tensor:
    """(B, T) bool: the steps of each row's reply.

    In an expected response they are the expert's steps, else the learner's.
    """
    if batch.expert_mask is None:
        return batch.mask
    return torch.where(batch.mask.any(1, keepdim=True), batch.mask, batch.expert_mask)


def expected_on_top(batch: Batch) -> Tensor:
    """`rank` (B,) with the expected response of each group ranked above all its other rows.

    An expected response is an unranked row whose steps are all the expert's. The other ranks of the group increase by
    one. If none of the other rows is ranked, they all get rank 1, which is a tie.
    """
    assert batch.group is not None
    rank = torch.full_like(batch.group, -1) if batch.rank is None else batch.rank
    if batch.expert_mask is None:
        return rank
    expected = batch.expert_mask.any(1) & ~batch.mask.any(1) & (rank < 0)
    index = batch.group.unique(return_inverse=True)[1]
    some_expected, some_ranked = torch.zeros(2, len(batch), dtype=torch.bool, device=rank.device)
    some_expected[index[expected]] = True
    some_ranked[index[rank >= 0]] = True
    lowered = torch.where(some_ranked[index], torch.where(rank < 0, rank, rank + 1), 1)
    return torch.where(some_expected[index], torch.where(expected, 0, lowered), rank)


def preference_figures(rewards: Tensor, ranked: Pairs) -> dict[str, Tensor]:
    """Accuracy, margin and the two rewards of each pair, each (P,), from `rewards` (B,). They are 0 for ties."""
    difference = ranked.difference(rewards)
    figures = {
        "accuracy": (difference > 0).to(rewards.dtype),
        "margin": difference,
        "chosen_reward": rewards[ranked.better],
        "rejected_reward": rewards[ranked.worse],
    }
    return {name: torch.where(ranked.tie, 0, x) for name, x in figures.items()}


class DirectPreferenceObjective(Objective):
    """Direct preference learning: the policy learns to prefer the better reply of each pair in a group.

    `fitness` scores each reply, and β times the fitness is the implicit reward. `pair_losses` gives the loss of each
    pair.

    Args:
        expected_first: rank an unranked expected response above the other replies of its group.

    Raises:
        ValueError: in `prepare` and on held-out rows, the batch has no `group` or `rank`; in `prepare`, no two replies
            can be compared, and the rows have no `log_probs`, such as the rows of a file. If a rollout has no pair, a
            warning is given instead. A class with `needs_pairs = False` accepts both.
    """

    beta = 1.0  # coefficient of the implicit reward
    reports: tuple[str, ...] = ("preference", "accuracy", "margin", "chosen_reward", "rejected_reward")
    best: Best = ("accuracy", "max")
    feedback: tuple[str, ...] = ("ranking", "preference")
    compared_over = "strict_pairs"  # what the loss is averaged over
    needs_pairs = True  # False for a class whose other terms learn from a batch without any pair

    def __init__(self, expected_first: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expected_first = expected_first

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        """The quantity that is compared, (B,), such as log π/π_ref of the reply."""
        raise NotImplementedError

    def pair_losses(self, difference: Tensor) -> Tensor:
        """Loss of each pair from its difference of fitness, of the better minus the worse reply.  (P,) → (P,)"""
        raise NotImplementedError

    def preference_losses(self, fitness: Tensor, ranked: Pairs, batch: Batch) -> Tensor:
        """`pair_losses` for pairs without a tie, 0 for ties.  fitness (B,) → (P,)"""
        return torch.where(ranked.tie, 0, self.pair_losses(ranked.difference(fitness)))

    def annotate(self, batch: Batch) -> Batch:
        """Check that the batch has ranks. With `expected_first`, rank expected responses first."""
        if batch.group is None or batch.rank is None and not self.expected_first:
            raise ValueError("the batch has no `group` and `rank`; learning from preferences needs both")
        return replace(batch, rank=expected_on_top(batch)) if self.expected_first else batch

    def select(self, batch: Batch) -> Batch:
        """Log the number of `pairs`. If `needs_pairs`, refuse rows from a file without any pair. All rows are kept."""
        assert batch.group is not None and batch.rank is not None
        count = self.sum_over_ranks(comparison_shares(batch.group, batch.rank)["pairs"].sum())
        self.note("pairs", count)
        if not count and self.needs_pairs:
            message = f"rank: no group has two ranked replies, so there is nothing to compare ({self._advice(batch)})"
            if batch.log_probs is None:
                raise ValueError(message)
            rank_zero_warn(message)
        return batch

    def _advice(self, batch: Batch) -> str:
        if self.expected_first:
            return "no expected response"
        imitated = batch.expert_mask is not None and bool(batch.expert_mask.any())
        return (
            "set expected_first: true to rank the expected responses"
            if imitated
            else "rank at least two replies to one prompt"
        )

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        assert batch.group is not None and batch.rank is not None
        fitness, ranked = self.fitness(batch, now), pairs(batch.group, batch.rank)
        for name, x in preference_figures(self.beta * fitness.detach(), ranked).items():
            yield Term(name, x, "strict_pairs", logged_only=True)
        yield Term("preference", self.preference_losses(fitness, ranked, batch), self.compared_over)
