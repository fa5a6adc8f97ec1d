"""Learning from comparisons without a reward model: what the policy makes of the replies of a group is compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import comparison_shares, masked_mean
from lightning_nlf.objective import Evaluation, Terms
from lightning_nlf.objectives.held_out import HeldOutObjective
from lightning_nlf.preferences import Pairs, pairs


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


def preference_notes(rewards: Tensor, ranked: Pairs, total: Tensor | None = None) -> Terms:
    """Means over the pairs that do not tie, each (): the share that `rewards` (B,) put right, and both rewards."""
    difference = ranked.difference(rewards)
    shown = {
        "accuracy": (difference > 0).to(rewards.dtype),
        "margin": difference,
        "chosen_reward": rewards[ranked.better],
        "rejected_reward": rewards[ranked.worse],
    }
    return {name: masked_mean(x, ~ranked.tie, total) for name, x in shown.items()}


class DirectPreferenceObjective(HeldOutObjective):
    """The better reply of a group shall be preferred by the policy too: all pairs, each compared once.

    What a policy makes of a reply is `fitness`, times β its implicit reward; a kind of loss is `pair_losses`.

    Args:
        expected_first: an expected response that nobody ranked beats the other replies of its group.
    """

    beta = 1.0  # of the implicit reward
    measured: tuple[str, ...] = ("preference", "accuracy", "margin", "chosen_reward", "rejected_reward")
    held_out_losses: tuple[str, ...] = ("preference",)
    counted = "strict_pairs"  # what the loss is a mean over, as in `Batch.totals`

    def __init__(self, expected_first: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expected_first = expected_first

    def fitness(self, batch: Batch, now: Evaluation) -> Tensor:
        """What is compared, (B,), such as log π/π_ref of the reply."""
        raise NotImplementedError

    def pair_losses(self, difference: Tensor) -> Tensor:
        """difference of fitness, the better minus the worse, (P,) → (P,)"""
        raise NotImplementedError

    def preference_loss(self, fitness: Tensor, ranked: Pairs, batch: Batch) -> Tensor:
        """Mean of `pair_losses` over the pairs that do not tie, ().  fitness (B,)"""
        losses = self.pair_losses(ranked.difference(fitness))
        return masked_mean(losses, ~ranked.tie, batch.totals.get(self.counted))

    def complete(self, batch: Batch) -> Batch:
        """Raises ValueError: nobody put replies in order."""
        batch = super().complete(batch)
        if batch.group is None or batch.rank is None and not self.expected_first:
            raise ValueError("the batch has no `group` and `rank`, and preferences are learned from nothing else")
        return replace(batch, rank=expected_on_top(batch)) if self.expected_first else batch

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Notes the number of `pairs`.

        Raises ValueError: there is none on any rank, in rows that nobody sampled here (no `log_probs`), as those of a
        file, which stay as they are. Of a rollout without any nothing is learned.
        """
        batch = super().prepare(batch)
        assert batch.group is not None and batch.rank is not None
        found = self.sum_over_ranks(comparison_shares(batch.group, batch.rank)["pairs"].sum())
        self.note("pairs", found)
        if not found:
            why = "no expected response" if self.expected_first else "expected_first: true ranks expected responses"
            message = f"rank: no group has two ranked replies, so there is nothing to compare ({why})"
            if batch.log_probs is None:
                raise ValueError(message)
            rank_zero_warn(message)
        return batch

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert batch.group is not None and batch.rank is not None
        fitness, ranked = self.fitness(batch, now), pairs(batch.group, batch.rank)
        now.over["preference"] = self.counted
        notes = preference_notes(self.beta * fitness.detach(), ranked, batch.totals.get("strict_pairs"))
        now.notes |= notes
        now.over |= dict.fromkeys(notes, "strict_pairs")
        return super().terms(batch, now) | {"preference": self.preference_loss(fitness, ranked, batch)}
