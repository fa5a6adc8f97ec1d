"""Learning from comparisons without a reward model: what the policy makes of the replies of a group is compared."""

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
from lightning_nlf.objective import Evaluation, Objective, Term


def reply_steps(batch: Batch) -> Tensor:
    """(B, T) bool: what a row says, be it the learner's or, in an expected response, the expert's."""
    if batch.expert_mask is None:
        return batch.mask
    return torch.where(batch.mask.any(1, keepdim=True), batch.mask, batch.expert_mask)


def expected_on_top(batch: Batch) -> Tensor:
    """`rank` (B,) in which the expected response of each group beats all its other rows.

    An expected response is a row that the expert alone wrote, and nobody ranked. The group's other ranks go one down;
    where none of them is ranked all are 1, and so tie.
    """
    assert batch.group is not None
    rank = torch.full_like(batch.group, -1) if batch.rank is None else batch.rank
    if batch.expert_mask is None:
        return rank
    expected = batch.expert_mask.any(1) & ~batch.mask.any(1) & (rank < 0)
    same = batch.group.unique(return_inverse=True)[1]
    some_expected, some_ranked = torch.zeros(2, len(batch), dtype=torch.bool, device=rank.device)
    some_expected[same[expected]] = True
    some_ranked[same[rank >= 0]] = True
    lowered = torch.where(some_ranked[same], torch.where(rank < 0, rank, rank + 1), 1)
    return torch.where(some_expected[same], torch.where(expected, 0, lowered), rank)


def preference_figures(rewards: Tensor, ranked: Pairs) -> dict[str, Tensor]:
    """Of the pairs that do not tie, each (P,), 0 of a tie: whether `rewards` (B,) put it right, and both rewards."""
    difference = ranked.difference(rewards)
    figures = {
        "accuracy": (difference > 0).to(rewards.dtype),
        "margin": difference,
        "chosen_reward": rewards[ranked.better],
        "rejected_reward": rewards[ranked.worse],
    }
    return {name: torch.where(ranked.tie, 0, x) for name, x in figures.items()}


class DirectPreferenceObjective(Objective):
    """The better reply of a group shall be preferred by the policy too: all pairs, each compared once.

    What a policy makes of a reply is `fitness`, times β its implicit reward; a kind of loss is `pair_losses`.

    Args:
        expected_first: an expected response that nobody ranked beats the other replies of its group.

    Raises:
        ValueError: at `prepare` and on held-out rows nobody put replies in order; at `prepare` there is no pair on any
            rank, in rows that nobody sampled here (no `log_probs`), as those of a file, which stay as they are. Of a
            rollout without any pair nothing is learned.
    """

    beta = 1.0  # of the implicit reward
    reports: tuple[str, ...] = ("preference", "accuracy", "margin", "chosen_reward", "rejected_reward")
    compared_over = "strict_pairs"  # what the loss is a mean over

    def __init__(self, expected_first: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expected_first = expected_first

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        """What is compared, (B,), such as log π/π_ref of the reply."""
        raise NotImplementedError

    def pair_losses(self, difference: Tensor) -> Tensor:
        """difference of fitness, the better minus the worse, (P,) → (P,)"""
        raise NotImplementedError

    def preference_losses(self, fitness: Tensor, ranked: Pairs, batch: Batch) -> Tensor:
        """`pair_losses` of the pairs that do not tie, 0 of the others.  fitness (B,) → (P,)"""
        return torch.where(ranked.tie, 0, self.pair_losses(ranked.difference(fitness)))

    def annotate(self, batch: Batch) -> Batch:
        """Ranks, with expected responses on top if `expected_first`."""
        if batch.group is None or batch.rank is None and not self.expected_first:
            raise ValueError("the batch has no `group` and `rank`, and preferences are learned from nothing else")
        return replace(batch, rank=expected_on_top(batch)) if self.expected_first else batch

    def select(self, batch: Batch) -> Batch:
        """Log the number of `pairs`, and refuse none at all; every row stays."""
        assert batch.group is not None and batch.rank is not None
        count = self.sum_over_ranks(comparison_shares(batch.group, batch.rank)["pairs"].sum())
        self.note("pairs", count)
        if not count:
            why = "no expected response" if self.expected_first else "expected_first: true ranks expected responses"
            message = f"rank: no group has two ranked replies, so there is nothing to compare ({why})"
            if batch.log_probs is None:
                raise ValueError(message)
            rank_zero_warn(message)
        return batch

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        assert batch.group is not None and batch.rank is not None
        fitness, ranked = self.fitness(batch, now), pairs(batch.group, batch.rank)
        for name, x in preference_figures(self.beta * fitness.detach(), ranked).items():
            yield Term(name, x, "strict_pairs", logged_only=True)
        yield Term("preference", self.preference_losses(fitness, ranked, batch), self.compared_over)
