"""Preference reward model with soft labels: the teacher's probability that one reply is better than another reply."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_nlf.batch import Batch
from lightning_nlf.maths.means import check_shapes
from lightning_nlf.maths.preferences import Pairs
from lightning_nlf.objective import Evaluation, Objective, Term
from lightning_nlf.rewards.preference_module import PreferenceModule
from lightning_nlf.rewards.preference_reward import ranked_pairs, rewards_of, win_or_lose


def soft_preference_loss(difference: Tensor, probability: Tensor) -> Tensor:
    """Cross-entropy to soft labels, −[p log σ(d) + (1 − p) log σ(−d)]: § 2.2 of https://arxiv.org/abs/2309.00267.

    The loss is minimal at σ(d) = p. At p = 1, the loss is the Bradley-Terry loss.
    Args: difference (P,): d of two rewards; probability (P,): p that the first reply is better.  Returns (P,).
    """
    check_shapes(1, difference=difference, probability=probability)
    return -(probability * F.logsigmoid(difference) + (1 - probability) * F.logsigmoid(-difference))


def soft_labels(ranked: Pairs, preference: Tensor | None) -> Tensor:
    """Probability that the row `better` of each pair is better, (P,). If the teacher gives none, 1, or .5 for a tie.

    Args: preference (B,): probability that a row is better than the other row of its group; NaN if unknown.
    """
    hard = torch.where(ranked.tie, 0.5, 1.0)
    if preference is None:
        return hard
    labels = preference[ranked.better]
    return torch.where(labels.isnan(), hard, labels)


class SoftPreferenceObjective(Objective):
    """Soft preference loss on every ranked pair of replies, with the labels `extra["preference"]` (B,) if available."""

    needs: tuple[type, ...] = (PreferenceModule,)
    reports: tuple[str, ...] = ("soft_preference",)

    def win_log_probs(self, difference: Tensor) -> Tensor:
        return win_or_lose(difference)

    def terms(self, batch: Batch, now: Evaluation) -> Iterator[Term]:
        ranked = ranked_pairs(batch)
        labels = soft_labels(ranked, batch.extra.get("preference"))
        yield Term("soft_preference", soft_preference_loss(ranked.difference(rewards_of(now)), labels), "pairs")


class SoftPreferenceReward(SoftPreferenceObjective, PreferenceModule):
    """Preference reward model with soft labels: Bradley-Terry, distilled from the probabilities of an AI labeller."""
