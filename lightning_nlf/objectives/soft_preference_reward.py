"""Rewards of replies from how sure a teacher is that one is better than another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.functional import masked_mean
from lightning_nlf.objective import Evaluation, Objective, Terms
from lightning_nlf.objectives.preference_reward import rewards_of, win_or_lose
from lightning_nlf.preferences import Pairs, pairs
from lightning_nlf.reward_module import PreferenceModule


def soft_preference_loss(difference: Tensor, probability: Tensor, total: Tensor | None = None) -> Tensor:
    """Mean of −[p log σ(d) + (1 − p) log σ(−d)]: the cross-entropy to soft labels, § 2.2 of
    https://arxiv.org/abs/2309.00267. It is least where σ(d) = p; at p = 1 it is the loss of Bradley-Terry.

    Args: difference (P,) d of two rewards; probability (P,) p that the first is the better; total: pairs, as stamped.
    """
    loss = -(probability * F.logsigmoid(difference) + (1 - probability) * F.logsigmoid(-difference))
    return masked_mean(loss, torch.ones_like(loss, dtype=torch.bool), total)


def soft_labels(ranked: Pairs, preference: Tensor | None) -> Tensor:
    """The probability that `better` is better, (P,): what the teacher said, else 1, or .5 of a tie.

    Args: preference (B,): of each row that it is better than the other one of its group; NaN where nobody said.
    """
    hard = torch.where(ranked.tie, 0.5, 1.0)
    if preference is None:
        return hard
    said = preference[ranked.better]
    return torch.where(said.isnan(), hard, said)


class SoftPreferenceObjective(Objective):
    """Every ranked pair of replies to one prompt, by `extra["preference"]` (B,) where that is known."""

    counted = "pairs"

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def terms(self, batch: Batch, now: Evaluation) -> Terms:
        assert batch.group is not None and batch.rank is not None
        found = pairs(batch.group, batch.rank)
        labels = soft_labels(found, batch.extra.get("preference"))
        now.over["soft_preference"] = self.counted
        loss = soft_preference_loss(found.difference(rewards_of(now)), labels, batch.totals.get(self.counted))
        return super().terms(batch, now) | {"soft_preference": loss}


class SoftPreferenceReward(SoftPreferenceObjective, PreferenceModule):
    """Bradley-Terry that is no surer than its teacher: a distilled AI labeller's reward model."""
